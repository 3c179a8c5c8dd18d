"""The logs of ordered topics through faults, and those of deleted topics."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from services.common import subjects
from tests.contract.test_router_inbound import auth
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer
from tests.support.router import LOGGED, FakeEdge, Mesh, connected, make_log, mesh, read_log, until

__all__ = ["auth", "mesh"]  # fixtures

pytestmark = pytest.mark.asyncio


async def publish_in_turns(edge: FakeEdge, clients: int, total: int) -> None:
    """Publish from several clients, now at QoS 1, now at QoS 2, faster than the log stores."""
    for number in range(total):
        edge.publish(
            f"p/{number % 3}", b"%d" % number, qos=1 + number % 2, topic_flags=LOGGED, client_id=f"c{number % clients}"
        )
        if number % 20 == 19:
            await asyncio.sleep(0.002)


async def test_log_of_an_ordered_topic_keeps_the_order_through_crashes_of_router_and_nats(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    auth.put_topic("i", "p", ordered=True)
    await make_log(nats_server.url, "p")
    total = 3_000
    async with FakeEdge(mesh, "one").unlinked() as edge, asyncio.TaskGroup() as group:
        publishing = group.create_task(publish_in_turns(edge, 5, total))
        for fault in range(4):
            async with mesh.router():
                await mesh.serving()
                stored = len(edge.acknowledged)
                await until(lambda stored=stored: len(edge.acknowledged) > stored + total // 10)  # type: ignore[misc]
                if fault % 2:
                    await asyncio.to_thread(nats_server.restart)
        async with mesh.router():
            await publishing
            await edge.all_acknowledged()
    assert [each.data for each in await read_log(nats_server.url, "p")] == [b"%d" % n for n in range(total)]


async def test_log_of_an_ordered_topic_keeps_the_order_when_it_fails_for_moments(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    auth.put_topic("i", "p", ordered=True)
    total = 3_000
    config = StreamConfig(
        allow_direct=True,
        name=subjects.log_stream("i", "p"),
        subjects=subjects.log_filter("i", "p"),
        discard=DiscardPolicy.NEW,
        max_msgs=10,
    )
    async with connected(nats_server.url) as client:
        js = client.jetstream()
        await js.add_stream(config)
        async with mesh.router(), FakeEdge(mesh, "one").running() as edge, asyncio.TaskGroup() as group:
            await mesh.serving()
            publishing = group.create_task(publish_in_turns(edge, 5, total))
            limit = 10
            while limit < total:
                limit += 201
                for more in (limit, limit + 101):
                    await js.update_stream(dataclasses.replace(config, max_msgs=more))
                await until(lambda limit=limit: len(edge.acknowledged) >= min(limit, total) - 1)  # type: ignore[misc]
            await publishing
            await edge.all_acknowledged()
    assert [each.data for each in await read_log(nats_server.url, "p")] == [b"%d" % n for n in range(total)]


async def test_messages_of_a_deleted_topic_are_given_up_and_others_go_on(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    await make_log(nats_server.url, "p")
    await make_log(nats_server.url, "other")
    auth.put_topic("i", "other")
    async with mesh.router(), FakeEdge(mesh, "one").running() as edge, connected(nats_server.url) as client:
        edge.subscribe(1, "#")
        await edge.settled()
        await mesh.serving()
        edge.publish("p/a", b"1", topic_flags=LOGGED)
        await edge.all_acknowledged()
        await client.jetstream().delete_stream(subjects.log_stream("i", "p"))
        edge.publish("p/a", b"2", topic_flags=LOGGED)
        edge.publish("other/a", b"3", topic_flags=LOGGED)
        await until(lambda: len(edge.acknowledged) == 2)
        auth.remove_topic("i", "p")
        await edge.all_acknowledged()
        assert sorted(edge.payloads) == [b"1", b"2", b"3"]
