"""What the chaos test says of repeats."""

from __future__ import annotations

from tests.chaos.causes import (
    AFTER_KILL,
    AGAIN_BY_PUBLISHER,
    AGAIN_WITH_DUP,
    ON_ANOTHER,
    SETTLING_S,
    UNEXPLAINED,
    Kill,
    causes,
    explain,
)
from tests.chaos.ledger import Lane, Receipts, Repeat

KILLS = [Kill(10.0, "session"), Kill(20.0, "edge"), Kill(20.5, "nats"), Kill(20.6, "status")]


def repeat(first_s: float, time_s: float, *, is_dup: bool = False, is_other_connection: bool = False) -> Repeat:
    return Repeat(0, 0, first_s, time_s, is_dup, is_other_connection)


def test_each_repeat_has_its_most_certain_cause() -> None:
    assert explain(repeat(9, 11, is_dup=True), KILLS, was_sent_again=True) == AGAIN_WITH_DUP
    assert explain(repeat(9, 11), KILLS, was_sent_again=True) == AGAIN_BY_PUBLISHER
    assert explain(repeat(9, 11), KILLS, was_sent_again=False) == f"{AFTER_KILL} session"
    assert explain(repeat(10 + SETTLING_S - 0.1, 15), KILLS, was_sent_again=False) == f"{AFTER_KILL} session"
    assert explain(repeat(19, 21), KILLS, was_sent_again=False) == f"{AFTER_KILL} nats"
    assert explain(repeat(14, 15, is_other_connection=True), KILLS, was_sent_again=False) == ON_ANOTHER
    assert explain(repeat(14, 15), KILLS, was_sent_again=False) == UNEXPLAINED


def test_a_ledger_notes_repeats_with_what_is_known_of_them() -> None:
    lane = Lane(0, "t", 3)
    receipts = Receipts("s", [lane])
    for number in (0, 1, 1):
        receipts.take(b"0 %d" % number, is_dup=number == 0, connected_s=0.0)
    lane.sent_again[0] = 1
    receipts.take(b"0 0", is_dup=False, connected_s=receipts.repeats[0].time_s + 1)
    assert [(each.number, each.is_other_connection) for each in receipts.repeats] == [(1, False), (0, True)]
    assert causes([receipts], []) == {UNEXPLAINED: 1, AGAIN_BY_PUBLISHER: 1}
    assert receipts.received == 2
