"""What was acknowledged and what was received, exactly, in a byte for each message and subscriber."""

from __future__ import annotations

import time
from array import array
from typing import NamedTuple

_TICKS = 100
"""Units of a second in which the times of first deliveries are kept, four bytes for each."""


class Lane:
    """The messages of one publisher on one topic, numbered from 0.

    Attributes:
        topic: its topic.
        total: how many there will be.
        acknowledged: a byte for each: whether the publisher has its acknowledgement.
        sent_again: a byte for each: whether the publisher had none when it connected again.
    """

    def __init__(self, index: int, topic: str, total: int) -> None:
        self.index = index
        self.topic = topic
        self.total = total
        self.acknowledged = bytearray(total)
        self.sent_again = bytearray(total)
        self.acknowledged_count = 0

    def acknowledge(self, number: int) -> None:
        """Note an acknowledgement."""
        if not self.acknowledged[number]:
            self.acknowledged[number] = 1
            self.acknowledged_count += 1


class Repeat(NamedTuple):
    """A message that came once more; times of `time.monotonic`."""

    lane: int
    number: int
    first_s: float
    time_s: float
    is_dup: bool
    is_other_connection: bool


class Receipts:
    """What one subscriber has received of the lanes that it is entitled to, in order unless it is not `in_order`."""

    def __init__(self, name: str, lanes: list[Lane], *, in_order: bool = True) -> None:
        self.name = name
        self.in_order = in_order
        self.lanes = {lane.index: lane for lane in lanes}
        self._counts = {lane.index: bytearray(lane.total) for lane in lanes}
        self._started = time.monotonic()
        self._first = {lane.index: array("I", bytes(4 * lane.total)) for lane in lanes}
        self._latest = {lane.index: -1 for lane in lanes}
        self.received = 0
        """Different messages."""
        self.repeats: list[Repeat] = []
        self.discarded = 0
        """Repeats of QoS 2 under an identifier that was not released: the client knows the message."""
        self.out_of_order: list[tuple[str, int, int, float]] = []
        """First deliveries that came after a later message of their lane: topic, number, the later one's, when."""
        self.foreign = 0
        """Messages that it is not entitled to."""

    def take(self, payload: bytes, *, is_dup: bool, connected_s: float) -> None:
        """Note a message, `lane number`; `connected_s`: since when there is the connection that brought it."""
        lane, _, number = payload.partition(b" ")
        index, n = int(lane), int(number)
        counts = self._counts.get(index)
        if counts is None:
            self.foreign += 1
        elif counts[n]:
            now_s, first_s = time.monotonic(), self._started + self._first[index][n] / _TICKS
            self.repeats.append(Repeat(index, n, first_s, now_s, is_dup, first_s < connected_s))
        else:
            counts[n] = 1
            self._first[index][n] = int((time.monotonic() - self._started) * _TICKS)
            self.received += 1
            if n < self._latest[index]:
                late = self.lanes[index].topic, n, self._latest[index], time.monotonic()
                self.out_of_order.append(late)
            else:
                self._latest[index] = n

    @property
    def missing(self) -> int:
        """Acknowledged messages that have not come."""
        return sum(
            lane.acknowledged_count - sum(map(_both, lane.acknowledged, self._counts[index]))
            for index, lane in self.lanes.items()
        )

    def first_missing(self) -> list[tuple[str, int]]:
        """Return (topic, number) of some acknowledged messages that have not come."""
        found = []
        for index, lane in self.lanes.items():
            counts = self._counts[index]
            found += [(lane.topic, n) for n in range(lane.total) if lane.acknowledged[n] and not counts[n]][:5]
        return found


def _both(acknowledged: int, count: int) -> bool:
    return bool(acknowledged and count)
