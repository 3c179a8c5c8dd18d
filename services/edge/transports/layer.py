"""What the layers of a transport have in common: the protocol above, the transport below."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from typing_extensions import override

READ_BYTES = 32 << 10
"""What is read of one client in a loop turn: one that sends without end would keep the others waiting for long."""

Address = tuple[str, int]
"""IP address and port."""


class ByteProtocol(Protocol):
    """An asyncio protocol by its methods: what a layer hands a byte stream to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, before anything else."""

    def data_received(self, data: bytes) -> None:
        """Take bytes of the peer."""

    def eof_received(self) -> bool | None:
        """Note that the peer sends no more; true: leave our side open."""

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the connection is gone; called once, last."""

    def pause_writing(self) -> None:
        """Note that the peer reads too slowly."""

    def resume_writing(self) -> None:
        """Note that the peer has caught up."""


ProtocolFactory = Callable[[], ByteProtocol]


def as_protocol(layer: ByteProtocol) -> asyncio.BaseProtocol:
    """Return `layer` as the type that asyncio's signatures name; asyncio itself only calls the methods."""
    return cast("asyncio.BaseProtocol", layer)


class Peer:
    """A transport whose peer has another address than its socket: that which a proxy named."""

    __slots__ = ("_address", "_transport")

    def __init__(self, transport: asyncio.Transport, address: Address) -> None:
        self._transport = transport
        self._address = address

    @property
    def parts(self) -> tuple[asyncio.Transport, Address]:
        """The transport of the socket, and the address in its place."""
        return self._transport, self._address

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """Return the peer's address, or what the socket's transport knows."""
        return self._address if name == "peername" else self._transport.get_extra_info(name, default)

    def write(self, data: bytes) -> None:
        """See `asyncio.Transport`."""
        self._transport.write(data)

    def can_write_eof(self) -> bool:
        """See `asyncio.Transport`."""
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        """See `asyncio.Transport`."""
        self._transport.write_eof()

    def close(self) -> None:
        """See `asyncio.Transport`."""
        self._transport.close()

    def abort(self) -> None:
        """See `asyncio.Transport`."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """See `asyncio.Transport`."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """See `asyncio.Transport`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.Transport`."""
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.Transport`."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """See `asyncio.Transport`."""
        return self._transport.get_write_buffer_size()

    @override
    def __repr__(self) -> str:
        return f"<Peer {self._address} of {self._transport!r}>"


class _Closed(asyncio.Transport):
    """A transport of a connection that is gone."""

    @override
    def is_closing(self) -> bool:
        return True

    @override
    def write(self, data: object) -> None:
        """Do nothing; so do the others."""

    @override
    def close(self) -> None:
        pass

    @override
    def abort(self) -> None:
        pass

    @override
    def pause_reading(self) -> None:
        pass

    @override
    def resume_reading(self) -> None:
        pass

    @override
    def get_write_buffer_size(self) -> int:
        return 0


CLOSED_TRANSPORT: asyncio.Transport = _Closed()
"""Takes the place of a transport that is gone: uvloop's TLS keeps its protocol, a cycle of 20 KB with it."""


class TransportInfo(Protocol):
    """What any transport says of itself."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """See `asyncio.BaseTransport`."""


def with_peer(transport: asyncio.Transport, address: Address | None) -> asyncio.Transport:
    """Return `transport` with the peer's address replaced; None leaves it as it is."""
    return transport if address is None else cast("asyncio.Transport", Peer(transport, address))


def socket_transport(transport: asyncio.BaseTransport) -> tuple[asyncio.Transport, Address | None]:
    """Undo `with_peer`: asyncio starts TLS on transports of its own only."""
    if isinstance(transport, Peer):
        return transport.parts
    return cast("asyncio.Transport", transport), None
