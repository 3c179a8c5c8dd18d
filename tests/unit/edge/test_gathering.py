"""Questions of a storm go in few calls; a single one does not wait."""

from __future__ import annotations

import asyncio

import pytest

from services.common.runtime import background
from services.edge.gathering import Gathering
from tests.support.wait import eventually

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


class Calls:
    """What was asked, and when."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.times: list[float] = []

    async def send(self, batch: list[int]) -> None:
        self.batches.append(batch)
        self.times.append(asyncio.get_running_loop().time())


async def test_calls_are_apart_and_what_comes_meanwhile_goes_together() -> None:
    calls = Calls()
    gathering = Gathering(calls.send, max_batch=100, max_waiting=100, apart_s=0.5)
    async with background(gathering.run()):
        gathering.add(0)
        await eventually(lambda: calls.batches)
        for number in range(1, 10):
            gathering.add(number)
            await asyncio.sleep(0)
        await eventually(lambda: len(calls.batches) > 1)
    assert calls.batches == [[0], list(range(1, 10))]
    assert calls.times[1] - calls.times[0] > 0.4


async def test_a_question_beyond_the_bound_is_refused() -> None:
    gathering = Gathering(Calls().send, max_batch=1, max_waiting=2)
    assert [gathering.add(number) for number in range(3)] == [True, True, False]
