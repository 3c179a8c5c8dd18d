"""The promises of `weimq.session.v1.SessionService`, with real gRPC, a real NATS and edges made of its stub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import nats
import pytest
import pytest_asyncio
from grpc import aio
from nats.aio.msg import Msg

from services.common import grpc_client, healthcheck, subjects
from services.common.link import Link, LinkBrokenError
from services.common.runtime import background, until_stopped
from services.common.settings import Secret
from services.common.sharding import shard_of
from services.session.app import serve
from services.session.settings import SessionSettings
from tests.support.nats import NatsServer
from tests.support.session_edge import decisions_of
from weimq.session.v1 import session_pb2 as pb
from weimq.session.v1 import session_pb2_grpc

pytestmark = pytest.mark.asyncio

TOKEN = Secret("a-cluster-token-for-tests")
INSTANCE = "mqtt-demo"
CLIENT = "GID_Test@@@0001"
GRACE_S = 1.0
ROOT = Path(__file__).parents[2]


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is of another process or of the service
            await asyncio.sleep(0.01)


async def eventually(condition: Callable[[], Awaitable[object]], timeout_s: float = 10.0) -> None:
    """Wait until an awaited condition holds."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)


class FakeEdge:
    """An edge that keeps the contract of the link, with connections that tests open and close."""

    def __init__(self, stub: session_pb2_grpc.SessionServiceStub, edge_id: str) -> None:
        self.stub = stub
        self.edge_id = edge_id
        self.incarnation = secrets.token_hex(4)
        self.session_incarnation = ""
        self.open: dict[str, pb.Opening] = {}
        self.decisions: dict[str, int] = {}
        self.evicted: list[str] = []
        self.probed: list[str] = []
        self.alive = True
        self.answers_probes = True
        self.closes_evicted = True
        self.opened_count = 0
        self.ends: list[str] = []
        self.requests: list[pb.LinkRequest] = []
        self.closings: dict[int, list[pb.Closing]] = {}
        self.link: Link[pb.LinkRequest, pb.LinkResponse] = Link(
            build=self.build, bare=pb.LinkRequest, take=self.take, confirmed=self.confirmed
        )
        self.confirmed_through = 0

    def build(self) -> pb.LinkRequest | None:
        if not self.requests:
            return None
        request = self.requests.pop(0)
        if request.closings:
            self.closings[self.link.next_frame] = list(request.closings)
        return request

    def confirmed(self, through: int) -> None:
        self.confirmed_through = through
        for frame in [f for f in self.closings if f <= through]:
            del self.closings[frame]

    def send(self, request: pb.LinkRequest) -> None:
        self.requests.append(request)
        self.link.wake()

    def connect(self, client_id: str = CLIENT, *, takeover: bool = False) -> str:
        """Ask for a connection to be let in; returns its channel id."""
        channel_id = secrets.token_hex(16)
        connection = pb.Connection(
            channel_id=channel_id, instance_id=INSTANCE, client_id=client_id, address="192.168.0.1:13345"
        )
        opening = self.open[channel_id] = pb.Opening(connection=connection, takeover=takeover)
        self.send(pb.LinkRequest(openings=[opening]))
        return channel_id

    def close(self, channel_id: str, reason: pb.CloseReason.ValueType = pb.CLOSE_REASON_CONNECTION_LOST) -> None:
        connection = self.open.pop(channel_id).connection
        self.send(pb.LinkRequest(closings=[pb.Closing(connection=connection, reason=reason)]))

    def take(self, response: pb.LinkResponse) -> None:
        for decision in decisions_of(response):
            self.decisions[decision.channel_id] = decision.admission
            if decision.channel_id in self.open:
                if decision.admission == pb.ADMISSION_ACCEPTED:
                    opening = self.open[decision.channel_id]
                    opening.established = True
                    opening.connection.connect_time_ms = decision.connect_time_ms
                else:
                    self.close(decision.channel_id, pb.CLOSE_REASON_SHUTDOWN)
        for channel_id in response.probe_channel_ids:
            self.probed.append(channel_id)
            if self.answers_probes:
                alive = self.alive and channel_id in self.open
                self.send(pb.LinkRequest(probe_results=[pb.ProbeResult(channel_id=channel_id, alive=alive)]))
                if not alive and channel_id in self.open:
                    self.close(channel_id)
        for channel_id in response.evicted_channel_ids:
            self.evicted.append(channel_id)
            if self.closes_evicted and channel_id in self.open:
                self.close(channel_id, pb.CLOSE_REASON_EVICTED)
        self.link.confirm(response.frame)

    async def run(self) -> None:
        """Keep the link, until cancelled."""
        while True:
            try:
                await self.run_once()
            except (LinkBrokenError, aio.AioRpcError) as error:
                self.ends.append(str(error))
            await asyncio.sleep(0.05)

    async def run_once(self) -> None:
        call = self.stub.Link(metadata=grpc_client.call_metadata(TOKEN))
        try:
            opening = pb.LinkOpen(
                edge_id=self.edge_id,
                edge_incarnation=self.incarnation,
                session_incarnation=self.session_incarnation,
                received_through=self.link.received_through,
            )
            await call.write(pb.LinkRequest(open=opening))
            first = await call.read()
            if not isinstance(first, pb.LinkResponse):
                raise LinkBrokenError("not opened")
            if first.opened.resumed:
                self.link.resume(first.opened.received_through)
            else:
                self.snapshot()
            self.session_incarnation = first.opened.session_incarnation
            self.opened_count += 1

            async def read() -> pb.LinkResponse | None:
                message = await call.read()
                return message if isinstance(message, pb.LinkResponse) else None

            await self.link.exchange(read, call.write)
        finally:
            call.cancel()

    def snapshot(self) -> None:
        """Send everything anew."""
        unconfirmed = [closing for closings in self.closings.values() for closing in closings]
        unconfirmed += [closing for request in self.requests for closing in request.closings]
        self.link.reset()
        self.requests.clear()
        self.closings.clear()
        self.send(pb.LinkRequest(openings=self.open.values(), closings=unconfirmed, snapshot_complete=True))

    async def accepted(self, channel_id: str) -> None:
        await until(lambda: channel_id in self.decisions)
        assert self.decisions[channel_id] == pb.ADMISSION_ACCEPTED

    async def refused(self, channel_id: str) -> None:
        await until(lambda: channel_id in self.decisions)
        assert self.decisions[channel_id] == pb.ADMISSION_DUPLICATE

    async def all_confirmed(self) -> None:
        await until(lambda: not self.requests and not self.link.has_unconfirmed)


class Mesh:
    """A session service and its NATS."""

    def __init__(self, address: str, server: NatsServer) -> None:
        self.address = address
        self.server = server
        self.stub: session_pb2_grpc.SessionServiceStub

    def settings(self, **changes: float) -> SessionSettings:
        values = {"edge_grace_s": GRACE_S, "drain_s": 2.0, "checkpoint_s": 3600.0, **changes}
        return SessionSettings(
            cluster_token=TOKEN,
            nats_url=Secret(self.server.url),
            grpc_listen=(self.address,),
            **values,  # type: ignore[arg-type]  # all of them are floats
        )

    @contextlib.asynccontextmanager
    async def serving(self, **changes: float) -> AsyncGenerator[asyncio.Event]:
        """Run the service; stopped gracefully on leaving."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(until_stopped(serve(self.settings(**changes), stop)))
            await eventually(lambda: healthcheck.is_serving(self.address))
            try:
                yield stop
            finally:
                stop.set()

    @contextlib.asynccontextmanager
    async def process(self) -> AsyncGenerator[subprocess.Popen[bytes]]:
        """Run the service as a process; killed on leaving."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            "WEIMQ_CLUSTER_TOKEN": TOKEN.reveal(),
            "SESSION_NATS_URL": self.server.url,
            "SESSION_GRPC_LISTEN": self.address,
            "SESSION_EDGE_GRACE_S": "3",
        }
        command = [sys.executable, "-m", "services.session"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - takes no time
        try:
            await eventually(lambda: healthcheck.is_serving(self.address), timeout_s=20)
            yield process
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)

    @contextlib.asynccontextmanager
    async def edge(self, edge_id: str, incarnation: str = "") -> AsyncGenerator[FakeEdge]:
        """Run an edge; on leaving it dies without a word."""
        edge = FakeEdge(self.stub, edge_id)
        edge.incarnation = incarnation or edge.incarnation
        async with background(edge.run()):
            await until(lambda: edge.opened_count)
            await edge.all_confirmed()
            yield edge

    async def client(self, client_id: str = CLIENT) -> pb.GetClientResponse:
        request = pb.GetClientRequest(instance_id=INSTANCE, client_id=client_id)
        return await self.stub.GetClient(request, timeout=5)

    async def events(self) -> list[tuple[str, str, dict[str, str], bytes]]:
        """Return tag, subject, headers and body of every event, in order."""
        connection = await nats.connect(self.server.url)
        try:
            js = connection.jetstream()
            stream = subjects.event_stream(INSTANCE)
            try:
                info = await js.stream_info(stream)
            except nats.js.errors.NotFoundError:
                return []
            found = []
            for sequence in range(1, info.state.last_seq + 1):
                message = await js.get_msg(stream, sequence)
                headers = dict(message.headers or {})
                found.append((headers["Tag"], message.subject or "", headers, message.data or b""))
            return found
        finally:
            await connection.close()

    async def tags(self, channel_id: str) -> list[str]:
        return [tag for tag, _, _, body in await self.events() if json.loads(body)["channelId"] == channel_id]

    async def has_tags(self, channel_id: str, *tags: str) -> None:
        """Wait until the events of a connection are these."""
        found: list[str] = []

        async def are_found() -> bool:
            found[:] = await self.tags(channel_id)
            return len(found) >= len(tags)

        with contextlib.suppress(TimeoutError):
            await eventually(are_found)
        assert found == list(tags)


@pytest.fixture
def address() -> Iterator[str]:
    # A Unix socket: a service that is started again gets the same address.
    with tempfile.TemporaryDirectory(prefix="weimq-") as directory:
        yield f"unix:{directory}/session.sock"


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, address: str) -> AsyncGenerator[Mesh]:
    mesh = Mesh(address, nats_server)
    async with grpc_client.channel(address, TOKEN) as channel:
        mesh.stub = session_pb2_grpc.SessionServiceStub(channel)
        yield mesh


# Admission and events


async def test_what_may_be_a_repeat_has_an_acknowledgement_of_its_own(mesh: Mesh) -> None:
    """What a snapshot brings may be stored already; of what comes later, one acknowledgement tells for a frame."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    connection = await nats.connect(mesh.server.url)
    try:
        async with mesh.serving():
            async with mesh.edge("edge-0") as first:
                await first.accepted(first.connect())
                await first.all_confirmed()  # its event is stored: there is a stream
            await connection.subscribe(subjects.event_filter(INSTANCE), cb=hear)
            await connection.flush()
            edge = FakeEdge(mesh.stub, "edge-1")
            edge.open = {each.connection.channel_id: each for each in _five_openings("before")}
            async with background(edge.run()):
                await until(lambda: len(_of_edge_1(heard)) == 5)
                edge.send(pb.LinkRequest(openings=_five_openings("later")))
                await until(lambda: len(_of_edge_1(heard)) == 10)
    finally:
        await connection.close()
    assert [bool(message.reply) for message in _of_edge_1(heard)] == [True] * 5 + [False] * 4 + [True]


def _of_edge_1(messages: list[Msg]) -> list[Msg]:
    return [each for each in messages if each.headers and each.headers["Edge"].startswith("edge-1/")]


def _five_openings(device: str) -> list[pb.Opening]:
    return [
        pb.Opening(
            connection=pb.Connection(
                channel_id=secrets.token_hex(16),
                instance_id=INSTANCE,
                client_id=f"GID_Test@@@{device}{number}",
                address="192.168.0.1:13345",
            )
        )
        for number in range(5)
    ]


async def test_a_client_is_let_in_and_announced_exactly_as_specified(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as edge:
        before = int(time.time() * 1000)
        channel_id = edge.connect()
        await edge.accepted(channel_id)
        await edge.all_confirmed()
        connection = edge.open[channel_id].connection
        assert before - 1_000 <= connection.connect_time_ms <= before + 10_000
        [(tag, subject, headers, body)] = await mesh.events()
        assert tag == "connect"
        assert subject == "mq.event.mqtt-demo.GID_Test_MQTT.connect"
        assert headers["Nats-Msg-Id"] == f"{channel_id}-connect"
        assert headers["Edge"] == f"edge-1/{edge.incarnation}"
        index = connection.connect_time_ms << 12
        assert body.decode() == (
            f'{{"clientId":"{CLIENT}","time":{connection.connect_time_ms},"eventType":"connect",'
            f'"channelId":"{channel_id}","clientIp":"192.168.0.1:13345","eventIndex":{index}}}'
        )
        answer = await mesh.client()
        assert answer.synchronized
        expected = pb.Connection()
        expected.CopyFrom(connection)
        expected.edge_id = "edge-1"
        assert list(answer.connections) == [expected]


async def test_client_ids_without_a_group_are_announced_under_a_dash(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as edge:
        for client_id in ("plain", "x" * 5_000 + "@@@1", "@@@1", 'quote"\r\nü@@@1'):
            edge.connect(client_id)
        await edge.all_confirmed()
        events = await mesh.events()
        assert [subject for _, subject, _, _ in events] == [
            *["mq.event.mqtt-demo.-_MQTT.connect"] * 3,
            "mq.event.mqtt-demo.quote=22=0D=0A=C3=BC_MQTT.connect",
        ]
        assert json.loads(events[3][3])["clientId"] == 'quote"\r\nü@@@1'


async def test_disconnect_is_told_from_a_lost_connection(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as edge:
        polite, lost = edge.connect("GID_Test@@@1"), edge.connect("GID_Test@@@2")
        await edge.accepted(lost)
        edge.close(polite, pb.CLOSE_REASON_CLIENT_DISCONNECT)
        edge.close(lost, pb.CLOSE_REASON_CONNECTION_LOST)
        await edge.all_confirmed()
        assert await mesh.tags(polite) == ["connect", "disconnect", "tcpclean"]
        assert await mesh.tags(lost) == ["connect", "tcpclean"]
        assert not (await mesh.client("GID_Test@@@1")).connections
        times = [json.loads(body)["time"] for _, _, _, body in await mesh.events()]
        assert times == sorted(times)


async def test_a_duplicate_is_refused_while_the_first_is_alive(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as first, mesh.edge("edge-2") as second:
        held = first.connect()
        await first.accepted(held)
        await second.refused(refused := second.connect())
        assert first.probed == [held]
        await second.all_confirmed()
        assert await mesh.tags(refused) == []
        assert [c.channel_id for c in (await mesh.client()).connections] == [held]


async def test_a_duplicate_of_a_dead_connection_is_let_in(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as first, mesh.edge("edge-2") as second:
        dead = first.connect()
        await first.accepted(dead)
        first.alive = False
        await second.accepted(admitted := second.connect())
        await first.all_confirmed()
        await second.all_confirmed()
        assert await mesh.tags(dead) == ["connect", "tcpclean"]
        assert await mesh.tags(admitted) == ["connect"]


async def test_a_duplicate_is_refused_when_the_probe_is_not_answered(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as first, mesh.edge("edge-2") as second:
        await first.accepted(first.connect())
        first.answers_probes = False
        began = time.monotonic()
        await second.refused(second.connect())
        assert 2.5 < time.monotonic() - began < 15


async def test_takeover_across_edges_closes_the_first(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as first, mesh.edge("edge-2") as second:
        old = first.connect(takeover=True)
        await first.accepted(old)
        await second.accepted(new := second.connect(takeover=True))
        assert first.evicted == [old]
        await second.all_confirmed()
        await mesh.has_tags(old, "connect", "tcpclean")
        events = [(json.loads(body)["channelId"], tag) for tag, _, _, body in await mesh.events()]
        assert events == [(old, "connect"), (old, "tcpclean"), (new, "connect")]


async def test_takeover_does_not_wait_for_an_edge_that_does_not_close(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as first, mesh.edge("edge-2") as second:
        first.closes_evicted = False
        old = first.connect(takeover=True)
        await first.accepted(old)
        await second.accepted(second.connect(takeover=True))
        await mesh.has_tags(old, "connect", "tcpclean")


async def test_decisions_gather_into_few_frames(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as edge:
        openings = []
        for number in range(2_000):
            channel_id = secrets.token_hex(16)
            connection = pb.Connection(channel_id=channel_id, instance_id=INSTANCE, client_id=f"GID_Test@@@{number}")
            openings.append(pb.Opening(connection=connection))
        received = edge.link.received_through
        edge.send(pb.LinkRequest(openings=openings))
        await until(lambda: len(edge.decisions) == 2_000)
        assert edge.link.received_through - received == 1
        assert set(edge.decisions.values()) == {pb.ADMISSION_ACCEPTED}


# Edges that go


async def test_a_dead_edge_is_given_up_after_its_grace(mesh: Mesh) -> None:
    async with mesh.serving():
        async with mesh.edge("edge-1") as edge:
            channel_id = edge.connect()
            await edge.accepted(channel_id)
            await edge.all_confirmed()
        died = time.monotonic()
        assert [c.channel_id for c in (await mesh.client()).connections] == [channel_id]
        await mesh.has_tags(channel_id, "connect", "tcpclean")
        assert time.monotonic() - died > GRACE_S * 0.9
        answer = await mesh.client()
        assert answer.synchronized
        assert not answer.connections


async def test_a_new_process_of_an_edge_ends_the_connections_of_the_old_one(mesh: Mesh) -> None:
    async with mesh.serving(edge_grace_s=60.0):
        async with mesh.edge("edge-1") as edge:
            await edge.accepted(channel_id := edge.connect())
        async with mesh.edge("edge-1"):
            await mesh.has_tags(channel_id, "connect", "tcpclean")


async def test_an_edge_that_says_goodbye_is_forgotten_at_once(mesh: Mesh) -> None:
    async with mesh.serving(edge_grace_s=60.0), mesh.edge("edge-1") as edge:
        await edge.accepted(channel_id := edge.connect())
        edge.send(pb.LinkRequest(goodbye=True))
        await edge.all_confirmed()
        assert await mesh.tags(channel_id) == ["connect", "tcpclean"]


async def test_a_link_resumes_without_loss_or_repeat(mesh: Mesh) -> None:
    async with mesh.serving():
        edge = FakeEdge(mesh.stub, "edge-1")
        channels = []
        async with background(edge.run()):
            await until(lambda: edge.opened_count == 1)
            await edge.all_confirmed()
            channels += [edge.connect(f"GID_Test@@@a{n}") for n in range(50)]
        channels += [edge.connect(f"GID_Test@@@b{n}") for n in range(50)]
        edge.close(channels[0])
        async with background(edge.run()):
            await until(lambda: len(edge.decisions) == 100)
            await edge.all_confirmed()
            assert edge.opened_count == 2
            assert len(await mesh.events()) == 101


async def test_an_edge_that_comes_back_after_its_grace_starts_anew_and_its_old_connections_are_evicted(
    mesh: Mesh,
) -> None:
    async with mesh.serving():
        edge = FakeEdge(mesh.stub, "edge-1")
        async with background(edge.run()):
            await until(lambda: edge.opened_count)
            await edge.accepted(channel_id := edge.connect())
            await edge.all_confirmed()
        await mesh.has_tags(channel_id, "connect", "tcpclean")
        async with background(edge.run()):
            await until(lambda: edge.evicted == [channel_id])
            await edge.accepted(again := edge.connect())
            await edge.all_confirmed()
            assert await mesh.tags(channel_id) == ["connect", "tcpclean"]
            assert await mesh.tags(again) == ["connect"]


async def test_a_second_link_takes_the_place_of_the_first(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1", "same") as first:
        await first.accepted(channel_id := first.connect())
        second = FakeEdge(mesh.stub, "edge-1")
        second.incarnation = "same"
        second.open = first.open

        async def once() -> None:
            with contextlib.suppress(LinkBrokenError):
                await second.run_once()

        async with background(once()):
            await until(lambda: first.ends)
            assert "another link" in first.ends[0]
        assert [c.channel_id for c in (await mesh.client()).connections] == [channel_id]


async def test_the_first_link_is_aborted(mesh: Mesh) -> None:
    async with mesh.serving():
        calls = []
        for _ in range(2):
            call = mesh.stub.Link(metadata=grpc_client.call_metadata(TOKEN))
            await call.write(pb.LinkRequest(open=pb.LinkOpen(edge_id="edge-1", edge_incarnation="1")))
            assert isinstance(await call.read(), pb.LinkResponse)
            calls.append(call)
        assert await _end(calls[0]) == grpc.StatusCode.ABORTED
        calls[1].cancel()


# Restarts of the service


async def test_a_killed_session_process_goes_on_where_it_was(mesh: Mesh) -> None:
    stale = FakeEdge(mesh.stub, "edge-2")
    async with mesh.process() as process, mesh.edge("edge-1") as edge:
        async with background(stale.run()):
            await edge.accepted(stays := edge.connect("GID_Test@@@stays"))
            leaves = edge.connect("GID_Test@@@leaves")
            await until(lambda: stale.opened_count)
            await stale.accepted(gone := stale.connect("GID_Test@@@gone"))
            await edge.all_confirmed()
            await stale.all_confirmed()
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        edge.close(leaves, pb.CLOSE_REASON_CLIENT_DISCONNECT)
        async with mesh.process():
            await until(lambda: edge.opened_count == 2)
            await edge.all_confirmed()
            waiting = await mesh.client("GID_Test@@@stays")
            assert [c.channel_id for c in waiting.connections] == [stays]
            assert not waiting.synchronized
            await mesh.has_tags(leaves, "connect", "disconnect", "tcpclean")
            await mesh.has_tags(gone, "connect", "tcpclean")
            assert (await mesh.client("GID_Test@@@stays")).synchronized
            assert await mesh.tags(stays) == ["connect"]
            edge.close(stays)
            await edge.all_confirmed()
            assert await mesh.tags(stays) == ["connect", "tcpclean"]
            times = [json.loads(body)["time"] for _, _, _, body in await mesh.events()]
            assert times == sorted(times)


async def test_a_graceful_restart_reads_its_checkpoint(mesh: Mesh) -> None:
    channels = []
    async with mesh.serving(), mesh.edge("edge-1", "same") as edge:
        channels = [edge.connect(f"GID_Test@@@{n}") for n in range(300)]
        await until(lambda: len(edge.decisions) == 300)
        await edge.all_confirmed()
        held = edge.open
    # Without its events the checkpoint alone must do.
    connection = await nats.connect(mesh.server.url)
    await connection.jetstream().purge_stream(subjects.event_stream(INSTANCE))
    await connection.close()
    async with mesh.serving(edge_grace_s=60.0):
        answer = await mesh.client("GID_Test@@@7")
        assert [c.channel_id for c in answer.connections] == [channels[7]]
        assert answer.connections[0].connect_time_ms == held[channels[7]].connection.connect_time_ms
        assert not answer.synchronized
        edge = FakeEdge(mesh.stub, "edge-1")
        edge.incarnation = "same"
        edge.open = {channel_id: held[channel_id] for channel_id in channels[1:]}
        async with background(edge.run()):
            await until(lambda: edge.opened_count)
            await edge.all_confirmed()
            assert (await mesh.client("GID_Test@@@7")).synchronized
            tags = [(tag, json.loads(body)["channelId"]) for tag, body in await _rest(mesh)]
            assert tags == [("tcpclean", channels[0])]


async def _rest(mesh: Mesh) -> list[tuple[str, bytes]]:
    """Return the events of a stream that was purged."""
    connection = await nats.connect(mesh.server.url)
    try:
        js = connection.jetstream()
        state = (await js.stream_info(subjects.event_stream(INSTANCE))).state
        found = [
            await js.get_msg(subjects.event_stream(INSTANCE), n) for n in range(state.first_seq, state.last_seq + 1)
        ]
        return [(dict(message.headers or {})["Tag"], message.data or b"") for message in found]
    finally:
        await connection.close()


async def test_a_shard_restores_its_own_clients_only(mesh: Mesh) -> None:
    mine, other = (next(c for n in range(99) if shard_of(INSTANCE, c := f"GID_Test@@@{n}", 2) == k) for k in (0, 1))
    for checkpoint_s in (3600.0, 0.1):  # from the events, then from a checkpoint
        async with mesh.serving(shard_index=0, shard_count=2, checkpoint_s=checkpoint_s), mesh.edge("edge-1") as edge:
            await edge.accepted(edge.connect(mine))
            await edge.all_confirmed()
        async with mesh.serving(shard_index=1, shard_count=2):
            assert not (await mesh.client(mine)).connections
            async with mesh.edge("edge-1") as edge:
                await edge.accepted(edge.connect(other))
                await edge.all_confirmed()
        async with mesh.serving(shard_index=0, shard_count=2, edge_grace_s=60.0):
            assert [c.client_id for c in (await mesh.client(mine)).connections][-1] == mine
            assert not (await mesh.client(other)).connections


async def test_checkpoints_are_written_under_load_and_replaced(mesh: Mesh) -> None:
    connection = await nats.connect(mesh.server.url)
    js = connection.jetstream()

    async def head() -> dict[str, int]:
        with contextlib.suppress(nats.js.errors.NotFoundError, nats.errors.NoRespondersError):
            message = await js.get_msg("PRESENCE", subject=f"mq.presence.{INSTANCE}.head", direct=True)
            found: dict[str, int] = json.loads(message.data or b"{}")
            return found
        return {}

    async def is_up_to_date() -> bool:
        return (await head()).get("connections") == 40 and (await head())["sequence"] == 60

    async with mesh.serving(checkpoint_s=0.1), mesh.edge("edge-1") as edge:
        channels = []
        for number in range(50):
            channels.append(edge.connect(f"GID_Test@@@{number}"))
            await edge.accepted(channels[-1])
        for channel_id in channels[:10]:
            edge.close(channel_id)
        await eventually(is_up_to_date)
        chunks = (await js.stream_info("PRESENCE")).state.messages
        assert chunks == 2
    await connection.close()


async def test_a_damaged_checkpoint_is_not_used(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as edge:
        await edge.accepted(channel_id := edge.connect())
        await edge.all_confirmed()
    connection = await nats.connect(mesh.server.url)
    await connection.jetstream().publish(f"mq.presence.{INSTANCE}.a.0", b"[]")
    await connection.close()
    async with mesh.serving(edge_grace_s=60.0):
        assert [c.channel_id for c in (await mesh.client()).connections] == [channel_id]


# NATS


async def test_clients_are_let_in_while_nats_is_down_and_frames_wait_for_it(mesh: Mesh) -> None:
    async with mesh.serving(edge_grace_s=60.0), mesh.edge("edge-1") as edge:
        await edge.accepted(edge.connect("GID_Test@@@0"))
        await edge.all_confirmed()
        await asyncio.to_thread(mesh.server.kill)
        confirmed = edge.confirmed_through
        channel_id = edge.connect()
        await edge.accepted(channel_id)
        edge.close(channel_id)
        assert edge.confirmed_through == confirmed
        await until(lambda: not edge.requests)
        assert edge.link.has_unconfirmed
        await asyncio.to_thread(mesh.server.start)
        await edge.all_confirmed()
        assert await mesh.tags(channel_id) == ["connect", "tcpclean"]


async def test_a_stream_that_was_deleted_is_made_again(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge("edge-1") as edge:
        await edge.accepted(edge.connect("GID_Test@@@0"))
        await edge.all_confirmed()
        connection = await nats.connect(mesh.server.url)
        await connection.jetstream().delete_stream(subjects.event_stream(INSTANCE))
        await connection.close()
        channel_id = edge.connect()
        await edge.all_confirmed()
        assert await mesh.tags(channel_id) == ["connect"]


async def test_before_its_events_are_read_the_service_knows_nothing(mesh: Mesh) -> None:
    await asyncio.to_thread(mesh.server.kill)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(until_stopped(serve(mesh.settings(), stop)))
        answer = await mesh.stub.GetClient(
            pb.GetClientRequest(instance_id=INSTANCE, client_id=CLIENT), timeout=10, wait_for_ready=True
        )
        assert not answer.synchronized
        assert not await healthcheck.is_serving(mesh.address)
        call = mesh.stub.Link(metadata=grpc_client.call_metadata(TOKEN))
        await call.write(pb.LinkRequest(open=pb.LinkOpen(edge_id="edge-1", edge_incarnation="1")))
        assert await _end(call) == grpc.StatusCode.UNAVAILABLE
        request = pb.CloseConnectionsRequest(instance_id=INSTANCE, client_id=CLIENT)
        assert await _code(mesh.stub.CloseConnections(request)) == grpc.StatusCode.UNAVAILABLE
        stop.set()


# Calls and contract violations


async def _code(call: Awaitable[object]) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return raised.value.code()


async def _end(call: aio.StreamStreamCall[pb.LinkRequest, pb.LinkResponse]) -> grpc.StatusCode:
    """Return the status of a stream; it only comes after what was sent before it."""
    async with asyncio.timeout(30):
        with contextlib.suppress(aio.AioRpcError):
            while isinstance(await call.read(), pb.LinkResponse):
                pass
        return await call.code()


async def test_close_connections_closes_every_connection(mesh: Mesh) -> None:
    request = pb.CloseConnectionsRequest(instance_id=INSTANCE, client_id=CLIENT)
    async with mesh.serving(), mesh.edge("edge-1") as edge:
        assert await _code(mesh.stub.CloseConnections(request)) == grpc.StatusCode.NOT_FOUND
        await edge.accepted(channel_id := edge.connect())
        assert (await mesh.stub.CloseConnections(request)).connection_count == 1
        await until(lambda: edge.evicted == [channel_id])
        await mesh.has_tags(channel_id, "connect", "tcpclean")


async def test_calls_without_names_are_refused(mesh: Mesh) -> None:
    async with mesh.serving():
        for call in (
            mesh.stub.GetClient(pb.GetClientRequest(instance_id=INSTANCE)),
            mesh.stub.GetClient(pb.GetClientRequest(client_id=CLIENT)),
            mesh.stub.CloseConnections(pb.CloseConnectionsRequest(instance_id=INSTANCE)),
        ):
            assert await _code(call) == grpc.StatusCode.INVALID_ARGUMENT


_OPEN = pb.LinkOpen(edge_id="edge-1", edge_incarnation="1")
_CONNECTION = pb.Connection(channel_id="0" * 32, instance_id=INSTANCE, client_id=CLIENT)


def _openings(**changes: str) -> list[pb.LinkRequest]:
    connection = pb.Connection()
    connection.CopyFrom(_CONNECTION)
    for field, value in changes.items():
        setattr(connection, field, value)
    return [pb.LinkRequest(open=_OPEN), pb.LinkRequest(frame=1, openings=[pb.Opening(connection=connection)])]


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([pb.LinkRequest(frame=1)], id="no-open"),
        pytest.param([pb.LinkRequest(open=_OPEN, frame=1)], id="open-with-more"),
        pytest.param([pb.LinkRequest(open=pb.LinkOpen(edge_incarnation="1"))], id="no-edge-id"),
        pytest.param([pb.LinkRequest(open=pb.LinkOpen(edge_id="a/b", edge_incarnation="1"))], id="slash"),
        pytest.param([pb.LinkRequest(open=_OPEN), pb.LinkRequest(open=_OPEN)], id="open-twice"),
        pytest.param(_openings(channel_id="0\r\n"), id="channel-id"),
        pytest.param(_openings(instance_id=""), id="instance-id"),
        pytest.param(_openings(client_id=""), id="client-id"),
        pytest.param(_openings(address="a" * 300), id="address"),
    ],
)
async def test_a_link_that_breaks_the_contract_is_ended(mesh: Mesh, requests: list[pb.LinkRequest]) -> None:
    async with mesh.serving():
        call = mesh.stub.Link(metadata=grpc_client.call_metadata(TOKEN))
        for request in requests:
            await call.write(request)
        assert await _end(call) == grpc.StatusCode.INVALID_ARGUMENT
