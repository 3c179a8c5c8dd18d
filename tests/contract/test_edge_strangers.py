"""Connections that are not let in: they end in time, whatever they send, and others do not notice."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.edge.mqtt import codec, packets
from tests.support.edge_world import World, world

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

CONNECT = codec.encode(packets.Connect(4, "GID_demo@@@9", True, 60, "u", b"right", None))


async def _end_s(reader: asyncio.StreamReader) -> float:
    """Return the seconds until the edge ends the connection."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    return loop.time() - started


async def _dribble(w: World, data: bytes, every_s: float) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", w.port)

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in data:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(every_s)

    sending = asyncio.ensure_future(send())
    try:
        return await _end_s(reader)
    finally:
        sending.cancel()
        writer.close()


@pytest.mark.spec("MQTT-3.1.0-1")
async def test_who_sends_no_connect_is_closed_in_time_however_slowly_it_comes() -> None:
    async with world(connect_timeout_s=1.0) as w:
        took = await asyncio.gather(
            *(_dribble(w, b"", 1) for _ in range(50)),
            *(_dribble(w, CONNECT[:10], 0.01) for _ in range(50)),
            *(_dribble(w, CONNECT, 0.2) for _ in range(50)),
        )
        assert min(took) > 0.4
        assert max(took) < 3


async def test_hundreds_of_strangers_delay_no_client_neither_open_nor_closed_together() -> None:
    async with world(connect_timeout_s=1.0) as w, contextlib.AsyncExitStack() as stack:
        device = await w.connected()
        for n in range(500):
            _, writer = await asyncio.open_connection("127.0.0.1", w.port)
            stack.callback(writer.close)
            writer.write(CONNECT[: n % 20])
        loop = asyncio.get_running_loop()
        worst = 0.0
        end = loop.time() + 2
        n = 0
        while (started := loop.time()) < end:
            n += 1
            await device.send(packets.Publish("fast/a", b"x", 1, False, False, n))
            assert await device.receive() == packets.PubAck(n)
            worst = max(worst, loop.time() - started)
        assert worst < 0.5


async def test_a_packet_beyond_the_limit_ends_the_connection_before_it_is_here() -> None:
    async with world(max_packet_bytes=2048) as w:
        device = await w.connected()
        other = await w.connected("GID_demo@@@2")
        await device.send_bytes(b"\x30" + bytes((0xFF, 0xFF, 0x7F)) + b"\0\1a")
        assert await device.receive() is None
        await other.send(packets.Publish("fast/a", bytes(2000), 1, False, False, 1))
        assert await other.receive() == packets.PubAck(1)
