"""A router in this process, and edges and session shards that a test writes by hand."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from services.common import grpc_errors, jetstream, subjects
from services.common.errors import StreamContractError
from services.common.grpc_client import call_metadata, channel
from services.common.link import Link, LinkBrokenError
from services.common.readiness import Readiness
from services.common.runtime import background
from services.common.settings import Secret
from services.router.app import serve
from services.router.settings import RouterSettings
from tests.support.nats import NatsServer
from tests.support.wait import WAIT_S
from weimq.router.v1 import router_pb2, router_pb2_grpc

TOKEN = Secret("cluster-token-of-tests")
LOGGED = 1
P2P = 2
CLEAN_SESSION = 16
RETAIN = 4
REPEATED = 8
RUN = 32


async def until(condition: Callable[[], bool], deadline_s: float = WAIT_S) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


class Mesh:
    """A router that can be restarted, at an address that stays."""

    def __init__(self, address: str, nats_url: str, edge_grace_s: float, **settings: Any) -> None:
        self.address = address
        self._settings = RouterSettings(
            cluster_token=TOKEN,
            nats_url=Secret(nats_url),
            grpc_listen=(address,),
            edge_grace_s=edge_grace_s,
            drain_s=0,
            **{"shard_count": 0, **settings},
        )

    @contextlib.asynccontextmanager
    async def router(self) -> AsyncGenerator[asyncio.Event]:
        """Run a router process; leaving ends it without goodbye."""
        stop = asyncio.Event()
        async with background(serve(self._settings, stop)):
            yield stop

    async def is_serving(self) -> bool:
        async with aio.insecure_channel(self.address) as opened:
            try:
                answer = await health_pb2_grpc.HealthStub(opened).Check(  # type: ignore[attr-defined]  # set at run time
                    health_pb2.HealthCheckRequest(service="weimq.router.v1.RouterService"), wait_for_ready=True
                )
            except aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def serving(self) -> None:
        async with asyncio.timeout(WAIT_S):
            while not await self.is_serving():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)


@pytest.fixture
def mesh(nats_server: NatsServer) -> Any:
    with tempfile.TemporaryDirectory(prefix="weimq-") as directory:
        yield Mesh(f"unix:{Path(directory, 'router')}", nats_server.url, edge_grace_s=1.0)


class Delivery:
    """One message that an edge got."""

    def __init__(self, topic: str, targets: list[int], payload: bytes, flags: int) -> None:
        self.topic = topic
        self.targets = targets
        self.payload = payload
        self.flags = flags
        self.origin: tuple[str, int] | None = None
        self.position: tuple[str, int] | None = None


class FakeEdge:
    """An edge of a mesh: links itself again and again while its context runs."""

    def __init__(
        self, mesh: Mesh, edge_id: str, incarnation: str = "inc", *, shard: router_pb2.SessionShard | None = None
    ) -> None:
        self._mesh = mesh
        self.shard = shard
        self.edge_id = edge_id
        self.incarnation = f"{edge_id}.{incarnation}"
        self.router_incarnation = ""
        self.links = 0
        self.is_confirming = True
        self.deliveries: list[Delivery] = []
        self.acknowledged: list[int] = []
        self.receipt_ids: list[int] = []
        self.full_logs: set[str] = set()
        self.holds_qos0 = False
        self.routes: list[router_pb2.RouteAnswer] = []
        self.revoked: list[str] = []
        self.targets: dict[int, router_pb2.Target] = {}
        self._unacknowledged: dict[int, router_pb2.LinkRequest] = {}
        self._sequence = 0
        self._outgoing: deque[router_pb2.LinkRequest] = deque()
        self._call: Any = None
        self.code: grpc.StatusCode | None = None
        self.link: Link[router_pb2.LinkRequest, router_pb2.LinkResponse] = Link(
            build=lambda: self._outgoing.popleft() if self._outgoing else None,
            bare=router_pb2.LinkRequest,
            take=self._take,
            confirmed=lambda _through: None,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[FakeEdge]:
        async with background(self._run()):
            await until(lambda: self.links > 0)
            yield self

    @contextlib.asynccontextmanager
    async def unlinked(self) -> AsyncGenerator[FakeEdge]:
        """Run without waiting for a router."""
        async with background(self._run()):
            yield self

    def subscribe(self, target_id: int, topic_filter: str, instance_id: str = "i", **fields: Any) -> None:
        self._add(router_pb2.Target(target_id=target_id, instance_id=instance_id, topic_filter=topic_filter, **fields))

    def connect_client(self, target_id: int, client_id: str, instance_id: str = "i") -> None:
        self._add(router_pb2.Target(target_id=target_id, instance_id=instance_id, client_id=client_id))

    def unsubscribe(self, target_id: int) -> None:
        del self.targets[target_id]
        self.send(router_pb2.LinkRequest(removed_target_ids=[target_id]))

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, topic_flags: int = 0, flags: int = 0, client_id: str = "c"
    ) -> int:
        """Publish one message and return its sequence."""
        self._sequence += 1
        request = router_pb2.LinkRequest(
            publishes=router_pb2.PublishBatch(
                instances=["i"],
                topics=[topic],
                topic_instances=[0],
                topic_flags=bytes([topic_flags]),
                publishers=[client_id],
                topic_indexes=[0],
                sequences=[self._sequence],
                payloads=[payload],
                flags=bytes([qos | flags]),
                publisher_indexes=[0],
            )
        )
        if qos:
            self._unacknowledged[self._sequence] = request
        self.send(request)
        return self._sequence

    def publish_run(
        self, topic: str, payloads: list[bytes], *, topic_flags: int = 0, flags: int = 0, client_id: str = "c"
    ) -> int:
        """Publish messages of QoS 1, all of one length, as a run and return the sequence of the first."""
        first = self._sequence + 1
        self._sequence += len(payloads)
        request = router_pb2.LinkRequest(
            publishes=router_pb2.PublishBatch(
                instances=["i"],
                topics=[topic],
                topic_instances=[0],
                topic_flags=bytes([topic_flags]),
                publishers=[client_id],
                topic_indexes=[0],
                sequences=[first],
                payloads=[b"".join(b"head" + payload for payload in payloads)],
                flags=bytes([1 | RUN | flags]),
                publisher_indexes=[0],
                run_counts=[len(payloads)],
                run_payload_bytes=[len(payloads[0])],
            )
        )
        self._unacknowledged[first] = request
        self.send(request)
        return first

    async def ask_route(self, topic: str, *, is_logged: bool = False) -> list[int] | None:
        """Ask for a topic and return its targets; None: it may not be served by this edge."""
        count = len(self.routes) + 1
        question = router_pb2.RouteQuestion(instance_id="i", topic=topic, is_logged=is_logged)
        self.send(router_pb2.LinkRequest(route_questions=[question]))
        await until(lambda: len(self.routes) == count)
        answer = self.routes[-1]
        assert (answer.instance_id, answer.topic, answer.is_logged) == ("i", topic, is_logged)
        return sorted(answer.target_ids) if answer.is_local else None

    def send(self, request: router_pb2.LinkRequest) -> None:
        self._outgoing.append(request)
        self.link.wake()

    def cut(self) -> None:
        """Break the stream."""
        self._call.cancel()

    async def settled(self) -> None:
        """Wait until the router has taken over all that was sent."""
        await until(lambda: not self._outgoing and not self.link.has_unconfirmed)

    async def all_acknowledged(self) -> None:
        await until(lambda: not self._unacknowledged)

    @property
    def payloads(self) -> list[bytes]:
        return [delivery.payload for delivery in self.deliveries]

    def confirm(self) -> None:
        self.is_confirming = True
        self.link.confirm(self.link.received_through)

    def _add(self, target: router_pb2.Target) -> None:
        self.targets[target.target_id] = target
        self.send(router_pb2.LinkRequest(added_targets=[target]))

    def _take(self, response: router_pb2.LinkResponse) -> None:
        for sequence in response.acknowledged_sequences:
            self.acknowledged.append(sequence)
            self._unacknowledged.pop(sequence, None)
        for state in response.log_states:
            (self.full_logs.add if state.is_full else self.full_logs.discard)(state.parent_topic)
        if response.HasField("holds_qos0"):
            self.holds_qos0 = response.holds_qos0
        self.revoked.extend(route.topic for route in response.revoked_routes)
        batch = response.deliveries
        self.receipt_ids.extend(batch.receipt_ids)
        starts = [0]
        for count in batch.target_counts:
            starts.append(starts[-1] + count)
        before = len(self.deliveries)
        exactly_once = iter(zip(batch.origin_indexes, batch.sequences, strict=True))
        runs = iter(zip(batch.run_counts, batch.run_payload_bytes, strict=True))
        for index, payload, flags in zip(batch.topic_indexes, batch.payloads, batch.flags, strict=True):
            targets = list(batch.target_ids[starts[index] : starts[index + 1]])
            if flags & RUN:
                count, size = next(runs)
                step = len(payload) // count
                for stop in range(step, len(payload) + 1, step):
                    self.deliveries.append(
                        Delivery(batch.topics[index], targets, payload[stop - size : stop], flags - RUN)
                    )
                continue
            delivery = Delivery(batch.topics[index], targets, payload, flags)
            if flags & 3 == 2:
                origin, sequence = next(exactly_once)
                delivery.origin = (batch.origins[origin], sequence)
            if self.shard is not None:
                place = len(self.deliveries) - before
                delivery.position = (batch.logs[batch.log_indexes[place]], batch.log_sequences[place])
            self.deliveries.append(delivery)
        self.routes.extend(response.route_answers)
        if self.is_confirming:
            self.link.confirm(response.frame)

    async def _run(self) -> None:
        async with channel(self._mesh.address, TOKEN) as opened:
            stub = router_pb2_grpc.RouterServiceStub(opened)
            while True:
                call = self._call = stub.Link(metadata=call_metadata(TOKEN))
                try:
                    await self._exchange(call)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                except (LinkBrokenError, aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
                    pass
                call.cancel()
                code = await call.code()
                # Others are breaks: INTERNAL too, which grpc.aio sets when it was writing while the server ended.
                if code in (grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT):
                    self.code = code
                    return
                await asyncio.sleep(0.01)

    async def _exchange(self, call: Any) -> None:
        opening = router_pb2.LinkOpen(
            edge_id=self.edge_id,
            edge_incarnation=self.incarnation,
            router_incarnation=self.router_incarnation,
            received_through=self.link.received_through,
            shard=self.shard,
        )
        await call.write(router_pb2.LinkRequest(open=opening))

        async def read() -> router_pb2.LinkResponse | None:
            message = await call.read()
            return None if message is aio.EOF else message

        first = await read()
        if first is None:
            raise LinkBrokenError
        assert len(first.ListFields()) == 1
        if first.opened.resumed:
            assert first.opened.router_incarnation == self.router_incarnation
            self.link.resume(first.opened.received_through)
        else:
            self.router_incarnation = first.opened.router_incarnation
            self.link.reset()
            self.full_logs.clear()
            self.holds_qos0 = False
            self._outgoing.clear()
            self.send(router_pb2.LinkRequest(added_targets=list(self.targets.values()), snapshot_complete=True))
            for request in self._unacknowledged.values():
                request.publishes.flags = bytes(flags | REPEATED for flags in request.publishes.flags)
                self.send(request)
        self.links += 1
        await self.link.exchange(read, call.write)


def connected(url: str) -> contextlib.AbstractAsyncContextManager[Client]:
    return jetstream.connected(Secret(url), name="test", readiness=Readiness())


async def make_log(url: str, parent: str, *, max_msg_size: int = -1) -> None:
    async with connected(url) as client:
        await client.jetstream().add_stream(
            StreamConfig(
                name=subjects.log_stream("i", parent),
                subjects=subjects.log_filter("i", parent),
                max_msg_size=max_msg_size,
                allow_direct=True,
            )
        )


async def read_log(url: str, parent: str) -> list[Msg]:
    """Return the messages below a parent topic, in the order of the log."""
    async with connected(url) as client:
        js = client.jetstream()
        name = subjects.log_stream("i", parent)
        count = (await js.stream_info(name)).state.messages
        if not count:
            return []
        consumer = await js.subscribe(subjects.log_subject("i", parent) + ".>", stream=name, ordered_consumer=True)
        return [await consumer.next_msg(timeout=10) for _ in range(count)]


async def until_not_serving(mesh: Mesh) -> None:
    async with asyncio.timeout(WAIT_S):
        while await mesh.is_serving():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def end_of(call: Any) -> grpc.StatusCode:
    """Return the status of a stream; it comes behind the messages that nobody has read."""
    with contextlib.suppress(aio.AioRpcError):
        while await call.read() is not aio.EOF:
            pass
    return await call.code()  # type: ignore[no-any-return]  # a StatusCode


async def raw_call(opened: aio.Channel, **opening: Any) -> Any:
    call: Any = router_pb2_grpc.RouterServiceStub(opened).Link(metadata=call_metadata(TOKEN))
    fields = {"edge_id": "raw", "edge_incarnation": "1", **opening}
    await call.write(router_pb2.LinkRequest(open=router_pb2.LinkOpen(**fields)))
    assert (await call.read()).opened.router_incarnation
    return call


async def has_violated(call: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT

    async def read_to_the_end() -> None:
        while await call.read() is not aio.EOF:
            pass

    with pytest.raises(aio.AioRpcError) as error:
        await read_to_the_end()
    assert isinstance(grpc_errors.from_rpc_error(error.value), StreamContractError)


def batch(**changes: Any) -> router_pb2.LinkRequest:
    columns: dict[str, Any] = {
        "instances": ["i"],
        "topics": ["a"],
        "topic_instances": [0],
        "topic_flags": b"\0",
        "publishers": ["c"],
        "topic_indexes": [0],
        "sequences": [1],
        "payloads": [b""],
        "flags": b"\1",
        "publisher_indexes": [0],
    }
    return router_pb2.LinkRequest(frame=1, publishes=router_pb2.PublishBatch(**{**columns, **changes}))


def target(**fields: Any) -> router_pb2.LinkRequest:
    return router_pb2.LinkRequest(frame=1, added_targets=[router_pb2.Target(instance_id="i", **fields)])
