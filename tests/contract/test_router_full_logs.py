"""A log that takes nothing slows its own publishers only: `LinkResponse.log_states`."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from grpc import aio

from services.common import log_health
from services.common.errors import UnavailableError
from services.common.grpc_client import channel
from services.common.log_lanes import FULL_AWAY_BYTES, FULL_BYTES
from services.router import inbound
from tests.contract.test_router_inbound import auth, backend_of, running
from tests.contract.test_router_publish import caller_of, message
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer
from tests.support.router import (
    LOGGED,
    TOKEN,
    FakeEdge,
    Mesh,
    connected,
    make_log,
    mesh,
    read_log,
    until,
    until_not_serving,
)
from weimq.router.v1 import router_pb2, router_pb2_grpc

__all__ = ["auth", "mesh"]  # fixtures

pytestmark = pytest.mark.asyncio

PIECE = 64 << 10
BELOW = {"mqttSecondTopic": "/a"}


async def fill(edge: FakeEdge, topic: str, size: int) -> None:
    """Publish as much as makes the log of a topic full, and wait for word of it."""
    for _ in range(size // PIECE + 2):
        edge.publish(topic, bytes(PIECE), topic_flags=LOGGED)
    await until(lambda: topic.partition("/")[0] in edge.full_logs)


async def test_log_without_a_stream_is_full_and_others_go_on(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "other")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        two.subscribe(1, "#")
        await two.settled()
        await mesh.serving()
        await fill(one, "p/a", FULL_BYTES)
        await until(lambda: two.full_logs == {"p"})
        safe = one.publish("other/a", b"safe", topic_flags=LOGGED)
        await until(lambda: safe in one.acknowledged)
        one.publish("p/a", b"at most once", qos=0, topic_flags=LOGGED)
        await until(lambda: len(two.deliveries) == 2)
        assert two.payloads == [b"safe", b"at most once"]
        two.router_incarnation = "another router"  # so that it starts anew
        two.cut()
        await until(lambda: two.links == 2)
        await until(lambda: two.full_logs == {"p"})
        await make_log(nats_server.url, "p")
        await one.all_acknowledged()
        await until(lambda: not one.full_logs and not two.full_logs)
        logged = await read_log(nats_server.url, "p")
        assert len(logged) == FULL_BYTES // PIECE + 2
        assert not any(message.data == b"at most once" for message in logged)


async def test_full_stream_of_kept_messages_is_one_of_no_parent_topic(mesh: Mesh, nats_server: NatsServer) -> None:
    mesh._settings = dataclasses.replace(mesh._settings, shard_count=1)  # which never comes, so all is kept
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        await mesh.serving()
        nats_server.kill()
        await until_not_serving(mesh)
        for _ in range(FULL_AWAY_BYTES // PIECE + 2):
            one.publish("a/b", bytes(PIECE))
        await until(lambda: one.full_logs == {""})
        await asyncio.to_thread(nats_server.start)
        await one.all_acknowledged()
        await until(lambda: not one.full_logs)


async def test_other_systems_are_refused_while_the_log_is_full(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    auth.put_topic("i", "other")
    await make_log(nats_server.url, "other")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, caller_of(mesh) as caller:
        await mesh.serving()
        await caller.knows()
        await fill(one, "p/a", FULL_BYTES)
        with pytest.raises(UnavailableError, match="log of a topic"):
            await caller.publish(message())
        request = router_pb2.DeliverRequest(message=message(topic="p/p2p/GID_x@@@1"))
        async with channel(mesh.address, TOKEN) as opened:
            with pytest.raises(aio.AioRpcError, match="log of the topic"):
                await router_pb2_grpc.RouterServiceStub(opened).Deliver(request, timeout=10)
        await caller.publish(message(topic="other/a"), message(qos=0, message_id="m-2"))
        await make_log(nats_server.url, "p")
        await one.all_acknowledged()


async def test_inbound_messages_wait_for_their_log_and_those_of_others_go_on(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    auth.put_topic("i", "other")
    await make_log(nats_server.url, "other")
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        await fill(edge, "p/a", FULL_BYTES)
        for n in range(40):
            await backend.publish(
                b"%d" % n + bytes(PIECE // 2), headers=BELOW
            )  # less than makes the log full once more
            await backend.publish(b"other%d" % n, "other")
            await backend.publish(b"unlogged%d" % n, "q")
        await until(lambda: len(edge.deliveries) == 80)
        assert [each for each in edge.payloads if each.startswith(b"other")] == [b"other%d" % n for n in range(40)]
        await backend.taken(but=40)
        await make_log(nats_server.url, "p")
        await backend.taken()
        await edge.all_acknowledged()
        inbound = [each.data for each in await read_log(nats_server.url, "p") if each.data.strip(b"\0")]
        assert [int(data.strip(b"\0")) for data in inbound] == list(range(40))


async def test_inbound_messages_of_a_stuck_log_leave_room_for_others(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound, "WINDOW_MESSAGES", 64)
    monkeypatch.setattr(inbound, "BATCH_MESSAGES", 64)
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        for n in range(1_000):  # too few bytes to make the log full, which has no stream
            await backend.publish(b"%d" % n, headers=BELOW)
        await backend.publish(b"unlogged", "q")
        await until(lambda: edge.payloads == [b"unlogged"])
        await make_log(nats_server.url, "p")
        await backend.taken()
        assert edge.payloads == [b"unlogged", *(b"%d" % n for n in range(1_000))]
        assert [each.data for each in await read_log(nats_server.url, "p")] == [b"%d" % n for n in range(1_000)]


async def test_inbound_messages_that_wait_for_their_log_are_bounded(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound, "WINDOW_MESSAGES", 16)
    monkeypatch.setattr(inbound, "BATCH_MESSAGES", 16)
    monkeypatch.setattr(inbound, "MAX_MESSAGES", 64)
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        for n in range(200):
            await backend.publish(b"%d" % n, headers=BELOW)
        await backend.publish(b"behind", "q")
        await asyncio.to_thread(nats_server.restart)  # all that is not acknowledged comes again
        await make_log(nats_server.url, "p")
        async with backend_of(nats_server) as again:
            await again.taken()
        assert max(edge.payloads, key=len) == b"behind"
        assert [each.data for each in await read_log(nats_server.url, "p")] == [b"%d" % n for n in range(200)]


async def test_logs_are_full_sooner_while_nats_is_away(mesh: Mesh, nats_server: NatsServer) -> None:
    topics = [f"p{number}" for number in range(20)]
    for topic in topics:
        await make_log(nats_server.url, topic)
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        await mesh.serving()
        nats_server.kill()
        warm_up = one.publish("unlogged", b"")
        await until(lambda: warm_up in one.acknowledged)
        await asyncio.gather(*(fill(one, f"{topic}/a", FULL_AWAY_BYTES) for topic in topics))
        unlogged = one.publish("unlogged", b"")
        await until(lambda: unlogged in one.acknowledged)
        await asyncio.to_thread(nats_server.start)
        await one.all_acknowledged()
        await until(lambda: not one.full_logs)
        assert sorted(one.acknowledged) == list(range(1, unlogged + 1))


async def test_jetstream_at_its_limit_is_told_by_health_and_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit stands for the end of the disk (`services.cli.nats_storage`)."""
    monkeypatch.setattr(log_health, "STUCK_S", 1.0)
    configuration = tmp_path / "limits.conf"
    configuration.write_text("jetstream: {max_file_store: 8MB}")
    server = NatsServer(tmp_path, arguments=["-c", str(configuration)])
    server.start()
    mesh = Mesh(f"unix:{tmp_path}/router", server.url, edge_grace_s=1.0)
    try:
        async with connected(server.url) as client:
            js = client.jetstream()
            await js.add_stream(name="old", subjects=["old"])
            for _ in range(4):
                await js.publish("old", bytes(1 << 20))
            await make_log(server.url, "p")
            async with mesh.router(), FakeEdge(mesh, "one").running() as one:
                await mesh.serving()
                for n in range(100):
                    one.publish("p/a", b"%d" % n + bytes(PIECE), topic_flags=LOGGED)
                    await asyncio.sleep(0.01)
                await until_not_serving(mesh)
                acknowledged = len(one.acknowledged)
                assert 0 < acknowledged < 100
                unlogged = one.publish("unlogged", b"")
                await until(lambda: unlogged in one.acknowledged)
                assert len(one.acknowledged) == acknowledged + 1
                await js.delete_stream("old")  # as if its messages had become too old
                await one.all_acknowledged()
                await mesh.serving()
        logged = await read_log(server.url, "p")
        assert [int(each.data.strip(b"\0")) for each in logged] == list(range(100))
    finally:
        server.kill()
