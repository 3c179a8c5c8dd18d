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
        if not each.debt_s(now):
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
    assert each.read(pace.QUANTUM + 1, NOW)
    due_s = each.debt_s(NOW)
    assert due_s == pytest.approx(pace.QUANTUM / pace.LEAST_RATE, rel=0.01)
    assert each.debt_s(NOW + 0.5 * due_s) == pytest.approx(0.5 * due_s)
    assert each.debt_s(NOW + 1.01 * due_s) == 0


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


def test_a_debt_is_paid_off_at_the_rate_of_now() -> None:
    each = slowest()
    each.read(100 * pace.QUANTUM, NOW)
    before_s = each.debt_s(NOW)
    for _ in range(1000):
        each.judge(False, NOW)
    assert each.debt_s(NOW) < 0.1 * before_s


@pytest.mark.parametrize("is_judged", [False, True])
def test_without_judgements_the_rate_is_forgotten(is_judged: bool) -> None:
    each = slowest()
    later = NOW + 1.1 * pace.FORGET_S
    if is_judged:
        each.judge(False, later)
    each.read(pace.QUANTUM, later)
    assert each.debt_s(later) == pytest.approx(pace.QUANTUM / pace.MOST_RATE)
