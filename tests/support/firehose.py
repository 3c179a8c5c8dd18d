"""A client that publishes at QoS 1 as fast as its socket takes, without waiting for acknowledgements."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct

from services.edge.mqtt import codec
from services.edge.mqtt.packets import Connect, PubAck, Publish
from tests.support.mesh import Mesh

WINDOW = 20_000
"""Unacknowledged publications; more than an edge takes."""
PAYLOAD_BYTES = 1_024


class Firehose:
    """One publisher on one topic; payloads begin with their number, from 0 on."""

    def __init__(self, mesh: Mesh, topic: str, edge: int = 0, *, pause_s: float = 0) -> None:
        self._mesh = mesh
        self._edge = edge
        self._pause_s = pause_s  # after each 50 messages
        self.topic = topic
        self.sent = 0
        self.acknowledged: set[int] = set()
        self._is_stopped = False
        self._room = asyncio.Event()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def run(self) -> None:
        """Publish until `stop`, then until everything is acknowledged."""
        client_id = self._mesh.client_id(secrets.token_hex(6))
        user, password = self._mesh.login(client_id)
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._mesh.mqtt_port(self._edge))
        self._writer.write(codec.encode(Connect(4, client_id, True, 0, user, password.encode(), None)))
        assert (await self._reader.readexactly(4))[3] == 0
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read())
                await self._publish()
                while len(self.acknowledged) < self.sent:
                    self._room.clear()
                    await self._room.wait()
                reading.cancel()  # the last acknowledgement may have come before `stop`
        finally:
            self._writer.transport.abort()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def stop(self) -> None:
        """Publish no more."""
        self._is_stopped = True
        self._room.set()

    async def _publish(self) -> None:
        rest = bytes(PAYLOAD_BYTES - 8)
        while not self._is_stopped:
            if self.sent - len(self.acknowledged) >= WINDOW:
                self._room.clear()
                await self._room.wait()
                continue
            identifier = self.sent % 65_535 + 1
            payload = struct.pack(">Q", self.sent) + rest
            self.sent += 1
            self._writer.write(codec.encode(Publish(self.topic, payload, 1, False, False, identifier)))
            try:
                async with asyncio.timeout(0.1):  # the edge may have stopped reading; `stop` must be seen all the same
                    await self._writer.drain()
            except TimeoutError:
                pass
            if self.sent % 50 == 0:
                await asyncio.sleep(self._pause_s)

    async def _read(self) -> None:
        decoder = codec.Decoder(1 << 20)
        oldest = 0
        while True:
            data = await self._reader.read(65_536)
            assert data, "the edge closed the connection"
            for packet in decoder.feed(data):
                assert isinstance(packet, PubAck)
                number = oldest - oldest % 65_535 + packet.packet_identifier - 1
                self.acknowledged.add(number if number >= oldest else number + 65_535)
            while oldest in self.acknowledged:
                oldest += 1
            self._room.set()
