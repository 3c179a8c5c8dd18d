"""Who breaks things: kills processes of a mesh with -9, and has leaders of streams step down in a cluster of NATS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

from tests.chaos.causes import Kill
from tests.support.mesh import Mesh

LEADER = "leader"
"""The victim that is no process: the leader of some stream."""
WHOLE_S = 30.0
"""How long a cluster may take until all its nodes have everything, before another one is killed."""


class Killer:
    """Breaks one thing after the other, now and then two at once. Of NATS a quorum always stays.

    Args:
        mesh: what is broken.
        chance: chooses victims and pauses.
        calm_s: between two attacks, on average.
    """

    def __init__(self, mesh: Mesh, chance: random.Random, calm_s: float) -> None:
        self._mesh = mesh
        self._chance = chance
        self._calm_s = calm_s
        self._victims: list[str] = []
        self.done: Counter[str] = Counter()
        """How often each victim had its turn."""
        self.kills: list[Kill] = []
        """When, in order."""

    async def run(self) -> None:
        """Break until cancelled."""
        while True:
            await asyncio.sleep(self._calm_s * (0.5 + self._chance.random()))
            await self._attack()

    async def _attack(self) -> None:
        """Take the next victims; each has its turn before one has another."""
        if not self._victims:
            self._victims = [*self._mesh.services, *self._mesh.nats_names]
            if self._mesh.nats_nodes > 1:
                self._victims += [LEADER] * self._mesh.nats_nodes
            self._chance.shuffle(self._victims)
        count = 2 if self._chance.random() < 0.2 else 1
        chosen = [self._victims.pop() for _ in self._victims[:count]]
        if self._mesh.nats_nodes > 1 and all(name.startswith("nats") for name in chosen):
            self._victims += chosen[1:]
            del chosen[1:]
        await asyncio.gather(*map(self._break, chosen))

    async def _break(self, name: str) -> None:
        if not await self._is_broken(name):
            return
        self.done[name] += 1
        self.kills.append(Kill(time.monotonic(), name.rstrip("0123456789-")))

    async def _is_broken(self, name: str) -> bool:
        if name == LEADER:
            async with _connected(self._mesh.nats_url) as client:
                stream = self._chance.choice(await _streams(client))
                await _asked(client, f"STREAM.LEADER.STEPDOWN.{stream}")
        elif self._mesh.pid(name):  # it may still be on its way up
            if self._mesh.nats_nodes > 1 and name.startswith("nats"):
                await self._wait_whole()
            await asyncio.to_thread(self._mesh.kill, name)
        else:
            return False
        return True

    async def _wait_whole(self) -> None:
        lacking: list[str] = []
        try:
            async with _connected(self._mesh.nats_url) as client, asyncio.timeout(WHOLE_S):
                while lacking := [  # noqa: ASYNC110 - NATS's
                    name for name in await _streams(client) if not await _is_whole(client, name)
                ]:
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"streams that do not get whole in {WHOLE_S} s: {lacking}") from None


async def _is_whole(client: Client, stream: str) -> bool:
    info = await _asked(client, f"STREAM.INFO.{stream}")
    cluster = info.get("cluster", {})
    return bool(cluster.get("leader")) and all(each["current"] for each in cluster.get("replicas", ()))


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[Client]:
    client = await nats.connect(url.split(","), connect_timeout=2, max_reconnect_attempts=-1, error_cb=_ignore)
    try:
        yield client
    finally:
        await client.close()


async def _ignore(_error: Exception) -> None:
    """Say nothing: nodes are killed."""


async def _streams(client: Client) -> list[str]:
    """Return the names of all streams, waiting for an answer."""
    answer: dict[str, Any] = {}
    while not answer:
        answer = await _asked(client, "STREAM.NAMES")
    names: list[str] = answer["streams"]
    return names


async def _asked(client: Client, call: str) -> dict[str, Any]:
    """Call JetStream's API; returns nothing when it fails, some time later."""
    with contextlib.suppress(nats.errors.Error, TimeoutError):
        answer: dict[str, Any] = json.loads((await client.request(f"$JS.API.{call}", b"{}", timeout=2)).data)
        if "error" not in answer:
            return answer
    await asyncio.sleep(0.1)
    return {}
