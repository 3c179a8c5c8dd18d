"""A cluster of three real NATS servers with JetStream, for changes of leaders and for servers that die.

A stream with three replicas goes on while one server is away. Name streams and buckets as you like: the cluster is
the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from tests.support.nats import NatsServer
from tests.support.ports import free_ports

NODES = 3
FORMED_S = 60.0
"""How long a cluster may take until it makes streams, and a stream until it has a leader and all replicas."""


class NatsCluster:
    """Three servers, `nodes`, named `n0` to `n2`; each can be killed, started and paused by itself."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(2 * NODES)
        routes = [f"nats://127.0.0.1:{port}" for port in ports[NODES:]]
        self.nodes: list[NatsServer] = []
        for number in range(NODES):
            home = directory / f"n{number}"
            home.mkdir(parents=True)
            arguments = ["-n", home.name, "--cluster_name", "weimq-test", "--cluster", routes[number]]
            self.nodes.append(NatsServer(home, ports[number], [*arguments, "--routes", ",".join(routes)]))

    @property
    def url(self) -> str:
        """The addresses of all servers, joined by commas."""
        return ",".join(node.url for node in self.nodes)

    def start(self) -> None:
        """Start all servers; returns when they make streams with three replicas."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_started()
        asyncio.run(self._wait_formed())

    async def _wait_formed(self) -> None:
        async with self.client() as client:
            probe = {"name": "PROBE", "subjects": ["probe"], "num_replicas": NODES, "storage": "memory"}
            async with asyncio.timeout(FORMED_S):
                while not await _asked(client, "STREAM.CREATE.PROBE", probe):  # noqa: ASYNC110 - NATS's
                    await asyncio.sleep(0.05)
            await _asked(client, "STREAM.DELETE.PROBE", {})

    def kill(self) -> None:
        """Kill all servers."""
        for node in self.nodes:
            node.kill()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        """Connect to any server, for questions about the cluster."""
        client: Client = await nats.connect(self.url.split(","), connect_timeout=1, max_reconnect_attempts=-1)
        try:
            yield client
        finally:
            await client.close()

    async def leader(self, stream: str) -> NatsServer:
        """Return the server that leads a stream, once there is one.

        Raises:
            TimeoutError: there is none.
        """
        return self.nodes[int((await self._led(stream))["cluster"]["leader"].removeprefix("n"))]

    async def step_down(self, stream: str) -> None:
        """Have the leader of a stream step down; returns when another leads.

        Raises:
            TimeoutError: none does.
        """
        before = (await self._led(stream))["cluster"]["leader"]
        async with self.client() as client, asyncio.timeout(FORMED_S):
            await _asked(client, f"STREAM.LEADER.STEPDOWN.{stream}", {})
            while (await self._led(stream))["cluster"]["leader"] == before:  # noqa: ASYNC110 - NATS's
                await asyncio.sleep(0.05)

    async def wait_current(self, stream: str) -> None:
        """Wait until every replica of a stream has all messages.

        Raises:
            TimeoutError: that takes too long.
        """
        async with asyncio.timeout(FORMED_S):
            while not all(each["current"] for each in (await self._led(stream))["cluster"]["replicas"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _led(self, stream: str) -> dict[str, Any]:
        """Return what NATS tells of a stream, once it has a leader."""
        async with self.client() as client, asyncio.timeout(FORMED_S):
            while True:
                info = await _asked(client, f"STREAM.INFO.{stream}", {})
                if info and info["cluster"].get("leader"):
                    return info
                await asyncio.sleep(0.05)


async def _asked(client: Client, call: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call JetStream's API; returns nothing when it fails."""
    try:
        answer = await client.request(f"$JS.API.{call}", json.dumps(body).encode(), timeout=1)
    except (nats.errors.Error, TimeoutError):
        return {}
    told: dict[str, Any] = json.loads(answer.data)
    return {} if "error" in told else told


@contextlib.contextmanager
def running_cluster() -> Iterator[NatsCluster]:
    """Run a cluster of one's own in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="weimq-nats-") as directory:
        cluster = NatsCluster(Path(directory))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()


@pytest.fixture
def nats_cluster() -> Iterator[NatsCluster]:
    """Return a cluster of the test's own."""
    with running_cluster() as cluster:
        yield cluster
