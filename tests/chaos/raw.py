"""An MQTT client on the edge's own codec, fast enough to load a mesh from one process; it answers nothing by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias, cast

from typing_extensions import override

from services.edge.mqtt import codec
from services.edge.mqtt.packets import ConnAck, Connect, Packet

CONNECT_S = 15.0
"""How long a server may take to let a client in: it may have to wait for services that were killed."""


Take: TypeAlias = "Callable[[Connection, list[Packet]], None]"


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        take: called with the connection and the packets that one read brought.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._decoder = codec.Decoder(1 << 20)
        self._transport: asyncio.Transport
        self.lost = asyncio.Event()
        """Set when the connection is gone."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        packets = self._decoder.feed(data)
        if packets:
            self._take(self, packets)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def send(self, packets: list[Packet]) -> None:
        """Send packets in one go."""
        if packets and not self.lost.is_set():
            self._transport.write(b"".join(map(codec.encode, packets)))

    def abort(self) -> None:
        """Drop the connection without DISCONNECT."""
        self._transport.abort()


async def connect(
    port: int, client_id: str, take: Take, *, clean_session: bool, login: tuple[str, str] | None = None
) -> tuple[Connection, ConnAck]:
    """Connect to an edge and return the connection with its CONNACK; what follows goes to `take`.

    Args:
        port: of the edge.
        client_id: of the client.
        take: called with the connection and the packets that one read brought.
        clean_session: flag of CONNECT.
        login: user name and password; None: without.

    Raises:
        OSError: there is no edge, it refused, or it did not answer in time.
    """
    answered: asyncio.Future[ConnAck] = asyncio.get_running_loop().create_future()

    def first(connection: Connection, packets: list[Packet]) -> None:
        if not answered.done():
            answer = packets.pop(0)
            assert isinstance(answer, ConnAck)
            answered.set_result(answer)
        if packets:
            take(connection, packets)

    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(first), "127.0.0.1", port)
    user, password = login or (None, None)
    connection.send([Connect(4, client_id, clean_session, 30, user, password.encode() if password else None, None)])
    lost = asyncio.ensure_future(connection.lost.wait())
    try:
        await asyncio.wait((answered, lost), timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        lost.cancel()
        if not answered.done():
            connection.abort()
    if not answered.done() or answered.result().return_code:
        connection.abort()
        raise ConnectionError(f"{client_id} was not let in")
    return connection, answered.result()
