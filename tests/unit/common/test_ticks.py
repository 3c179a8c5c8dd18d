"""Moments at which everything looks round together."""

from __future__ import annotations

import asyncio

import pytest

from services.common.ticks import next_tick, tick

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("period_s", [0.25, 0.5, 2.0])
async def test_the_next_tick_is_the_first_multiple_after_now(period_s: float) -> None:
    now = asyncio.get_running_loop().time()
    due = next_tick(period_s)
    assert now < due <= now + period_s
    assert due % period_s == pytest.approx(0, abs=1e-6) or due % period_s == pytest.approx(period_s, abs=1e-6)


async def test_a_tick_ends_no_sooner_than_its_moment() -> None:
    due = next_tick(0.125)
    await tick(0.125)
    assert asyncio.get_running_loop().time() >= due
