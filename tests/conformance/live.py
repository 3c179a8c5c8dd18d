"""A real edge behind each transport, with services that grant, acknowledge and echo, and a client that counts bytes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, cast

from grpc import aio
from typing_extensions import override

from benchmarks.wire import TRANSPORTS, UPGRADE, frame, tls_context, unframe
from services.common import grpc_server
from services.common.healthcheck import is_serving
from services.common.readiness import Readiness
from services.common.runtime import background, until_stopped
from services.common.settings import Secret
from services.common.topics import matches
from services.edge.app import serve
from services.edge.settings import EdgeSettings
from tests.support.auth_for_edges import FakeAuth
from tests.support.fakes import FakeRouter, FakeSession
from tests.support.ports import free_ports
from tests.unit.edge.transports.certificates import Authority
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc
from weimq.router.v1 import router_pb2, router_pb2_grpc
from weimq.session.v1 import session_pb2_grpc

TOKEN = Secret("0123456789abcdef")
DEADLINE_S = 30.0
MAX_SUBSCRIPTIONS = 30
CLOSE = b"\x88"
"""First byte of a WebSocket frame that ends the connection."""


class OpenAuth(FakeAuth):
    """Lets everybody in, but for the password `wrong`; one instance, of the profile that it is made with."""

    def __init__(self, profile: auth_pb2.Profile.ValueType) -> None:
        super().__init__()
        self.snapshot.groups.add(instance_id="i", group_id="me", account_id="default")
        (instance,) = self.snapshot.instances
        instance.profile = profile
        instance.max_topic_characters = 0
        instance.max_payload_bytes = 1 << 20
        instance.max_subscriptions = MAX_SUBSCRIPTIONS
        instance.takeover = instance.strict_order = profile == auth_pb2.PROFILE_STANDARD
        instance.offline_batch_messages = 0
        instance.acknowledgement_timeout_ms = 5000
        instance.offline_retention_ms = 259_200_000
        instance.max_offline_messages = 1_000_000
        instance.session_expiry_ms = 0
        self.attempts: list[auth_pb2.ConnectAttempt] = []

    @override
    async def Authenticate(
        self, request: auth_pb2.AuthenticateRequest, context: aio.ServicerContext[Any, Any]
    ) -> auth_pb2.AuthenticateResponse:
        self.attempts.extend(request.attempts)
        good = auth_pb2.ConnectResult(outcome=auth_pb2.CONNECT_OUTCOME_ACCEPTED, instance_id="i", account_id="default")
        bad = auth_pb2.ConnectResult(outcome=auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS, reason="wrong")
        return auth_pb2.AuthenticateResponse(
            results=[bad if attempt.password == b"wrong" else good for attempt in request.attempts]
        )


class EchoRouter(FakeRouter):
    """Matches as the router does: what comes in goes out to the targets whose filter selects it."""

    @override
    def _take(self, frame: router_pb2.LinkRequest) -> None:
        known = len(self.published)
        super()._take(frame)
        for topic, payload, flags, sequence, _ in self.published[known:]:
            filters = [target.topic_filter for target in self.targets.values() if target.topic_filter]
            selected = [topic_filter for topic_filter in filters if matches(topic_filter, topic)]
            if selected:
                self.deliver(topic, payload, flags & 3, *selected, sequence=sequence)


class Wire(asyncio.Protocol):
    """A TCP connection that keeps what it receives."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._changed = asyncio.Event()
        self.received = b""
        """What has arrived and was not taken."""
        self.is_closed = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self.received += data
        self._changed.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        # A reset is an end, too: the server closes without reading what we still sent.
        self.is_closed = True
        self._changed.set()

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    async def take(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer if the connection ends before."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.received) < count and not self.is_closed:
                self._changed.clear()
                await self._changed.wait()
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    async def wait_closed(self) -> bytes:
        """Wait for the end of the connection and return what came before it."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.is_closed:
                self._changed.clear()
                await self._changed.wait()
        return self.received

    def abort(self) -> None:
        self._transport.abort()


class WebSocketWire(Wire):
    """The same over WebSocket."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""
        self._is_open = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport.write(UPGRADE)

    @override
    def data_received(self, data: bytes) -> None:
        self._rest += data
        if not self._is_open:
            head, end, rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101 ")
            self._is_open, self._rest = True, rest
        payloads, self._rest = unframe(self._rest)
        super().data_received(payloads)
        if self._rest[:1] == CLOSE:
            self._transport.abort()

    @override
    def send(self, data: bytes) -> None:
        super().send(frame(data))


class LiveEdge:
    """An edge and what it talks to."""

    def __init__(self, profile: auth_pb2.Profile.ValueType, session: FakeSession) -> None:
        self.auth = OpenAuth(profile)
        self.session = session
        self.router = EchoRouter()  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
        self.ports: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def wire(self, transport: str = "tcp") -> AsyncGenerator[Wire]:
        """Open a connection to the edge."""
        kind = WebSocketWire if transport in {"ws", "wss"} else Wire
        context = tls_context() if transport in {"tls", "wss"} else None
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(kind, "127.0.0.1", self.ports[transport], ssl=context)
        try:
            yield wire
        finally:
            wire.abort()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a condition of the world has no event
            await asyncio.sleep(0.005)


async def _ready(port: int, health: str) -> None:
    """Wait until the edge takes clients and knows all its services; before, it answers CONNACK 3."""
    async with asyncio.timeout(DEADLINE_S):
        while not await is_serving(health):  # noqa: ASYNC110 - the health service is asked, it tells nobody
            await asyncio.sleep(0.005)
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.005)
            else:
                writer.close()
                return


@contextlib.asynccontextmanager
async def live_edge(
    profile: auth_pb2.Profile.ValueType = auth_pb2.PROFILE_STANDARD,
    *,
    session: FakeSession | None = None,
    connect_timeout_s: float = 10.0,
) -> AsyncGenerator[LiveEdge]:
    """Start services and edge; the edge is ready."""
    made = LiveEdge(profile, session or FakeSession())
    stop = asyncio.Event()
    ended = asyncio.Event()

    def register(server: aio.Server) -> list[str]:
        auth_pb2_grpc.add_AuthServiceServicer_to_server(made.auth, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(made.session, server)
        router_pb2_grpc.add_RouterServiceServicer_to_server(made.router, server)
        return []

    made.ports.update(zip(TRANSPORTS, free_ports(len(TRANSPORTS)), strict=True))
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="weimq-"))
        certificate, key = Authority(Path(folder)).issue("localhost", "server")
        health = f"unix:{folder}/health.sock"
        (port,) = await stack.enter_async_context(
            grpc_server.serving(
                listen=["127.0.0.1:0"], token=TOKEN, readiness=Readiness(), register=register, drain_s=0
            )
        )
        address = f"127.0.0.1:{port}"
        settings = EdgeSettings(
            cluster_token=TOKEN,
            drain_s=2,
            id="edge",
            tcp_listen=f"127.0.0.1:{made.ports['tcp']}",
            tls_listen=f"127.0.0.1:{made.ports['tls']}",
            ws_listen=f"127.0.0.1:{made.ports['ws']}",
            wss_listen=f"127.0.0.1:{made.ports['wss']}",
            tls_certificate_file=str(certificate),
            tls_key_file=str(key),
            grpc_listen=(health,),
            auth=address,
            session=(address,),
            router=(address,),
            connect_timeout_s=connect_timeout_s,
        )

        async def run() -> None:
            await until_stopped(serve(settings, stop))
            ended.set()

        async with background(run()):
            await _ready(made.ports["wss"], health)  # the listener that is opened last
            try:
                yield made
            finally:
                stop.set()
                async with asyncio.timeout(DEADLINE_S):
                    await ended.wait()
