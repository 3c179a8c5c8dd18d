"""Why a message came twice: what a subscriber, its publisher and whoever kills processes know about it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tests.chaos.ledger import Receipts, Repeat

SETTLING_S = 3.0
"""How long before a first delivery a kill may have been that a repeat follows from: a shard had taken the message, or a
log had it, and what it had not yet stored or confirmed is given once more."""

CARRIERS = frozenset({"edge", "nats", "router", "session", "leader"})
"""What messages and acknowledgements pass through, as `Kill.kind`."""

AGAIN_BY_PUBLISHER = "sent again by the publisher, whose PUBACK was lost with its connection"
AGAIN_WITH_DUP = "sent again with DUP, since PUBACK was lost with the connection before"
AFTER_KILL = "sent again after a kill of"
ON_ANOTHER = "sent again on another connection, without its packet identifier"
UNEXPLAINED = "UNEXPLAINED"


class Kill(NamedTuple):
    """That a process was killed."""

    time_s: float
    kind: str
    """As in `edge`, without the number."""


def explain(repeat: Repeat, kills: list[Kill], *, was_sent_again: bool) -> str:
    """Return the cause of a repeat, the most certain one.

    Args:
        repeat: what came, and when the first one did.
        kills: in the order of time.
        was_sent_again: its publisher had no acknowledgement when it connected again.
    """
    if repeat.is_dup:
        return AGAIN_WITH_DUP
    if was_sent_again:
        return AGAIN_BY_PUBLISHER
    for kill in reversed(kills[: bisect_left(kills, (repeat.time_s, ""))]):  # the latest is the likeliest
        if kill.time_s < repeat.first_s - SETTLING_S:
            break
        if kill.kind in CARRIERS:
            return f"{AFTER_KILL} {kill.kind}"
    return ON_ANOTHER if repeat.is_other_connection else UNEXPLAINED


def causes(receipts: Iterable[Receipts], kills: list[Kill]) -> Counter[str]:
    """Return how often each cause was."""
    return Counter(
        explain(repeat, kills, was_sent_again=bool(each.lanes[repeat.lane].sent_again[repeat.number]))
        for each in receipts
        for repeat in each.repeats
    )
