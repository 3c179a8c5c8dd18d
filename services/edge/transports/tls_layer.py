"""The layer that starts TLS once the peer has begun to, and then steps aside.

A TLS object costs 50 KB from its first moment, so a connection gets one when its ClientHello is here. Handshakes begin
one in each turn of the loop: they cost a millisecond of computing each, and others have their turns between them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import cast

from services.edge.transports.layer import Address, ProtocolFactory, as_protocol, socket_transport, with_peer
from services.edge.transports.strangers import Strangers

logger = logging.getLogger(__name__)

HANDSHAKE_RECORD = 0x16
"""First byte of every TLS connection (RFC 8446 section 5.1)."""
FIRST_BYTES = 4096
"""What is read before TLS takes over; longer ClientHellos are read on by it."""

_buffer = bytearray(FIRST_BYTES)
"""For all connections: what is read is taken at once."""


class Handshakes:
    """Runs the TLS handshakes of a listener: the only work of one that needs tasks."""

    def __init__(
        self, context: ssl.SSLContext, strangers: Strangers, *, handshake_timeout_s: float, shutdown_timeout_s: float
    ) -> None:
        """Wait for connections.

        Args:
            context: of the listener.
            strangers: of the edge.
            handshake_timeout_s: seconds from the connection to the end of the handshake.
            shutdown_timeout_s: seconds that the peer has for its part of the end of TLS.
        """
        self.context = context
        self._strangers = strangers
        self.handshake_timeout_s = handshake_timeout_s
        self.shutdown_timeout_s = shutdown_timeout_s
        self._waiting: dict[TlsLayer, None] = {}
        self._wake = asyncio.Event()
        self._is_open = True

    def add(self, layer: TlsLayer) -> None:
        """Have the handshake of a connection run in its turn; all that wait are strangers, and bounded as such."""
        if not self._is_open:  # the listener is closed
            layer.abort()
            return
        self._waiting[layer] = None
        self._wake.set()

    def discard(self, layer: TlsLayer) -> None:
        """Note that a connection is gone."""
        self._waiting.pop(layer, None)

    async def run(self) -> None:
        """Run handshakes until cancelled, which ends those under way and those that wait."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._wake.wait()
                    if not self._waiting:
                        self._wake.clear()
                        continue
                    wait_s = self._strangers.tls_wait_s()
                    if wait_s:
                        await asyncio.sleep(wait_s)
                        continue
                    # The newest: when more come than can be served, the oldest would have no time left for the rest.
                    layer, _ = self._waiting.popitem()
                    group.create_task(_guarded(layer))
                    # Right behind what `start_tls` then calls soon: TLS gets its transport, which is read again, but
                    # nothing has been read before this.
                    loop.call_soon(loop.call_soon, layer.feed_first)
                    await asyncio.sleep(0)
        finally:
            self._is_open = False
            for layer in list(self._waiting):
                layer.abort()


async def _guarded(layer: TlsLayer) -> None:
    try:
        await layer.shake_hands()
    except Exception:  # one connection must not end the others
        logger.exception("connection failed behind its TLS handshake")


class TlsLayer:
    """The first protocol of a TLS connection, behind its PROXY header; silent ones cost a few hundred bytes here."""

    __slots__ = ("_address", "_deadline", "_factory", "_first", "_handshakes", "_loop", "_strangers", "_transport")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, factory: ProtocolFactory, handshakes: Handshakes, strangers: Strangers
    ) -> None:
        """Wait for a connection.

        Args:
            loop: the running loop.
            factory: makes the protocol that gets the connection when TLS is up.
            handshakes: of the listener.
            strangers: of the edge.
        """
        self._loop = loop
        self._factory = factory
        self._handshakes = handshakes
        self._strangers = strangers
        self._first = b""
        self._transport: asyncio.Transport | None = None
        self._address: Address | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of the socket."""
        self._transport, self._address = socket_transport(transport)
        self._deadline = self._loop.call_later(self._handshakes.handshake_timeout_s, self.abort)
        self._strangers.enter(self, self._transport)

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Return where to read to; see `asyncio.BufferedProtocol`."""
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the first bytes, and no more until TLS does."""
        if self._transport is None:
            return
        if _buffer[0] != HANDSHAKE_RECORD:
            logger.debug("not TLS", extra={"address": str(self._peer())})
            self.abort()
            return
        # Stopped before anything else: the loop may have more reads of this turn in hand.
        self._transport.pause_reading()
        self._first = bytes(memoryview(_buffer)[:nbytes])
        self._handshakes.add(self)

    def eof_received(self) -> bool:
        """Close our side too."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Note that the connection is gone before TLS was started."""
        self._end()

    def pause_writing(self) -> None:
        """Do nothing: nothing is written here."""

    def resume_writing(self) -> None:
        """Do nothing: nothing is written here."""

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def shake_hands(self) -> None:
        """Start TLS, and hand the connection over when it is up."""
        transport = self._transport
        if transport is None:  # gone meanwhile
            return
        self._strangers.start_tls(self)
        try:
            secure = await self._loop.start_tls(
                transport,
                as_protocol(_Handshaking()),
                self._handshakes.context,
                server_side=True,
                ssl_handshake_timeout=self._handshakes.handshake_timeout_s,
                ssl_shutdown_timeout=self._handshakes.shutdown_timeout_s,
            )
        except (OSError, RuntimeError) as error:  # ssl.SSLError and timeouts are OSErrors; RuntimeError: gone meanwhile
            logger.debug("tls handshake failed", extra={"address": str(self._peer()), "error": repr(error)})
            secure = None
        except asyncio.CancelledError:
            transport.abort()
            raise
        finally:
            self._end()
        if secure is None or transport.is_closing():  # the latter: it gave way to others
            transport.abort()
            return
        # No await since the handshake ended: the protocol has its transport before the first bytes come.
        protocol = self._factory()
        secure.set_protocol(as_protocol(protocol))
        protocol.connection_made(with_peer(secure, self._address))

    def feed_first(self) -> None:
        """Give TLS what was read before it was there."""
        first, self._first = self._first, b""
        transport = self._transport
        if transport is None or transport.is_closing():  # gone meanwhile
            return
        protocol = transport.get_protocol()
        tls = cast("asyncio.BufferedProtocol", protocol)
        tls.get_buffer(len(first))[: len(first)] = first  # type: ignore[index]  # a buffer that can be written
        tls.buffer_updated(len(first))

    def _peer(self) -> object:
        if self._address is None and self._transport is not None:
            return self._transport.get_extra_info("peername")
        return self._address

    def _end(self) -> None:
        """Leave the connection to others, or to nobody."""
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
        self._handshakes.discard(self)
        self._strangers.leave(self)


class _Handshaking:
    """Stands in for the protocol until TLS is up, so that a failed handshake never reaches it."""

    __slots__ = ()

    def data_received(self, _data: bytes) -> None:
        raise AssertionError("data before the end of start_tls")

    def eof_received(self) -> bool:
        return False

    def connection_made(self, _transport: asyncio.BaseTransport) -> None:
        pass

    def connection_lost(self, _error: Exception | None) -> None:
        pass

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass
