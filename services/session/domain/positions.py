"""Positions of messages in logs: packed into integers, queued, and remembered as met. Pure, hot path.

A *position* is one integer of 63 bits: the log (an index that the shard gave it), the sequence in it, and two flags
that belong to one session's delivery. Without the flags it is the *delivery id*, which stands for the message in any
session.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator

FLAG_BITS = 2
QOS2 = 1
"""The delivery has QoS 2, otherwise 1."""
P2P = 2
"""A kept P2P message, which is no subscription's."""
SEQUENCE_BITS = 42
"""A log of 100,000 messages/s is through after 500 days without a pause."""
MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1
LOG_BITS = 19
MAX_LOGS = 1 << LOG_BITS

WINDOW = 8_192
"""Sequences of a log, below the highest that came live, among which those that were met are known one by one.
A router has at most 4,096 on their way to a log, so none is stored further below one that was reported."""
_MASK = WINDOW - 1
_COMPACT = 64


def pack(log_index: int, sequence: int, flags: int) -> int:
    """Return a position."""
    return (log_index << SEQUENCE_BITS | sequence) << FLAG_BITS | flags


def log_index_of(delivery_id: int) -> int:
    """Return the log of a delivery id."""
    return delivery_id >> SEQUENCE_BITS


def sequence_of(delivery_id: int) -> int:
    """Return the sequence of a delivery id."""
    return delivery_id & MAX_SEQUENCE


def in_order(items: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return positions with their times by time, those of one log by sequence whatever their times.

    The time of a live message is that of its coming, of one that was read that of its storing.
    """
    latest: dict[int, int] = {}  # by log
    keyed: list[tuple[int, int, int]] = []
    for position, time_s in sorted(items):
        log = position >> SEQUENCE_BITS + FLAG_BITS
        latest[log] = at_s = max(time_s, latest.get(log, 0))
        keyed.append((at_s, position, time_s))
    keyed.sort()
    return [(position, time_s) for _, position, time_s in keyed]


class Queue:
    """Positions in the order of delivery, each with the time it came, in seconds: 12 bytes for each."""

    __slots__ = ("_head", "_positions", "_times")

    def __init__(self) -> None:
        self._positions = array("q")
        self._times = array("I")
        self._head = 0

    def __bool__(self) -> bool:
        # Said apart: compiled, an optional object is asked for nothing else.
        return len(self) > 0

    def __len__(self) -> int:
        return len(self._positions) - self._head

    def append(self, position: int, time_s: int) -> None:
        """Add the newest."""
        self._positions.append(position)
        self._times.append(time_s)

    def put_first(self, items: Iterable[tuple[int, int]]) -> None:
        """Add what comes before all others, in its order."""
        positions, times = array("q"), array("I")
        for position, time_s in items:
            positions.append(position)
            times.append(time_s)
        self._positions = positions + self._positions[self._head :]
        self._times = times + self._times[self._head :]
        self._head = 0

    def pop(self) -> tuple[int, int]:
        """Take the oldest out."""
        head = self._head
        item = self._positions[head], self._times[head]
        self._head = head = head + 1
        if head >= _COMPACT and 2 * head >= len(self._positions):
            del self._positions[:head]
            del self._times[:head]
            self._head = 0
        return item

    def pop_newest(self) -> tuple[int, int]:
        """Take the newest out."""
        return self._positions.pop(), self._times.pop()

    def first_time_s(self) -> int:
        """Return when the oldest came; the queue is not empty."""
        return self._times[self._head]

    def take(self, delivery_ids: Container[int]) -> list[tuple[int, int]]:
        """Take some out and return them in their order; those that are not there are left out. One pass through all."""
        taken: list[tuple[int, int]] = []
        positions, times = array("q"), array("I")
        for position, time_s in self:
            if position >> FLAG_BITS in delivery_ids:
                taken.append((position, time_s))
            else:
                positions.append(position)
                times.append(time_s)
        if taken:
            self._positions, self._times, self._head = positions, times, 0
        return taken

    def sort(self) -> None:
        """Put everything in order; see `in_order`."""
        items = in_order(self)
        self._positions = array("q", (position for position, _ in items))
        self._times = array("I", (time_s for _, time_s in items))
        self._head = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        head = self._head
        return zip(self._positions[head:], self._times[head:], strict=True)


class Met:
    """Which messages of a log are accounted for: in sessions, or of no interest to them.

    All through `read_through`, since the log itself was read; above, of the `WINDOW` sequences below `top` those that
    are marked. A message further below is not known: it counts as new, since twice is better than never.
    """

    __slots__ = ("_bits", "read_through", "top")

    def __init__(self, read_through: int = 0, top: int = 0, bits: bytes = b"") -> None:
        self.read_through = read_through
        self.top = top
        self._bits = bytearray(bits)

    @property
    def resume_after(self) -> int:
        """Sequence after which the log must be read to miss nothing."""
        return max(self.read_through, self.top - WINDOW)

    @property
    def bits(self) -> bytes:
        """The marks, to be stored."""
        return bytes(self._bits)

    def has(self, sequence: int) -> bool:
        """Say whether a message is accounted for."""
        if sequence <= self.read_through:
            return True
        if sequence > self.top or sequence <= self.top - WINDOW or not self._bits:
            return False
        index = sequence & _MASK
        return self._bits[index >> 3] & 1 << (index & 7) != 0

    def add(self, sequence: int) -> bool:
        """Account for a message that came live; says whether it had not been met."""
        if sequence <= self.read_through:
            return False
        if sequence > self.top:
            self._advance(sequence)
        elif sequence <= self.top - WINDOW:
            return True
        index = sequence & _MASK
        bits = self._bits
        mark = 1 << (index & 7)
        if bits[index >> 3] & mark:
            return False
        bits[index >> 3] |= mark
        return True

    def read_to(self, sequence: int) -> None:
        """Account for everything through a sequence: the log was read that far."""
        self.read_through = max(self.read_through, sequence)

    def _advance(self, sequence: int) -> None:
        """Make room for the marks of what lies between the top and `sequence`."""
        first, self.top = self.top + 1, sequence
        if not self._bits or sequence - first >= WINDOW - 1:
            self._bits = bytearray(WINDOW >> 3)
            return
        low, high = first & _MASK, sequence & _MASK
        if low <= high:
            self._clear(low, high)
        else:
            self._clear(low, WINDOW - 1)
            self._clear(0, high)

    def _clear(self, low: int, high: int) -> None:
        bits = self._bits
        first, last = low >> 3, high >> 3
        below = (1 << (low & 7)) - 1
        above = 0xFF & ~((1 << ((high & 7) + 1)) - 1)
        if first == last:
            bits[first] &= below | above
            return
        bits[first] &= below
        bits[first + 1 : last] = bytes(last - first - 1)
        bits[last] &= above
