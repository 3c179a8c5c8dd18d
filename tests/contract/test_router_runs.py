"""Runs of QoS 1 over links, with a real NATS server and through faults."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from services.router.domain.columns import DELIVERED
from tests.contract.test_router_inbound import auth
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer
from tests.support.router import LOGGED, FakeEdge, Mesh, make_log, mesh, read_log, until
from weimq.router.v1 import router_pb2

__all__ = ["auth", "mesh"]  # fixtures

pytestmark = pytest.mark.asyncio

COUNT = 12


def texts(first: int, count: int = COUNT) -> list[bytes]:
    return [b"%06d" % number for number in range(first, first + count)]


def publish(edge: FakeEdge, first: int, total: int, *, flags: int = 0) -> None:
    """Publish so many numbers, in runs and now and then alone."""
    for number in range(first, first + total, COUNT + 1):
        edge.publish_run("p/a", texts(number), topic_flags=LOGGED, flags=flags)
        edge.publish("p/a", *texts(number + COUNT, 1), topic_flags=LOGGED, flags=flags)


async def test_a_run_is_in_the_log_before_it_is_acknowledged_and_delivered(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    auth.put_topic("i", "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        two.subscribe(1, "p/#")
        await two.settled()
        await mesh.serving()
        runs = [one.publish_run("p/a", texts(first), topic_flags=LOGGED) for first in (0, COUNT)]
        await one.settled()
        assert not one.acknowledged  # there is no such stream
        assert not two.deliveries
        await make_log(nats_server.url, "p")
        await one.all_acknowledged()
        assert one.acknowledged == runs
        assert two.payloads == texts(0, 2 * COUNT)
        stored = await read_log(nats_server.url, "p")
    assert [each.data for each in stored] == texts(0, 2 * COUNT)
    assert [each.headers and each.headers["mqttMsgId"] for each in stored] == [
        f"{one.incarnation}-{sequence}" for sequence in range(1, 2 * COUNT + 1)
    ]
    assert {each.headers and each.headers["clientId"] for each in stored} == {"c"}


@pytest.mark.parametrize("ordered", [False, True])
async def test_runs_are_in_the_log_once_whatever_is_killed(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, ordered: bool
) -> None:
    auth.put_topic("i", "p", ordered=ordered)
    await make_log(nats_server.url, "p")
    part = 1_300
    async with FakeEdge(mesh, "one").unlinked() as edge:
        for fault in range(4):
            async with mesh.router():
                await mesh.serving()
                acknowledged = len(edge.acknowledged)
                publish(edge, fault * part, part)
                await until(lambda acknowledged=acknowledged: len(edge.acknowledged) > acknowledged)  # type: ignore[misc]
                if fault % 2:
                    await asyncio.to_thread(nats_server.restart)
        async with mesh.router():
            await edge.all_acknowledged()
    logged = [each.data for each in await read_log(nats_server.url, "p")]
    if not ordered:  # what a killed router had on its way may be stored behind what its successor wrote
        logged.sort()
    assert logged == texts(0, 4 * part)


async def test_runs_that_their_edge_delivered_reach_a_session_shard_in_order(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    auth.put_topic("i", "p")
    await make_log(nats_server.url, "p")
    mesh._settings = dataclasses.replace(mesh._settings, shard_count=1)
    shard = FakeEdge(mesh, "shard", shard=router_pb2.SessionShard(index=0, count=1))
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, shard.running():
        shard.subscribe(1, "#", skips_qos0=True)
        await shard.settled()
        one.subscribe(1, "#")
        await one.settled()
        await mesh.serving()
        total = 1_300
        publish(one, 0, total, flags=DELIVERED)
        await one.all_acknowledged()
        assert not one.deliveries
        assert shard.payloads == texts(0, total)
        stream = shard.deliveries[0].position
        assert stream is not None
        assert [each.position for each in shard.deliveries] == [(stream[0], place + 1) for place in range(total)]
