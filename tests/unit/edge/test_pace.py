"""How fast publishers of QoS 0 are read from beside QoS 1."""

from __future__ import annotations

import pytest

from services.edge import pace
from services.edge.pace import Pace

NOW = 1000.0


def read_for(each: Pace, seconds: float, size: int) -> int:
    """Read `size` whenever it may be, and return how much that came to; all of QoS 1 is in time."""
    now, total = NOW, 0
    while now < NOW + seconds:
        each.judge(False, now)
        if each.room(now):
            total += size
            each.read(size, now)
        now += 1e-4
    return total


def slowest() -> Pace:
    each = Pace()
    for _ in range(100):
        each.judge(True, NOW)
    return each


def test_what_is_read_comes_to_the_rate() -> None:
    assert read_for(Pace(), 1.0, 32 << 10) == pytest.approx(pace.MOST_RATE, rel=0.2)


def test_nobody_is_cut_off_however_late_others_are() -> None:
    each = slowest()
    assert each.read(2 * pace.QUANTUM, NOW)
    assert each.debt_s(NOW) == pytest.approx(2 * pace.QUANTUM / pace.LEAST_RATE)
    assert not each.room(NOW)
    assert each.room(NOW + each.debt_s(NOW) + 1e-6)


def test_each_that_is_late_slows_it_and_each_in_time_makes_up_for_some() -> None:
    def debt_s(each: Pace) -> float:
        each.read(pace.QUANTUM, NOW)
        return each.debt_s(NOW)

    late, mended, fast = Pace(), Pace(), Pace()
    late.judge(True, NOW)
    mended.judge(True, NOW)
    mended.judge(False, NOW)
    assert debt_s(fast) == pytest.approx(pace.QUANTUM / pace.MOST_RATE)
    assert debt_s(late) == pytest.approx(pace.QUANTUM / (pace.MOST_RATE * pace.FALL))
    assert debt_s(mended) == pytest.approx(pace.QUANTUM / (pace.MOST_RATE * pace.FALL + pace.RISE))


def test_some_may_be_ahead_so_that_much_is_read_at_a_time() -> None:
    each = slowest()
    assert not each.read(pace.QUANTUM // 2, NOW)
    assert not each.read(pace.QUANTUM // 2, NOW)
    assert each.read(1, NOW)
    assert not each.room(NOW + 0.9 * each.debt_s(NOW))


def test_the_more_each_brings_the_fewer_are_read_from() -> None:
    small, large = Pace(), Pace()
    for _ in range(100):
        small.read(1, NOW)
        large.read(pace.QUANTUM, NOW)
    later = NOW + 100
    assert small.room(later) == pace.MOST_READERS
    assert large.room(later) == 1


def test_without_judgements_the_rate_is_forgotten() -> None:
    each = slowest()
    later = NOW + 1.1 * pace.FORGET_S
    each.read(pace.QUANTUM, later)
    assert each.debt_s(later) == pytest.approx(pace.QUANTUM / pace.MOST_RATE)
