"""Kept P2P messages whose publisher wants to know what becomes of them (`RouterService.Deliver`). Pure.

A message is reported once: when its client has acknowledged it, or when it is known to be offline. Reports are not
stored: to a publisher that waits while the shard goes away its router says that the message is kept.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from services.session.domain.sessions import Session


class Outcome(enum.Enum):
    """What became of a message."""

    ACKNOWLEDGED = enum.auto()
    KEPT = enum.auto()
    NOT_KEPT = enum.auto()


Report = Callable[[Outcome], None]


class Receipts:
    """Messages under way that want a receipt; few, since the router bounds the calls that wait."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Session, int], Report] = {}

    def watch(self, session: Session, position: int, report: Report) -> None:
        """Report the end of a message that was offered to a session."""
        if session.channel is None:
            report(Outcome.KEPT)
        else:
            self._waiting[session, position] = report

    def end(self, session: Session, position: int, outcome: Outcome) -> None:
        """Note the end of a message."""
        if self._waiting:
            report = self._waiting.pop((session, position), None)
            if report is not None:
                report(outcome)

    def disconnected(self, session: Session) -> None:
        """Note that the connection of a session ended: what it had under way is kept."""
        for key in [key for key in self._waiting if key[0] is session]:
            self._waiting.pop(key)(Outcome.KEPT)
