"""A shard under random faults loses nothing, and keeps the order where that is strict."""

from __future__ import annotations

import os

import pytest

from tests.unit.session.domain.simulation import World

SEEDS = int(os.environ.get("WEIMQ_SEEDS", "150"))
STEPS = 150


@pytest.mark.parametrize("part", range(5))
def test_nothing_acknowledged_is_lost_whatever_breaks(part: int) -> None:
    for seed in range(part, SEEDS, 5):
        world = World(seed)
        try:
            for _ in range(STEPS):
                world.step()
            world.settle()
            world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_nothing_comes_twice_while_neither_shard_nor_link_breaks() -> None:
    for seed in range(SEEDS // 5):
        world = World(seed, crashes=False)
        try:
            for _ in range(STEPS):
                world.step()
            world.settle()
            world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
