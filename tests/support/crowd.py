"""Many small MQTT clients that come, go, vanish and come again, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets

from services.edge.mqtt import codec
from services.edge.mqtt.packets import Connect
from tests.support.mesh import Mesh

CONNACK_BYTES = 4
TRY_S = 15.0
MAX_CONNECTING = 64
"""Clients that connect at the same time."""


class Member:
    """One client. `is_online` is what it wants to be, and is when the crowd has settled."""

    def __init__(self, mesh: Mesh, rng: random.Random) -> None:
        self.client_id = mesh.client_id(secrets.token_hex(6))
        self._mesh = mesh
        self._rng = rng
        self._user, self._password = mesh.login(self.client_id)
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader
        self.is_online = False
        self.connections = 0

    async def connect(self) -> None:
        """Come, on any edge, trying until let in."""
        self.is_online = True
        while True:
            with contextlib.suppress(OSError, TimeoutError, EOFError):
                async with asyncio.timeout(TRY_S):
                    if await self._try():
                        self.connections += 1
                        return
            await self._drop()
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))

    async def _try(self) -> bool:
        await self._drop()
        port = self._mesh.mqtt_port(self._rng.randrange(self._mesh.edges))
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        packet = Connect(4, self.client_id, True, 0, self._user, self._password.encode(), None)
        self._writer.write(codec.encode(packet))
        return (await self._reader.readexactly(CONNACK_BYTES))[3] == 0

    async def leave(self, *, politely: bool) -> None:
        """Go: with DISCONNECT, or by dropping the connection."""
        self.is_online = False
        if politely and self._writer is not None:
            self._writer.write(b"\xe0\x00")
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    await self._writer.drain()
                    await self._reader.read()  # the edge closes
        await self._drop()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is still there."""
        return self._writer is not None and not self._reader.at_eof() and not self._writer.is_closing()

    async def _drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Crowd:
    """So many clients."""

    def __init__(self, mesh: Mesh, size: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self.members = [Member(mesh, self._rng) for _ in range(size)]
        self._slots = asyncio.Semaphore(MAX_CONNECTING)

    async def churn(self, part: float) -> None:
        """Let a part of the clients come or go, all at once, and bring those back that lost their connection."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                if self._rng.random() < part:
                    group.create_task(self._change(member))
                elif member.is_online and not member.is_connected:
                    group.create_task(self._come(member))

    async def settle(self) -> None:
        """Bring back everyone who wants to be online."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                if member.is_online and not member.is_connected:
                    group.create_task(self._come(member))

    async def disperse(self) -> None:
        """Let everybody go."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                if member.is_online:
                    group.create_task(member.leave(politely=True))

    async def _change(self, member: Member) -> None:
        if member.is_online:
            await member.leave(politely=self._rng.random() < 0.5)
        else:
            await self._come(member)

    async def _come(self, member: Member) -> None:
        async with self._slots:
            await member.connect()
