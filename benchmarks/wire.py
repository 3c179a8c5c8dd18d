"""Raw MQTT clients by the thousand: as little memory and CPU as Python allows, over any transport."""

from __future__ import annotations

import asyncio
import functools
import resource
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from typing_extensions import override

from services.common.signature import sign
from services.edge.mqtt import codec, packets

TRANSPORTS = ("tcp", "tls", "ws", "wss")

UPGRADE = (
    b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)


def raise_file_limit() -> None:
    """Let this process have as many sockets as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def frame(data: bytes) -> bytes:
    """Return `data` as one WebSocket message of a client, masked with zeros."""
    size = len(data)
    if size < 126:
        return bytes((0x82, 0x80 | size)) + bytes(4) + data
    if size < 65_536:
        return b"\x82\xfe" + size.to_bytes(2, "big") + bytes(4) + data
    return b"\x82\xff" + size.to_bytes(8, "big") + bytes(4) + data


def unframe(data: bytes) -> tuple[bytes, bytes]:
    """Return the payloads of the whole messages of a server, up to another WebSocket frame, and the rest."""
    payloads = b""
    while len(data) >= 2 and data[0] == 0x82:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + size:
            break
        payloads += data[start : start + size]
        data = data[start + size :]
    return payloads, data


@dataclass(frozen=True)
class Login:
    """How clients of the bootstrap group get in; the fields are those of `weimq credentials --json`."""

    group: str
    access_key: str
    instance: str
    secret: str

    def connect(self, device: str, keep_alive_s: int = 0) -> tuple[str, bytes]:
        """Return client id and CONNECT of a device."""
        client_id = f"{self.group}@@@{device}"
        user = f"Signature|{self.access_key}|{self.instance}"
        password = sign(self.secret, client_id).encode()
        return client_id, codec.encode(packets.Connect(4, client_id, True, keep_alive_s, user, password, None))


class Client(asyncio.Protocol):
    """A client: packets in by a callback, bytes out."""

    def __init__(self, *, websocket: bool, on_packet: Callable[[packets.Packet], None] | None = None) -> None:
        self._websocket = websocket
        self._is_upgraded = not websocket
        self._rest = b""
        self._decoder = codec.Decoder(1 << 28)
        self._on_packet = on_packet
        self.transport: asyncio.Transport
        loop = asyncio.get_running_loop()
        self.let_in: asyncio.Future[int] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._writable = asyncio.Event()
        self._writable.set()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._websocket:
            self.transport.write(UPGRADE)

    @override
    def data_received(self, data: bytes) -> None:
        if self._websocket:
            data = self._rest + data
            if not self._is_upgraded:
                head, end, data = data.partition(b"\r\n\r\n")
                if not end:
                    self._rest = head
                    return
                self._is_upgraded = True
            data, self._rest = unframe(data)
        for packet in self._decoder.feed(data):
            if isinstance(packet, packets.ConnAck):
                self.let_in.set_result(packet.return_code)
            elif self._on_packet is not None:
                self._on_packet(packet)

    @override
    def connection_lost(self, _error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        if not self.let_in.done():
            self.let_in.set_result(-1)

    @override
    def pause_writing(self) -> None:
        self._writable.clear()

    @override
    def resume_writing(self) -> None:
        self._writable.set()

    def send(self, data: bytes) -> None:
        """Send MQTT bytes."""
        self.transport.write(frame(data) if self._websocket else data)

    async def drain(self) -> None:
        """Wait until the socket takes more."""
        await self._writable.wait()


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the context of all clients; it trusts any server: its certificate is not what is measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def connected(
    base: int,
    transport: str,
    connect: bytes,
    on_packet: Callable[[packets.Packet], None] | None = None,
    source: int = 0,
) -> Client:
    """Return a client that was let in.

    Args:
        base: first port of an edge: TCP, TLS, WS and WSS follow each other.
        transport: one of `TRANSPORTS`.
        connect: the CONNECT packet.
        on_packet: called with each packet but CONNACK.
        source: which of the loopback addresses the client has.

    Raises:
        ConnectionError: it was not let in.
    """
    context = tls_context() if transport in {"tls", "wss"} else None
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: Client(websocket=transport in {"ws", "wss"}, on_packet=on_packet),
        "127.0.0.1",
        base + TRANSPORTS.index(transport),
        ssl=context,
        local_addr=(f"127.0.0.{source + 1}", 0) if source else None,
    )
    client.send(connect)
    code = await client.let_in
    if code:
        raise ConnectionError(f"CONNACK {code}")
    return client
