"""The clock of the session service."""

from __future__ import annotations

from services.session.clock import Clock


def test_the_clock_follows_the_wall_forward_and_never_goes_back() -> None:
    wall, monotonic = 1_000.0, 5.0
    clock = Clock(wall_s=lambda: wall, monotonic_s=lambda: monotonic)
    assert clock.now_ms() == 1_000_000
    wall, monotonic = 2_000.0, 6.0
    assert clock.now_ms() == 2_000_000
    wall, monotonic = 500.0, 8.0
    assert clock.now_ms() == 2_002_000
