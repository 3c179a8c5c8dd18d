"""An edge between raw MQTT clients and fake services behind real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncGenerator, Callable

from grpc import aio

from services.common import grpc_server
from services.common.readiness import Readiness
from services.common.runtime import background, until_stopped
from services.common.settings import Secret
from services.edge.app import serve
from services.edge.mqtt import codec, packets
from services.edge.settings import EdgeSettings
from tests.support.auth_for_edges import FakeAuth
from tests.support.fakes import FakeRouter, FakeSession
from tests.support.ports import free_ports
from tests.support.wait import WAIT_S
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc
from weimq.router.v1 import router_pb2_grpc
from weimq.session.v1 import session_pb2_grpc

TOKEN = Secret("0123456789abcdef")


async def until(condition: Callable[[], object], seconds: float = WAIT_S) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a condition of the world has no event
            await asyncio.sleep(0.005)


class Device:
    """A raw MQTT client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = codec.Decoder(1 << 24)
        self._packets: list[packets.Packet] = []

    async def send(self, *sent: packets.Packet) -> None:
        self._writer.write(b"".join(map(codec.encode, sent)))
        await self._writer.drain()

    async def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> packets.Packet | None:
        """Return the next packet, None at the end of the connection."""
        async with asyncio.timeout(WAIT_S):
            while not self._packets:
                data = await self._reader.read(65536)
                if not data:
                    return None
                self._packets += self._decoder.feed(data)
        return self._packets.pop(0)

    def abort(self) -> None:
        self._writer.transport.abort()


class World:
    """An edge and its fake services."""

    def __init__(self, profile: auth_pb2.Profile.ValueType) -> None:
        self.auth = FakeAuth(profile)
        self.session = FakeSession()
        self.router = FakeRouter()  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
        self.stop = asyncio.Event()
        self.port = 0
        self.ended = False
        self.devices: list[Device] = []

    def is_listening(self) -> bool:
        """Return whether the edge takes clients."""
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    async def connect(
        self, client_id: str = "GID_demo@@@1", password: bytes = b"right", user: str = "u", **fields: object
    ) -> Device:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        device = Device(reader, writer)
        self.devices.append(device)
        values: dict[str, object] = {"keep_alive_s": 60, "clean_session": True, "will": None, **fields}
        await device.send(
            packets.Connect(protocol_level=4, client_id=client_id, username=user, password=password, **values)  # type: ignore[arg-type]  # fields of the test
        )
        return device

    async def connected(
        self, client_id: str = "GID_demo@@@1", *, session_present: bool = False, **fields: object
    ) -> Device:
        device = await self.connect(client_id, **fields)  # type: ignore[arg-type]  # fields of the test
        assert await device.receive() == packets.ConnAck(session_present, 0)
        return device


@contextlib.asynccontextmanager
async def world(profile: auth_pb2.Profile.ValueType = auth_pb2.PROFILE_LMQ, **changed: object) -> AsyncGenerator[World]:
    """Start fakes and edge, with `changed` settings; the edge is ready."""
    made = World(profile)
    readiness = Readiness()

    def register(server: aio.Server) -> list[str]:
        auth_pb2_grpc.add_AuthServiceServicer_to_server(made.auth, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(made.session, server)
        router_pb2_grpc.add_RouterServiceServicer_to_server(made.router, server)
        return []

    (made.port,) = free_ports(1)
    async with grpc_server.serving(
        listen=["127.0.0.1:0"], token=TOKEN, readiness=readiness, register=register, drain_s=0
    ) as (port,):
        address = f"127.0.0.1:{port}"
        settings = EdgeSettings(
            cluster_token=TOKEN,
            drain_s=2,
            id="edge",
            tcp_listen=f"127.0.0.1:{made.port}",
            grpc_listen=("127.0.0.1:0",),
            auth=address,
            session=(address,),
            router=(address,),
            connect_timeout_s=10,
            max_queued=2000,
            slow_consumer_s=1,
        )
        settings = dataclasses.replace(settings, **changed)  # type: ignore[arg-type]  # fields of the test

        async def run() -> None:
            await until_stopped(serve(settings, made.stop))
            made.ended = True

        async with background(run()):
            await until(lambda: made.is_listening() or made.ended)
            try:
                yield made
            finally:
                made.stop.set()
                await until(lambda: made.ended)
                for device in made.devices:
                    device.abort()
