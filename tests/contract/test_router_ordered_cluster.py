"""The log of an ordered topic on a cluster of NATS servers: changes of leaders, servers and routers killed with -9."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client
from nats.js import api

from services.common import subjects
from tests.contract.test_router_inbound import auth
from tests.support.fake_auth import FakeAuth
from tests.support.nats_cluster import NODES, NatsCluster
from tests.support.router import LOGGED, TOKEN, FakeEdge, Mesh, until

__all__ = ["auth"]  # a fixture

pytestmark = pytest.mark.asyncio

ROOT = Path(__file__).parents[2]
CLIENTS = 5
PROGRESS = 200
"""Acknowledgements between one fault and the next."""
CALM_S = 60.0
"""How long the log may take to go on after a fault."""
FAULTS = ("step down", "kill leader", "kill router", "step down")


@pytest.fixture
def mesh(nats_cluster: NatsCluster) -> object:
    with tempfile.TemporaryDirectory(prefix="weimq-") as directory:
        yield Mesh(f"unix:{Path(directory, 'router')}", nats_cluster.url, edge_grace_s=5.0)


class RouterProcess:
    """`python -m services.router`, as a process that can be killed."""

    def __init__(self, mesh: Mesh) -> None:
        settings = mesh._settings
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            "WEIMQ_CLUSTER_TOKEN": TOKEN.reveal(),
            "ROUTER_NATS_URL": settings.nats_url.reveal(),
            "ROUTER_GRPC_LISTEN": mesh.address,
            "ROUTER_AUTH": settings.auth,
            "ROUTER_SHARD_COUNT": "0",
            "WEIMQ_NATS_REPLICAS": str(NODES),
        }
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        command = [sys.executable, "-m", "services.router"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment)  # pytest shows what it logs

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextlib.asynccontextmanager
    async def running(self, mesh: Mesh) -> AsyncGenerator[None]:
        self.start()
        try:
            await mesh.serving()
            yield
        finally:
            self.kill()


async def mend(cluster: NatsCluster, stream: str) -> None:
    """Start the servers that were killed, and wait until they have caught up: with two away there is no quorum."""
    for node in cluster.nodes:
        if not node.is_running:
            await asyncio.to_thread(node.start)
    await cluster.wait_current(stream)


async def fail(fault: str, cluster: NatsCluster, router: RouterProcess, stream: str) -> None:
    """Cause a fault."""
    if fault == "step down":
        await cluster.step_down(stream)
    elif fault == "kill leader":
        await asyncio.to_thread((await cluster.leader(stream)).kill)
    else:
        await asyncio.to_thread(router.kill)
        router.start()


async def log_of(client: Client, stream: str) -> list[tuple[str, int]]:
    """Return client and number of every message, in the order of the log."""
    js = client.jetstream()
    count = (await js.stream_info(stream)).state.messages
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(CALM_S):
        while len(found) < count:
            with contextlib.suppress(nats.errors.Error, TimeoutError):  # the new consumer has no leader yet
                config = api.ConsumerConfig(
                    ack_policy=api.AckPolicy.NONE,
                    deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=len(found) + 1,
                    mem_storage=True,
                    num_replicas=1,
                )
                consumer = await js.pull_subscribe("", stream=stream, config=config)
                while len(found) < count:
                    messages = await consumer.fetch(min(1_000, count - len(found)), timeout=2)
                    found += [((message.headers or {})["clientId"], int(message.data)) for message in messages]
    return found


async def exercise(cluster: NatsCluster, mesh: Mesh, auth: FakeAuth, faults: list[str]) -> int:
    """Publish while one fault follows another; return how many messages the log then has in order."""
    auth.put_topic("i", "p", ordered=True)
    stream = subjects.log_stream("i", "p")
    config = api.StreamConfig(
        name=stream, subjects=subjects.log_filter("i", "p"), num_replicas=NODES, allow_direct=True
    )
    router = RouterProcess(mesh)
    published = 0
    is_over = is_paused = False

    async def publish(edge: FakeEdge) -> None:
        nonlocal published
        while not is_over:
            # As many as a few clients may have unanswered.
            for _ in range(5 if published - len(edge.acknowledged) < 2_000 and not is_paused else 0):
                payload, qos, client_id = b"%d" % published, 1 + published % 2, f"c{published % CLIENTS}"
                edge.publish(f"p/{published % 3}", payload, qos=qos, topic_flags=LOGGED, client_id=client_id)
                published += 1
            await asyncio.sleep(0.002)

    async with cluster.client() as client:
        await client.jetstream().add_stream(config)
        async with router.running(mesh), FakeEdge(mesh, "one").running() as edge, asyncio.TaskGroup() as group:
            publishing = group.create_task(publish(edge))
            for fault in faults:
                is_paused = True  # under load a server may need minutes to catch up
                await mend(cluster, stream)
                is_paused = False
                safe = len(edge.acknowledged)
                await until(lambda safe=safe: len(edge.acknowledged) >= safe + PROGRESS, CALM_S)  # type: ignore[misc]
                print(f"{time.strftime('%X')} {fault}, {safe} acknowledged")  # noqa: T201 - shown when the test fails
                await fail(fault, cluster, router, stream)
            safe = len(edge.acknowledged)
            await until(lambda: len(edge.acknowledged) >= safe + PROGRESS, CALM_S)
            is_over = True
            await publishing
            async with asyncio.timeout(CALM_S):
                await edge.all_acknowledged()
        logged = await log_of(client, stream)
    assert [number for _, number in logged] == list(range(published))
    for n in range(CLIENTS):
        assert [number for client_id, number in logged if client_id == f"c{n}"] == list(range(n, published, CLIENTS))
    return published


@pytest.mark.timeout(300)
async def test_log_order_is_publish_order_through_changes_of_leaders_and_kills(
    nats_cluster: NatsCluster, mesh: Mesh, auth: FakeAuth
) -> None:
    assert await exercise(nats_cluster, mesh, auth, list(FAULTS)) > PROGRESS * len(FAULTS)


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_log_order_is_publish_order_through_many_faults(
    nats_cluster: NatsCluster, mesh: Mesh, auth: FakeAuth
) -> None:
    assert await exercise(nats_cluster, mesh, auth, list(FAULTS) * 10) > PROGRESS * len(FAULTS) * 10
