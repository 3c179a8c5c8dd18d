"""How fast publishers of QoS 0 are read from while messages of QoS 1 and 2 flow. Pure, hot path.

Processes that compete for the CPU can't give QoS 1 what it needs by the order of frames alone. So each link finds how
much of QoS 0 it can carry beside, as TCP finds its rate: a little more for each message of QoS 1 that was acknowledged
in time, a part less for each that was late (`services.edge.pulse`). What is read is a debt that time pays off.
"""

from __future__ import annotations

from typing import Final

LEAST_RATE: Final = 1048576.0
MOST_RATE: Final = 64 * 1048576.0
"""Bounds of the rate, in bytes a second: nobody is cut off, and it comes down from the highest in ten judgements."""

RISE: Final = 512 << 10
FALL: Final = 0.7
"""What the rate rises by with each message in time, and is multiplied by with each that is late."""

QUANTUM: Final = 128 << 10
"""How far reading may be ahead of the rate, and what is read when it no longer is: a few large frames cost less of the
CPU than many small ones."""

MOST_READERS: Final = 32
"""So many are read from for one quantum, however little each of them may bring."""

FORGET_S: Final = 1.0
"""Without a judgement for so long nothing is known, and the rate is the highest."""


class Pace:
    """The rate of one link, and the debt of its publishers."""

    __slots__ = ("_average", "_judged_at", "_paid_at", "_rate")

    def __init__(self) -> None:
        self._rate = MOST_RATE
        self._judged_at = 0.0
        self._paid_at = 0.0  # when the debt is paid off
        self._average = QUANTUM / MOST_READERS  # of what one brings at a time

    def judge(self, is_late: bool, now: float) -> None:  # noqa: FBT001 - hot path
        """Adapt to a message of QoS 1 or 2 that was acknowledged in time, or not; `now`: monotonic seconds."""
        self._judged_at = now
        if is_late:
            self._rate = max(LEAST_RATE, self._rate * FALL)
        else:
            self._rate = min(MOST_RATE, self._rate + RISE)

    def read(self, size: int, now: float) -> bool:
        """Note that one publisher brought so many bytes, and return whether it is to wait."""
        if now > self._judged_at + FORGET_S:
            self._rate = MOST_RATE
        self._average += (size - self._average) / 16
        self._paid_at = max(self._paid_at, now) + size / self._rate
        return (self._paid_at - now) * self._rate > QUANTUM

    def room(self, now: float) -> int:
        """Return how many of those who wait may be read from; 0: the debt is not paid off."""
        if self._paid_at > now:
            return 0
        return min(MOST_READERS, max(1, int(QUANTUM / self._average)))

    def debt_s(self, now: float) -> float:
        """Return after how many seconds the debt is paid off."""
        return max(0.0, self._paid_at - now)
