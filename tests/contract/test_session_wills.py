"""Wills of clients whose edge is lost, with real gRPC, a real NATS, edges made of the stub and a router's servicer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from typing_extensions import override

from services.common import grpc_client, grpc_server, healthcheck
from services.common.errors import InvalidFieldError, UnavailableError
from services.common.readiness import Readiness
from services.common.runtime import background
from services.session.settings import SessionSettings
from tests.contract.test_session_service import CLIENT, GRACE_S, INSTANCE, TOKEN, FakeEdge, Mesh, until
from tests.support.nats import NatsServer
from weimq.router.v1 import router_pb2, router_pb2_grpc
from weimq.session.v1 import session_pb2 as pb
from weimq.session.v1 import session_pb2_grpc

pytestmark = pytest.mark.asyncio


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Takes messages over, unless it is told not to."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_available = True
        self.calls = 0
        self.taken: list[router_pb2.PublishedMessage] = []

    @property
    def ids(self) -> list[str]:
        return [message.message_id for message in self.taken]

    @override
    async def Link(  # type: ignore[override]  # as in the router
        self, request_iterator: AsyncIterator[router_pb2.LinkRequest], context: aio.ServicerContext[Any, Any]
    ) -> None:
        raise NotImplementedError

    @override
    async def Publish(
        self, request: router_pb2.PublishRequest, context: aio.ServicerContext[Any, Any]
    ) -> router_pb2.PublishResponse:
        self.calls += 1
        if not self.is_available:
            raise UnavailableError("the edges are not known yet", dependency="edge")
        if any("#" in message.topic for message in request.messages):
            raise InvalidFieldError("a topic name holds no wildcard", field="topic")
        self.taken += request.messages
        return router_pb2.PublishResponse()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        def register(server: aio.Server) -> list[str]:
            router_pb2_grpc.add_RouterServiceServicer_to_server(self, server)
            return []

        async with grpc_server.serving(
            listen=(self.address,), token=TOKEN, readiness=Readiness(), register=register, drain_s=1
        ):
            yield

    async def has(self, *channel_ids: str) -> None:
        """Wait until wills were taken over, and check that they are these, each once."""
        expected = sorted(f"will-{channel_id}" for channel_id in channel_ids)
        with contextlib.suppress(TimeoutError):
            await until(lambda: len(self.taken) >= len(expected))
        assert sorted(self.ids) == expected


class WillMesh(Mesh):
    """A session service, its NATS and its router."""

    router: FakeRouter

    @override
    def settings(self, **changes: float) -> SessionSettings:
        return dataclasses.replace(super().settings(**changes), router=(self.router.address,))

    async def marker(self) -> str:
        """Lose an edge with a will now; when that has come, those of before would have, too."""
        edge_id = f"marker-{secrets.token_hex(4)}"
        async with self.edge(edge_id) as edge:
            channel_id = connect(edge, "GID_Test@@@marker")
            await edge.accepted(channel_id)
        async with self.edge(edge_id):
            await until(lambda: f"will-{channel_id}" in self.router.ids)
        return channel_id


@pytest.fixture
def directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="weimq-") as directory:
        yield directory


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, directory: str) -> AsyncGenerator[WillMesh]:
    """Return a mesh whose router does not run yet."""
    mesh = WillMesh(f"unix:{directory}/session.sock", nats_server)
    mesh.router = FakeRouter(f"unix:{directory}/router.sock")  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
    async with grpc_client.channel(mesh.address, TOKEN) as channel:
        mesh.stub = session_pb2_grpc.SessionServiceStub(channel)
        yield mesh


def connect(edge: FakeEdge, client_id: str = CLIENT, *, topic: str = "demo/gone", takeover: bool = False) -> str:
    """Ask for a connection with a will to be let in; returns its channel id."""
    channel_id = secrets.token_hex(16)
    connection = pb.Connection(channel_id=channel_id, instance_id=INSTANCE, client_id=client_id, address="10.0.0.1:1")
    will = pb.Will(
        topic=topic,
        payload=b"\x00gone",
        qos=1,
        retain=True,
        account_id="default",
        access_key_id="key",
        token_ids=["t-1", "t-2"],
    )
    opening = edge.open[channel_id] = pb.Opening(
        connection=connection, takeover=takeover, clean_session=True, will=will
    )
    edge.send(pb.LinkRequest(openings=[opening]))
    return channel_id


async def test_the_will_of_a_lost_edge_is_published_once_and_whole(mesh: WillMesh) -> None:
    async with mesh.router.serving(), mesh.serving():
        async with mesh.edge("edge-1") as edge:
            await edge.accepted(channel_id := connect(edge))
            await edge.accepted(edge.connect("GID_Test@@@no-will"))
        await mesh.router.has(channel_id)
        assert mesh.router.taken == [
            router_pb2.PublishedMessage(
                instance_id=INSTANCE,
                topic="demo/gone",
                payload=b"\x00gone",
                qos=1,
                retain=True,
                client_id=CLIENT,
                clean_session=True,
                message_id=f"will-{channel_id}",
                publisher=router_pb2.PublisherIdentity(
                    account_id="default", access_key_id="key", token_ids=["t-1", "t-2"]
                ),
            )
        ]
        await mesh.router.has(channel_id, await mesh.marker())


async def test_an_edge_that_comes_back_in_time_keeps_its_wills(mesh: WillMesh) -> None:
    async with mesh.router.serving(), mesh.serving():
        edge = FakeEdge(mesh.stub, "edge-1")
        async with background(edge.run()):
            await until(lambda: edge.opened_count)
            await edge.accepted(channel_id := connect(edge))
        async with background(edge.run()):
            await until(lambda: edge.opened_count == 2)
            async with mesh.edge("edge-2") as other:  # its grace begins after the one of edge-1 was stopped
                await other.accepted(later := connect(other, "GID_Test@@@2"))
            await mesh.router.has(later)
        await mesh.router.has(channel_id, later)


@pytest.mark.parametrize("reason", [pb.CLOSE_REASON_CLIENT_DISCONNECT, pb.CLOSE_REASON_CONNECTION_LOST])
async def test_a_closing_leaves_the_will_to_the_edge(mesh: WillMesh, reason: pb.CloseReason.ValueType) -> None:
    async with mesh.router.serving(), mesh.serving():
        async with mesh.edge("edge-1", "old") as edge:
            await edge.accepted(channel_id := connect(edge))
            edge.close(channel_id, reason)
            await edge.all_confirmed()
        async with mesh.edge("edge-1", "new"):
            await mesh.router.has(await mesh.marker())


async def test_a_new_process_of_an_edge_has_the_wills_of_the_old_one_published(mesh: WillMesh) -> None:
    async with mesh.router.serving(), mesh.serving(edge_grace_s=60.0):
        async with mesh.edge("edge-1") as edge:
            await edge.accepted(channel_id := connect(edge))
        assert mesh.router.taken == []
        async with mesh.edge("edge-1"):
            await mesh.router.has(channel_id)


async def test_a_goodbye_sends_no_wills(mesh: WillMesh) -> None:
    async with mesh.router.serving(), mesh.serving():
        async with mesh.edge("edge-1") as edge:
            await edge.accepted(channel_id := connect(edge))
            edge.send(pb.LinkRequest(goodbye=True))
            await edge.all_confirmed()
        await mesh.has_tags(channel_id, "connect", "tcpclean")
        await mesh.router.has(await mesh.marker())


async def test_a_takeover_leaves_the_will_to_the_edge_that_closes_it(mesh: WillMesh) -> None:
    async with mesh.router.serving(), mesh.serving():
        async with mesh.edge("edge-1") as first, mesh.edge("edge-2") as second:
            await first.accepted(old := connect(first, takeover=True))
            await second.accepted(new := connect(second, takeover=True))
            await until(lambda: first.evicted == [old])
            await first.all_confirmed()
        await mesh.router.has(new)


async def test_wills_wait_for_a_router_that_is_away_and_clients_do_not(mesh: WillMesh) -> None:
    async with mesh.serving(), mesh.edge("edge-2") as other:
        async with mesh.edge("edge-1") as edge:
            await edge.accepted(channel_id := connect(edge))
        await mesh.has_tags(channel_id, "connect", "tcpclean")
        assert await healthcheck.is_serving(mesh.address)
        await other.accepted(other.connect())
        mesh.router.is_available = False
        async with mesh.router.serving():  # it answers, but knows no edges
            await until(lambda: mesh.router.calls >= 2)
        assert mesh.router.taken == []
        mesh.router.is_available = True
        async with mesh.router.serving():
            await mesh.router.has(channel_id)


async def test_wills_are_known_after_a_restart_of_the_session_service(mesh: WillMesh) -> None:
    async with mesh.router.serving():
        edge = FakeEdge(mesh.stub, "edge-1")
        async with background(edge.run()):
            async with mesh.serving():
                await until(lambda: edge.opened_count)
                await edge.accepted(channel_id := connect(edge))
                await edge.all_confirmed()
            await until(lambda: edge.ends)
            stack = contextlib.AsyncExitStack()
            await stack.enter_async_context(mesh.serving())
            await until(lambda: edge.opened_count == 2)
            await edge.all_confirmed()
        async with stack:
            assert mesh.router.taken == []
            await mesh.router.has(channel_id)


async def test_a_will_that_the_router_refuses_does_not_hold_the_others_up(mesh: WillMesh) -> None:
    async with mesh.router.serving(), mesh.serving():
        async with mesh.edge("edge-1") as edge:
            channels = [connect(edge, f"GID_Test@@@{n}", topic="demo/#" if n == 1 else "demo/gone") for n in range(3)]
            for channel_id in channels:
                await edge.accepted(channel_id)
        await mesh.router.has(channels[0], channels[2])


async def test_many_wills_go_in_batches(mesh: WillMesh) -> None:
    async with mesh.router.serving(), mesh.serving():
        async with mesh.edge("edge-1") as edge:
            channels = [connect(edge, f"GID_Test@@@{n}") for n in range(1_200)]
            await until(lambda: len(edge.decisions) == 1_200)
        await mesh.router.has(*channels)
        assert mesh.router.calls == 3


async def test_a_stop_publishes_the_wills_that_wait(mesh: WillMesh) -> None:
    mesh.router.is_available = False
    async with mesh.router.serving(), mesh.serving(drain_s=20.0) as stop:
        async with mesh.edge("edge-1") as edge:
            await edge.accepted(channel_id := connect(edge))
        async with mesh.edge("edge-1"):
            await until(lambda: mesh.router.calls)
        stop.set()  # it is in its pause before the next attempt
        mesh.router.is_available = True
        await mesh.router.has(channel_id)


async def test_no_edge_is_lost_because_the_service_stops(mesh: WillMesh) -> None:
    edge = FakeEdge(mesh.stub, "edge-1")
    async with background(edge.run()):
        # Stopping takes three times the grace, since a will waits for a router that does not exist.
        async with mesh.serving(drain_s=3 * GRACE_S):
            await until(lambda: edge.opened_count)
            await edge.accepted(channel_id := connect(edge))
            await edge.all_confirmed()
            async with mesh.edge("edge-2") as lost:
                await lost.accepted(connect(lost, "GID_Test@@@2"))
            async with mesh.edge("edge-2"):
                pass
        assert await mesh.tags(channel_id) == ["connect"]


async def test_a_will_that_no_connect_can_hold_breaks_the_contract(mesh: WillMesh) -> None:
    async with mesh.serving():
        call = mesh.stub.Link(metadata=grpc_client.call_metadata(TOKEN))
        await call.write(pb.LinkRequest(open=pb.LinkOpen(edge_id="edge-1", edge_incarnation="1")))
        connection = pb.Connection(channel_id="0" * 32, instance_id=INSTANCE, client_id=CLIENT)
        opening = pb.Opening(connection=connection, will=pb.Will(topic="t", payload=b"x" * 65_536))
        await call.write(pb.LinkRequest(frame=1, openings=[opening]))
        async with asyncio.timeout(30):
            with contextlib.suppress(aio.AioRpcError):
                while isinstance(await call.read(), pb.LinkResponse):
                    pass
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
