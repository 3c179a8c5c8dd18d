"""Persistent sessions with real NATS, a real router and real gRPC; edges are made of the stub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
import pytest_asyncio
from grpc import aio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api

from services.auth.streams import Streams
from services.common import grpc_client, healthcheck, subjects
from services.common.errors import UnavailableError
from services.common.log_reader import LogReader, StoredMessage
from services.common.runtime import background, until_stopped
from services.common.settings import Secret
from services.router import app as router_app
from services.router.settings import RouterSettings
from services.session import announcer, deleted_instances
from services.session import app as session_app
from services.session.clock import Clock
from services.session.domain import losses
from services.session.settings import SessionSettings
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer, unique
from tests.support.session_edge import RULES, SessionEdge
from weimq.router.v1 import router_pb2, router_pb2_grpc
from weimq.session.v1 import session_pb2 as pb
from weimq.session.v1 import session_pb2_grpc

pytestmark = pytest.mark.asyncio

TOKEN = Secret("a-cluster-token-for-tests")
INSTANCE = "mqtt-demo"
CLIENT = "GID_Test@@@0001"
ROOT = Path(__file__).parents[2]
UNPACED = pb.SessionRules(
    acknowledgement_timeout_ms=5_000, offline_retention_ms=86_400_000, max_offline_messages=1_000_000
)


async def until(condition: Callable[[], object], timeout_s: float = 40.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is of another process or of the service
            await asyncio.sleep(0.01)


class Mesh:
    """A router, and a session shard that tests start, stop and kill."""

    def __init__(self, server: NatsServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.router_address = f"unix:{directory}/router.sock"
        self.session_address = f"unix:{directory}/session.sock"
        self.data = directory / "data"
        self.number = 0
        self.router: router_pb2_grpc.RouterServiceStub
        self.sessions: session_pb2_grpc.SessionServiceStub
        self.channel: aio.Channel

    def router_settings(self, address: str = "") -> RouterSettings:
        return RouterSettings(
            cluster_token=TOKEN,
            nats_url=Secret(self.server.url),
            grpc_listen=(address or self.router_address,),
            shard_count=1,
            drain_s=0.0,
            auth=f"unix:{self.directory}/auth.sock",
        )

    @contextlib.asynccontextmanager
    async def serving(self, router: str = "", **changes: Any) -> AsyncGenerator[None]:
        """Run the session service; stopped gracefully on leaving."""
        settings = SessionSettings(
            cluster_token=TOKEN,
            nats_url=Secret(self.server.url),
            grpc_listen=(self.session_address,),
            router=(router or self.router_address,),
            data_dir=self.data,
            drain_s=2.0,
            **changes,
        )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(until_stopped(session_app.serve(settings, stop)))
            try:
                await self.is_serving()
                yield
            finally:
                stop.set()

    @contextlib.asynccontextmanager
    async def process(self) -> AsyncGenerator[subprocess.Popen[bytes]]:
        """Run the session service as a process; killed on leaving."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            "WEIMQ_CLUSTER_TOKEN": TOKEN.reveal(),
            "SESSION_NATS_URL": self.server.url,
            "SESSION_GRPC_LISTEN": self.session_address,
            "SESSION_ROUTER": self.router_address,
            "SESSION_DATA_DIR": str(self.data),
        }
        command = [sys.executable, "-m", "services.session"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - takes no time
        try:
            await self.is_serving()
            yield process
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def is_serving(self) -> None:
        async with asyncio.timeout(40):
            while not await healthcheck.is_serving(self.session_address):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def edge(self) -> AsyncGenerator[SessionEdge]:
        edge = SessionEdge(self.channel, TOKEN, INSTANCE)
        async with background(edge.run()):
            await until(lambda: edge.links)
            yield edge

    async def publish(self, topic: str, *payloads: bytes, qos: int = 1, clean: bool = True) -> None:
        """Publish messages; they are acknowledged."""
        messages = []
        for payload in payloads:
            self.number += 1
            messages.append(
                router_pb2.PublishedMessage(
                    instance_id=INSTANCE,
                    topic=topic,
                    payload=payload,
                    qos=qos,
                    clean_session=clean,
                    client_id="GID_Test@@@sender",
                    message_id=f"m-{self.number}",
                )
            )
        await self.router.Publish(router_pb2.PublishRequest(messages=messages), timeout=10, wait_for_ready=True)

    async def router_knows(self) -> None:
        """Wait until the router knows what exists."""
        message = router_pb2.PublishedMessage(instance_id="nowhere", topic="t", message_id="m")
        async with asyncio.timeout(40):
            while True:
                try:
                    await self.router.Publish(router_pb2.PublishRequest(messages=[message]), timeout=5)
                except aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                        return
                    await asyncio.sleep(0.02)

    async def create_log(self, topic: str = "demo", max_msg_size: int = -1) -> None:
        config = api.StreamConfig(
            name=subjects.log_stream(INSTANCE, topic),
            subjects=subjects.log_filter(INSTANCE, topic),
            allow_direct=True,
            max_msg_size=max_msg_size,
        )
        async with self.nats() as client:
            await client.jetstream().add_stream(config)

    @contextlib.asynccontextmanager
    async def nats(self) -> AsyncGenerator[Client]:
        client = await nats.connect(self.server.url)
        try:
            yield client
        finally:
            await client.close()


def auth() -> FakeAuth:
    """Return an auth service that knows the topics and groups of the tests."""
    fake = FakeAuth()  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
    fake.put_instance(INSTANCE)
    for topic in ("demo", "demo2", "plain"):
        fake.put_topic(INSTANCE, topic, logged=topic != "plain")
    for group_id in ("GID_Test", "GID_Other"):
        fake.put_group(INSTANCE, group_id)
    return fake


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncGenerator[Mesh]:
    directory = Path("/tmp") / unique("weimq-test-")  # short: a socket's path has 107 bytes
    directory.mkdir()
    mesh = Mesh(nats_server, directory)
    await mesh.create_log()
    stop = asyncio.Event()
    async with auth().serving(f"unix:{directory}/auth.sock"), asyncio.TaskGroup() as group:
        group.create_task(until_stopped(router_app.serve(mesh.router_settings(), stop)))
        async with (
            grpc_client.channel(mesh.router_address, TOKEN) as router,
            grpc_client.channel(mesh.session_address, TOKEN) as session,
        ):
            mesh.router = router_pb2_grpc.RouterServiceStub(router)
            mesh.sessions = session_pb2_grpc.SessionServiceStub(session)
            mesh.channel = session
            await mesh.router_knows()
            yield mesh
        stop.set()


async def connected(edge: SessionEdge, client_id: str = CLIENT, **options: Any) -> str:
    channel_id = edge.connect(client_id, **options)
    await until(lambda: edge.is_accepted(channel_id))
    return channel_id


async def subscribed(edge: SessionEdge, channel_id: str, topic_filter: str, qos: int = 1) -> None:
    change = edge.subscribe(channel_id, topic_filter, qos)
    await until(lambda: change in edge.stored)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(start, start + count)]


async def test_messages_wait_for_a_client_that_is_away(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge)
        assert not edge.decisions[first].session_present
        await subscribed(edge, first, "demo/#")
        await mesh.publish("demo/a", b"live")
        await until(lambda: edge.payloads(first) == [b"live"])
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(3))
        await mesh.publish("demo/a", b"qos 0", qos=0)
        second = await connected(edge)
        decision = edge.decisions[second]
        assert decision.session_present
        assert [(each.topic_filter, each.qos) for each in decision.subscriptions] == [("demo/#", 1)]
        await until(lambda: edge.payloads(second) == numbered(3))


@pytest.mark.parametrize("topic", ["demo/a", "plain/a"])
async def test_nothing_is_lost_when_the_shard_is_killed(mesh: Mesh, topic: str) -> None:
    edge = SessionEdge(mesh.channel, TOKEN, INSTANCE)
    async with background(edge.run()):
        async with mesh.process():
            channel_id = await connected(edge, rules=UNPACED)
            away = await connected(edge, "GID_Test@@@away", rules=UNPACED)
            await subscribed(edge, channel_id, "+/a")
            await subscribed(edge, away, "+/a")
            edge.disconnect(away)
            await mesh.publish(topic, *numbered(10))
            await until(lambda: len(edge.payloads(channel_id)) == 10)
        await mesh.publish(topic, *numbered(10, 10))  # while it is away
        async with mesh.process():
            await mesh.publish(topic, *numbered(10, 20))
            await until(lambda: set(edge.payloads(channel_id)) >= set(numbered(30)))
            back = await connected(edge, "GID_Test@@@away", rules=UNPACED)
            await until(lambda: set(edge.payloads(back)) >= set(numbered(30)))
            assert edge.decisions[back].session_present
            await until(lambda: edge.is_confirmed)
        assert edge.payloads(channel_id) == numbered(30), "acknowledged messages came again"
        assert edge.payloads(back) == numbered(30)


@pytest.mark.parametrize("has_files", [True, False])
async def test_what_a_client_completed_before_it_left_does_not_come_again(mesh: Mesh, has_files: bool) -> None:
    """The shard is away when client and acknowledgement go."""
    edge = SessionEdge(mesh.channel, TOKEN, INSTANCE)
    edge.acknowledges = False
    async with background(edge.run()):
        async with mesh.process():
            first = await connected(edge, rules=UNPACED)
            await subscribed(edge, first, "demo/#")
            await mesh.publish("demo/a", *numbered(3))
            await until(lambda: len(edge.deliveries) == 3)
        for delivery in edge.deliveries:
            edge.acknowledge(delivery)
        edge.disconnect(first)
        if not has_files:
            for path in mesh.data.iterdir():
                path.unlink()
        async with mesh.process():
            await until(lambda: edge.is_confirmed)
            second = await connected(edge, rules=UNPACED)
            await mesh.publish("demo/a", b"new")
            await until(lambda: b"new" in edge.payloads(second))
            assert edge.payloads(second) == [b"new"]


async def test_a_shard_rebuilds_itself_from_jetstream_alone(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await mesh.publish("demo/a", b"before the subscription")
        await asyncio.sleep(2.1)  # the resolution of the times in logs
        await subscribed(edge, channel_id, "demo/#")
        edge.disconnect(channel_id)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(5))
        await mesh.publish(f"demo/p2p/{CLIENT}", b"p2p", clean=False)
    for path in mesh.data.iterdir():
        path.unlink()
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await until(lambda: len(edge.payloads(channel_id)) == 6)
        assert edge.payloads(channel_id) == [*numbered(5), b"p2p"]


async def test_a_rebuilt_shard_knows_whether_the_group_of_a_receiver_existed(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
    await mesh.publish("demo/p2p/GID_None@@@1", b"no such group", clean=False)
    await mesh.publish("demo/p2p/GID_Test@@@2", b"kept", clean=False)
    for path in mesh.data.iterdir():
        path.unlink()
    async with mesh.serving(), mesh.edge() as edge:
        channel_ids = [await connected(edge, each) for each in (CLIENT, "GID_Test@@@2", "GID_None@@@1")]
        await until(lambda: edge.deliveries)
        await mesh.publish("demo/a", b"last")
        await until(lambda: len(edge.deliveries) == 2)
        assert [edge.payloads(each) for each in channel_ids] == [[b"last"], [b"kept"], []]


@pytest.mark.parametrize("ahead_ms", [-10_000, 10_000])
async def test_clocks_that_differ_hide_nothing_from_a_rebuilt_shard(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, ahead_ms: int
) -> None:
    right = Clock.now_ms
    monkeypatch.setattr(Clock, "now_ms", lambda clock: right(clock) + ahead_ms)
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge)
        await mesh.publish("demo/a", b"before the subscription")
        await asyncio.sleep(2.1)  # what may be taken for later
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
    await mesh.publish("demo/a", b"after it")
    for path in mesh.data.iterdir():
        path.unlink()
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await until(lambda: edge.deliveries)
        await mesh.publish("demo/a", b"last")
        await until(lambda: edge.payloads(channel_id) == [b"after it", b"last"])


async def test_a_late_answer_of_nats_does_not_make_messages_older(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", b"at once")
    for path in mesh.data.iterdir():
        path.unlink()
    request = Client.request

    async def late(client: Client, subject: str, *args: Any, **options: Any) -> Msg:
        if subject.endswith("STREAM.LIST"):
            await asyncio.sleep(4)
        return await request(client, subject, *args, **options)

    monkeypatch.setattr(Client, "request", late)
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await until(lambda: edge.payloads(channel_id) == [b"at once"])


@pytest.mark.parametrize("clean_receiver", [True, False])
async def test_p2p_is_kept_by_the_flag_of_the_sender(mesh: Mesh, clean_receiver: bool) -> None:
    topic = f"demo/p2p/{CLIENT}"
    async with mesh.serving(), mesh.edge() as edge:
        await mesh.publish(topic, b"kept", clean=False)
        await mesh.publish(topic, b"not kept", clean=True)
        await mesh.publish(topic, b"qos 0", clean=False, qos=0)
        channel_id = await connected(edge, clean_session=clean_receiver)
        await until(lambda: edge.payloads(channel_id) == [b"kept"])
        await mesh.publish(topic, b"live", clean=False)
        await until(lambda: edge.payloads(channel_id) == [b"kept", b"live"])
        assert {each.topic for each in edge.deliveries} == {topic}


async def test_a_backlog_comes_in_batches_and_live_messages_beside_it(mesh: Mesh) -> None:
    rules = pb.SessionRules()
    rules.CopyFrom(RULES)
    rules.batch_messages = 10
    rules.batch_interval_ms = 600
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge, rules=rules)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(25))
        second = await connected(edge, rules=rules)
        await until(lambda: edge.payloads(second) == numbered(10))
        await mesh.publish("demo/a", b"live")
        await until(lambda: edge.payloads(second)[10:11] == [b"live"])
        edge.pull(second, 3, descending=True)
        await until(lambda: edge.payloads(second)[11:14] == [b"24", b"23", b"22"])
        await until(lambda: len(edge.payloads(second)) == 26)
        assert edge.payloads(second)[14:] == numbered(12, 10)


async def test_in_strict_order_live_messages_wait_for_acknowledgements(mesh: Mesh) -> None:
    rules = pb.SessionRules()
    rules.CopyFrom(RULES)
    rules.batch_messages = 5
    rules.strict_order = True
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge, rules=rules)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(8))
        edge.acknowledges = False
        second = await connected(edge, rules=rules)
        await until(lambda: len(edge.deliveries) == 5)
        await mesh.publish("demo/a", b"8")
        for delivery in edge.deliveries[:4]:
            edge.acknowledge(delivery)
        await until(lambda: edge.is_confirmed)
        assert edge.payloads(second) == numbered(5)
        edge.acknowledge(edge.deliveries[4])
        await until(lambda: edge.payloads(second) == numbered(9))


@pytest.mark.spec("MQTT-4.4.0-1")
async def test_what_is_under_way_comes_again_under_its_packet_identifier(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        edge.acknowledges = False
        first = await connected(edge)
        await subscribed(edge, first, "demo/#")
        await mesh.publish("demo/a", *numbered(3))
        await until(lambda: len(edge.deliveries) == 3)
        state = pb.InflightState(
            delivery_ids=[each.delivery_id for each in edge.deliveries],
            packet_identifiers=[7, 8, 9],
            stages=bytes(3),
            received_packet_identifiers=[77],
        )
        edge.disconnect(first, state)
        second = await connected(edge)
        assert edge.decisions[second].inflight == state
        await until(lambda: len(edge.deliveries) == 6)
        again = [(each.payload, each.packet_identifier, each.dup) for each in edge.deliveries[3:]]
        assert again == [(b"0", 7, True), (b"1", 8, True), (b"2", 9, True)]


async def test_a_connection_that_ends_before_its_decision_leaves_identifiers_to_the_next(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        edge.acknowledges = False
        first = await connected(edge)
        await subscribed(edge, first, "demo/#")
        await mesh.publish("demo/a", *numbered(1))
        await until(lambda: len(edge.deliveries) == 1)
        state = pb.InflightState(
            delivery_ids=[edge.deliveries[0].delivery_id],
            packet_identifiers=[7],
            stages=bytes(1),
            received_packet_identifiers=[5],
        )
        edge.disconnect(first, state)
        second = await connected(edge)
        edge.openings[second].connection.connect_time_ms = 0  # as if it ended before the decision came
        edge.disconnect(second)
        third = await connected(edge)
        assert edge.decisions[third].inflight == state
        await until(lambda: [each.packet_identifier for each in edge.deliveries if each.channel_id == third] == [7])


async def test_clean_session_discards_what_was_kept(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await mesh.publish("demo/a", *numbered(3))
        clean = await connected(edge, clean_session=True)
        assert not edge.decisions[clean].session_present
        edge.disconnect(clean)
        again = await connected(edge)
        assert not edge.decisions[again].session_present
        assert not edge.decisions[again].subscriptions
        await subscribed(edge, again, "demo/b")
        await mesh.publish("demo/b", b"new")
        await until(lambda: edge.payloads(again) == [b"new"])


async def test_a_held_connection_gets_nothing_until_it_is_released(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await mesh.publish("demo/a", b"offline")
        second = await connected(edge, is_held=True)
        await mesh.publish("demo/a", b"live")
        await until(lambda: edge.is_confirmed)
        assert not edge.deliveries
        edge.release(second)
        await until(lambda: set(edge.payloads(second)) == {b"offline", b"live"})


async def test_a_held_connection_discards_nothing_until_it_is_released(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        first = await connected(edge)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await mesh.publish("demo/a", b"offline")
        stranger = await connected(edge, clean_session=True, is_held=True)
        edge.disconnect(stranger)
        second = await connected(edge)
        assert edge.decisions[second].session_present
        await until(lambda: edge.payloads(second) == [b"offline"])
        edge.disconnect(second)
        owner = await connected(edge, clean_session=True, is_held=True)
        edge.release(owner)
        edge.disconnect(owner)
        third = await connected(edge)
        assert not edge.decisions[third].session_present
        assert not edge.decisions[third].subscriptions


async def test_a_held_connection_makes_no_session_until_it_is_released(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        edge.disconnect(await connected(edge, is_held=True))
        owner = await connected(edge, is_held=True)
        assert not edge.decisions[owner].session_present
        edge.release(owner)
        await subscribed(edge, owner, "demo/#")
        await mesh.publish("demo/a", b"live")
        await until(lambda: edge.payloads(owner) == [b"live"])
        edge.disconnect(owner)
        again = await connected(edge, is_held=True)
        assert edge.decisions[again].session_present


async def test_the_oldest_of_too_many_are_dropped_and_announced(mesh: Mesh) -> None:
    rules = pb.SessionRules()
    rules.CopyFrom(UNPACED)
    rules.max_offline_messages = 5
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        first = await connected(edge, rules=rules)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(8))
        body = await announced(client, 3)
        assert body["reason"] == "over_limit"
        assert [(each["clientId"], each["topic"], each["sequence"]) for each in body["messages"]] == [
            (CLIENT, "demo/a", n) for n in (1, 2, 3)
        ]
        second = await connected(edge, rules=rules)
        await until(lambda: edge.payloads(second) == numbered(5, 3))


async def test_every_loss_is_announced_however_many_there_are(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "MAX_WAITING", 2)
    rules = pb.SessionRules()
    rules.CopyFrom(UNPACED)
    rules.max_offline_messages = 1
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        first = await connected(edge, rules=rules)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(50))
        entries: list[dict[str, Any]] = []
        async with asyncio.timeout(40):
            while sum(each.get("count", 1) for each in entries) < 49:
                await asyncio.sleep(0.05)
                entries = await all_announced(client)
        covered = [
            n for each in entries for n in range(each["sequence"], each.get("lastSequence", each["sequence"]) + 1)
        ]
        assert sorted(covered) == list(range(1, 50))
        assert {(each["clientId"], each["topic"]) for each in entries} == {(CLIENT, "demo/a")}


async def test_losses_of_the_last_second_are_announced_before_the_end(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "PAUSE_S", 600.0)
    rules = pb.SessionRules()
    rules.CopyFrom(UNPACED)
    rules.max_offline_messages = 1
    async with mesh.nats() as client:
        async with mesh.serving(), mesh.edge() as edge:
            first = await connected(edge, rules=rules)
            await subscribed(edge, first, "demo/#")
            edge.disconnect(first)
            await until(lambda: edge.is_confirmed)
            await mesh.publish("demo/a", *numbered(3))
            second = await connected(edge, rules=rules)
            await until(lambda: edge.payloads(second) == [b"2"])
        assert [each["sequence"] for each in await all_announced(client)] == [1, 2]


async def test_a_message_that_no_log_can_store_reaches_who_is_connected_and_is_announced_for_others(mesh: Mesh) -> None:
    await mesh.create_log("demo2", max_msg_size=2_000)
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        online = await connected(edge)
        await subscribed(edge, online, "demo2/#")
        away = await connected(edge, "GID_Test@@@away")
        await subscribed(edge, away, "demo2/#")
        edge.disconnect(away)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo2/a", bytes(3_000))
        body = await announced(client, 1)
        assert body["reason"] == "not_stored"
        assert [(each["clientId"], each["topic"]) for each in body["messages"]] == [("GID_Test@@@away", "demo2/a")]
        await mesh.publish("demo2/p2p/GID_Other@@@1", bytes(3_000), clean=False)
        async with asyncio.timeout(30):
            while len(entries := await all_announced(client)) < 2:  # noqa: ASYNC110 - NATS's
                await asyncio.sleep(0.05)
        assert (entries[1]["clientId"], entries[1]["topic"]) == ("GID_Other@@@1", "demo2/p2p/GID_Other@@@1")


async def test_a_shard_that_is_killed_announces_every_loss_once(mesh: Mesh) -> None:
    """Wherever it dies: before the checkpoint, between it and the announcement, or before it forgets that."""
    rules = pb.SessionRules()
    rules.CopyFrom(UNPACED)
    rules.max_offline_messages = 1
    lost = 0
    async with mesh.nats() as client:
        async with mesh.process(), mesh.edge() as edge:
            first = await connected(edge, rules=rules)
            await subscribed(edge, first, "demo/#")
            edge.disconnect(first)
            await until(lambda: edge.is_confirmed)
            await mesh.publish("demo/a", b"first")
        for seen in (0, 1, 0):
            async with mesh.process():
                await mesh.publish("demo/a", *numbered(7))
                lost += 7
                async with asyncio.timeout(40):
                    while seen and len(await all_announced(client)) < lost:  # noqa: ASYNC110 - NATS's
                        await asyncio.sleep(0.01)
        async with mesh.process():
            async with asyncio.timeout(40):
                while len(await all_announced(client)) < lost:  # noqa: ASYNC110 - NATS's
                    await asyncio.sleep(0.05)
        entries = await all_announced(client)
    assert sorted(each["sequence"] for each in entries) == list(range(1, lost + 1))


async def test_what_a_deleted_session_lost_is_announced_though_its_shard_is_killed(mesh: Mesh) -> None:
    async with mesh.nats() as client:
        async with mesh.process(), mesh.edge() as edge:
            first = await connected(edge, rules=UNPACED)
            await subscribed(edge, first, "demo/#")
            edge.disconnect(first)
            await until(lambda: edge.is_confirmed)
            await mesh.publish("demo/a", *numbered(3))
            await until_kept(mesh, CLIENT, 3)
            await mesh.sessions.DeleteSession(pb.DeleteSessionRequest(instance_id=INSTANCE, client_id=CLIENT))
        async with mesh.process():
            body = await announced(client, 3)
    assert body["reason"] == "session_deleted"
    assert [each["sequence"] for each in body["messages"]] == [1, 2, 3]


async def all_announced(client: Client) -> list[dict[str, Any]]:
    """Return the entries of all announcements of losses."""
    js = client.jetstream()
    entries: list[dict[str, Any]] = []
    with contextlib.suppress(nats.js.errors.NotFoundError):
        stream = subjects.dropped_stream(INSTANCE)
        for sequence in range(1, (await js.stream_info(stream)).state.last_seq + 1):
            entries += json.loads((await js.get_msg(stream, sequence)).data or b"")["messages"]
    return entries


async def test_losses_are_announced_though_the_stream_went_with_its_instance(mesh: Mesh) -> None:
    rules = pb.SessionRules()
    rules.CopyFrom(UNPACED)
    rules.max_offline_messages = 1
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        first = await connected(edge, rules=rules)
        await subscribed(edge, first, "demo/#")
        edge.disconnect(first)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(2))
        await announced(client, 1)
        await client.jetstream().delete_stream(subjects.dropped_stream(INSTANCE))
        await mesh.publish("demo/a", b"2")
        assert [each["sequence"] for each in (await announced(client, 1))["messages"]] == [2]


async def announced(client: Client, count: int) -> dict[str, Any]:
    """Return the last announcement of losses when it has so many."""
    body: dict[str, Any] = {"messages": []}
    async with asyncio.timeout(30):
        while len(body["messages"]) < count:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                stored = await client.jetstream().get_last_msg(
                    subjects.dropped_stream(INSTANCE), subjects.dropped_subject(INSTANCE)
                )
                body = json.loads(stored.data or b"")
            await asyncio.sleep(0.05)
    return body


async def test_sessions_are_listed_returned_and_deleted(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        clients = [f"GID_Test@@@{n}" for n in range(3)]
        for client_id in clients:
            channel_id = await connected(edge, client_id)
            await subscribed(edge, channel_id, "demo/#")
            edge.disconnect(channel_id)
        await mesh.publish("demo/p2p/GID_Other@@@1", b"kept", clean=False)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", *numbered(4))
        await until_kept(mesh, clients[0], 4)
        first = await mesh.sessions.ListSessions(pb.ListSessionsRequest(instance_id=INSTANCE, page_size=3))
        second = await mesh.sessions.ListSessions(
            pb.ListSessionsRequest(instance_id=INSTANCE, page_size=3, page_token=first.next_page_token)
        )
        found = [*first.sessions, *second.sessions]
        assert [each.client_id for each in found] == [*clients, "GID_Other@@@1"]
        assert [each.persistent for each in found] == [True, True, True, False]
        assert [each.offline_message_count for each in found] == [4, 4, 4, 1]
        assert not second.next_page_token
        prefixed = pb.ListSessionsRequest(instance_id=INSTANCE, client_id_prefix="GID_Other")
        assert len((await mesh.sessions.ListSessions(prefixed)).sessions) == 1
        await mesh.sessions.DeleteSession(pb.DeleteSessionRequest(instance_id=INSTANCE, client_id=clients[2]))
        names = pb.DeleteSessionRequest(instance_id=INSTANCE, client_id=clients[0])
        assert (await mesh.sessions.DeleteSession(names)).dropped_message_count == 4
        with pytest.raises(aio.AioRpcError) as error:
            await mesh.sessions.DeleteSession(names)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        for request in (pb.ListSessionsRequest(), pb.ListSessionsRequest(instance_id="i", page_token="x")):
            with pytest.raises(aio.AioRpcError) as error:
                await mesh.sessions.ListSessions(request)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with mesh.serving(), mesh.edge() as edge:  # it stays deleted
        channel_id = await connected(edge, clients[0])
        assert not edge.decisions[channel_id].session_present
        wanted = pb.GetSessionRequest(instance_id=INSTANCE, client_id=clients[1])
        session = (await mesh.sessions.GetSession(wanted)).session
        assert [each.topic_filter for each in session.subscriptions] == ["demo/#"]
        assert session.disconnect_time_ms > 0
        async with mesh.nats() as client, asyncio.timeout(30):  # what tells of the deletion is cleared away
            while (await client.jetstream().stream_info("KV_sessions")).state.messages > 2:  # noqa: ASYNC110 - NATS's
                await asyncio.sleep(0.02)
        assert session.oldest_message_time_ms > 0


async def test_sessions_of_a_deleted_instance_are_gone(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deleted_instances, "POLL_S", 0.1)
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        for number in range(3):
            channel_id = await connected(edge, f"GID_Test@@@{number}")
            await subscribed(edge, channel_id, "demo/#")
            if number:
                edge.disconnect(channel_id)
        other = SessionEdge(mesh.channel, TOKEN, "other", "edge-2")
        async with background(other.run()):
            await until(lambda: other.links)
            await subscribed(other, await connected(other), "demo/#")
            await mesh.publish("demo/p2p/GID_Other@@@1", b"kept", clean=False)
            await Streams(client).delete_of_instance(INSTANCE)
            async with asyncio.timeout(30):
                while (await mesh.sessions.ListSessions(pb.ListSessionsRequest(instance_id=INSTANCE))).sessions:  # noqa: ASYNC110 - the service's
                    await asyncio.sleep(0.05)
            await until(lambda: not edge.openings)  # the edge was told to close it
            found = await mesh.sessions.ListSessions(pb.ListSessionsRequest(instance_id="other"))
            assert [each.client_id for each in found.sessions] == [CLIENT]
            again = await connected(edge, "GID_Test@@@1")
            assert not edge.decisions[again].session_present
            await subscribed(edge, again, "demo/#")
            edge.disconnect(again)
            await until(lambda: edge.is_confirmed)
            back = await connected(edge, "GID_Test@@@1")
            assert edge.decisions[back].session_present, "the instance was made again"
    async with mesh.serving(), mesh.edge() as edge:
        for number, is_present in enumerate((False, True, False)):
            channel_id = await connected(edge, f"GID_Test@@@{number}")
            assert edge.decisions[channel_id].session_present == is_present


async def test_a_mark_of_the_past_costs_no_session(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance may have no persistent session when it is deleted, and get some when it is made again."""
    monkeypatch.setattr(deleted_instances, "POLL_S", 0.1)
    other = pb.ListSessionsRequest(instance_id="other")
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        await Streams(client).delete_of_instance("other")

        async def until_looked() -> None:
            await subscribed(edge, await connected(edge), "demo/#")
            await Streams(client).delete_of_instance(INSTANCE)
            await until(lambda: not edge.openings)

        for _ in range(2):  # what is seen of an instance may be from the middle of a round
            await until_looked()
        again = SessionEdge(mesh.channel, TOKEN, "other", "edge-2")
        async with background(again.run()):
            await until(lambda: again.links)
            await subscribed(again, await connected(again), "demo/#")
            for _ in range(2):
                await until_looked()
            assert len((await mesh.sessions.ListSessions(other)).sessions) == 1
            assert again.openings, "it was told to close it"


async def until_kept(mesh: Mesh, client_id: str, count: int) -> None:
    request = pb.GetSessionRequest(instance_id=INSTANCE, client_id=client_id)
    async with asyncio.timeout(30):
        while (await mesh.sessions.GetSession(request)).session.offline_message_count < count:  # noqa: ASYNC110 - the service's
            await asyncio.sleep(0.01)


async def test_a_subscription_waits_for_a_router_that_is_away(mesh: Mesh) -> None:
    """It would keep nothing of a topic without a log while it does not know who wants it."""
    late = f"unix:{mesh.directory}/late.sock"
    stop = asyncio.Event()
    async with mesh.nats() as client, mesh.serving(late), mesh.edge() as edge:
        channel_id = await connected(edge)
        change = edge.subscribe(channel_id, "unlogged/#", 1)
        async with asyncio.timeout(30):
            js = client.jetstream()
            while True:
                with contextlib.suppress(nats.js.errors.NotFoundError):  # nothing was stored yet
                    stored = await js.get_last_msg("KV_sessions", "$KV.sessions.*.*")
                    if b"unlogged" in (stored.data or b""):
                        break
                await asyncio.sleep(0.02)
        edge.disconnect(channel_id)
        await until(lambda: edge.is_confirmed)  # what was stored before is answered by then
        assert change not in edge.stored
        channel_id = await connected(edge)
        change = edge.subscribe(channel_id, "unlogged/#", 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(until_stopped(router_app.serve(mesh.router_settings(late), stop)))
            await until(lambda: change in edge.stored)
            stop.set()


async def test_a_log_that_nats_does_not_serve_is_not_taken_for_empty(mesh: Mesh) -> None:
    async with mesh.nats() as client, background((reader := LogReader(client)).run()):
        with pytest.raises(UnavailableError):
            await reader.read("MQ_none_none", 0)
        await mesh.publish("demo/a", *numbered(3))
        log = subjects.log_stream(INSTANCE, "demo")
        assert [each.payload for each in await reader.read(log, 0)] == numbered(3)
        assert await reader.read(log, 3) == []
        expected = {(log, 1): b"0", (log, 2): b"1", (log, 3): b"2", (log, 4): None, ("MQ_none_none", 1): None}
        found: dict[tuple[str, int], bytes | None] = {}
        for place in expected:

            def done(message: StoredMessage | None, place: tuple[str, int] = place) -> None:
                found[place] = message.payload if message else None

            reader.fetch(*place, done)
        await until(lambda: len(found) == 5)  # in any order: one stream may answer after another
        assert found == expected
