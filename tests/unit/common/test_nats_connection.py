"""The connection of a service to NATS: it never outlives what it was made for."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from typing_extensions import override

from services.common import jetstream
from services.common.readiness import Readiness
from services.common.runtime import unless_stopped
from services.common.settings import Secret


class Leaving(Readiness):
    """Cancels `leaves` at the moment when NATS is there."""

    leaves: asyncio.Task[None]

    @override
    def mark(self, dependency: str, *, present: bool) -> None:
        super().mark(dependency, present=present)
        if present:
            self.leaves.cancel()


async def use(nats_url: str, readiness: Readiness) -> None:
    async with contextlib.AsyncExitStack() as stack:
        connected = jetstream.connected(Secret(nats_url), name="test", readiness=readiness)
        await unless_stopped(asyncio.Event(), stack.enter_async_context(connected))
        await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_a_connection_that_comes_as_it_is_given_up_is_closed(nats_url: str) -> None:
    readiness = Leaving(jetstream.DEPENDENCY)
    readiness.leaves = asyncio.create_task(use(nats_url, readiness))
    with pytest.raises(asyncio.CancelledError):
        await readiness.leaves
    assert asyncio.all_tasks() == {asyncio.current_task()}  # nats-py has tasks as long as it has a connection


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(0, 40, 2))
async def test_connecting_can_be_given_up_at_any_time(nats_url: str, turns: int) -> None:
    leaves = asyncio.create_task(use(nats_url, Readiness(jetstream.DEPENDENCY)))
    for _ in range(turns):
        await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert asyncio.all_tasks() == {asyncio.current_task()}
