"""Connections that are not let in: they end in time, whatever they send, and others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.wire import TRANSPORTS, UPGRADE, connected
from services.edge.mqtt import codec, packets
from tests.support.edge_world import World, until, world
from tests.support.ports import free_ports
from tests.unit.edge.transports.certificates import Authority

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

CONNECT = codec.encode(packets.Connect(4, "GID_demo@@@9", True, 60, "u", b"right", None))


async def _end_s(reader: asyncio.StreamReader) -> float:
    """Return the seconds until the edge ends the connection."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(25):
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
        assert max(took) < 10  # when nothing else runs, less than 2


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
        assert worst < 3  # when nothing else runs, less than 0.1


async def test_a_packet_beyond_the_limit_ends_the_connection_before_it_is_here() -> None:
    async with world(max_packet_bytes=2048) as w:
        device = await w.connected()
        other = await w.connected("GID_demo@@@2")
        await device.send_bytes(b"\x30" + bytes((0xFF, 0xFF, 0x7F)) + b"\0\1a")
        assert await device.receive() is None
        await other.send(packets.Publish("fast/a", bytes(2000), 1, False, False, 1))
        assert await other.receive() == packets.PubAck(1)


KINDS = ("Connection", "ServerConnection", "WebSocketLayer", "TlsLayer", "ServerProtocol", "SSLObject", "TCPTransport")

CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)


async def test_what_a_connection_took_is_freed_at_its_end_on_every_transport(tmp_path: Path) -> None:
    """Without a collection, which comes after so many objects that kilobytes of TLS each would be gigabytes."""
    certificate, key = Authority(tmp_path).issue("localhost", "server")
    free = free_ports(len(TRANSPORTS) - 1)
    changed: dict[str, Any] = {"tls_certificate_file": str(certificate), "tls_key_file": str(key)}
    for name, port in zip(TRANSPORTS[1:], free, strict=True):
        changed[f"{name}_listen"] = f"127.0.0.1:{port}"
    count = 20

    async def stranger(port: int, sent: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(0)
        writer.close()

    async def client(port: int, transport: str, number: int) -> None:
        connect = codec.encode(packets.Connect(4, f"GID_demo@@@{transport}{number}", True, 60, "u", b"right", None))
        connection = await connected(port - TRANSPORTS.index(transport), transport, connect)
        if number % 2 and transport in {"tcp", "tls"}:
            connection.send(codec.encode(packets.Disconnect()))
        else:
            connection.transport.abort()
        await connection.lost

    def alive() -> Counter[str]:
        return Counter(type(each).__name__ for each in gc.get_objects())

    async with world(**changed) as w:
        base = dict(zip(TRANSPORTS, [w.port, *free], strict=True))
        for transport in TRANSPORTS:
            await client(base[transport], transport, -1)
        gc.collect()
        gc.disable()
        try:
            before = alive()
            for transport, sent in (("tcp", CONNECT[:9]), ("tls", b""), ("tls", CLIENT_HELLO), ("ws", UPGRADE)):
                await asyncio.gather(*(stranger(base[transport], sent) for _ in range(count)))
            for transport in TRANSPORTS:
                await asyncio.gather(*(client(base[transport], transport, n) for n in range(count)))

            def left() -> list[str]:
                now = alive()
                return [name for name in KINDS if now[name] >= before[name] + count]

            await until(lambda: not left(), 40)
        finally:
            gc.enable()
