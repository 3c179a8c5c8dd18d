"""How fast publishers of QoS 0 are read from while messages of QoS 1 and 2 flow. Pure, hot path.

Processes that compete for the CPU can't give QoS 1 what it needs by the order of frames alone. So each link finds how
much of QoS 0 it can carry beside, as TCP finds its rate: a little more for each message of QoS 1 that was acknowledged
in time, a part less for each that was late (`services.edge.pulse`). What is read is a debt that time pays off.
"""

from __future__ import annotations

from typing import Final

LEAST_RATE: Final = 1048576.0
MOST_RATE: Final = 64 * 1048576.0
"""Bounds of the rate, in bytes a second: nobody is cut off, and a dozen judgements bring it down from the highest."""

RISE: Final = 512 << 10
FALL: Final = 0.7
"""What the rate rises by with each message in time, and is multiplied by with each that is late."""

QUANTUM: Final = 128 << 10
"""How far reading may be ahead of the rate, and what is read when it no longer is: a few large frames cost less of the
CPU than many small ones."""

FORGET_S: Final = 1.0
"""Without a judgement for so long nothing is known, and the rate is the highest."""


class Pace:
    """The rate of one link, and the debt of its publishers. `now` is monotonic seconds."""

    __slots__ = ("_debt", "_judged_at", "_paid_at", "_rate")

    def __init__(self) -> None:
        self._rate = MOST_RATE
        self._judged_at = 0.0
        self._debt = 0.0  # bytes, at `_paid_at`
        self._paid_at = 0.0

    def judge(self, is_late: bool, now: float) -> None:  # noqa: FBT001 - hot path
        """Adapt to a message of QoS 1 or 2 that was acknowledged in time, or not."""
        self._pay(now)
        self._judged_at = now
        if is_late:
            self._rate = max(LEAST_RATE, self._rate * FALL)
        else:
            self._rate = min(MOST_RATE, self._rate + RISE)

    def read(self, size: int, now: float) -> bool:
        """Note that one publisher brought so many bytes, and return whether it is to wait."""
        self._pay(now)
        self._debt += size
        return self._debt > QUANTUM

    def debt_s(self, now: float) -> float:
        """Return after how many seconds those who wait may be read from."""
        self._pay(now)
        return self._debt / self._rate

    def _pay(self, now: float) -> None:
        if now > self._judged_at + FORGET_S:
            self._rate = MOST_RATE
        self._debt = max(0.0, self._debt - (now - self._paid_at) * self._rate)
        self._paid_at = now
