"""The layer that takes the PROXY header of a connection and then steps aside.

It reads exactly the header and not a byte more (it is a buffered protocol whose buffer ends where the header may
end), so that TLS can start on the untouched rest, and a plain protocol gets the socket's transport for itself.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from typing import cast

from services.edge.transports.layer import Address, ProtocolFactory, as_protocol, with_peer
from services.edge.transports.proxy_header import ProxyFault, ProxyHeader, ProxyParser

logger = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[object, object, None]], bool]
"""Runs a coroutine beside the caller; false: it takes none any more."""


class TlsStart:
    """How TLS is started behind a PROXY header."""

    __slots__ = ("context", "handshake_timeout_s", "shutdown_timeout_s", "spawn")

    def __init__(
        self, *, context: ssl.SSLContext, handshake_timeout_s: float, shutdown_timeout_s: float, spawn: Spawn
    ) -> None:
        self.context = context
        self.handshake_timeout_s = handshake_timeout_s
        self.shutdown_timeout_s = shutdown_timeout_s
        self.spawn = spawn


class ProxyProtocolLayer:
    """The first protocol of a connection from a proxy; a connection without a valid header is closed."""

    __slots__ = ("_buffer", "_deadline", "_factory", "_header_timeout_s", "_loop", "_parser", "_tls", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: ProtocolFactory,
        *,
        header_timeout_s: float,
        tls: TlsStart | None = None,
    ) -> None:
        """Wait for a connection.

        Args:
            loop: the running loop.
            factory: makes the protocol that gets the connection.
            header_timeout_s: seconds that the header may take.
            tls: starts TLS before that protocol gets it; None: plain.
        """
        self._loop = loop
        self._factory = factory
        self._header_timeout_s = header_timeout_s
        self._tls = tls
        self._parser = ProxyParser()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of the socket."""
        self._transport = cast("asyncio.Transport", transport)
        self._deadline = self._loop.call_later(self._header_timeout_s, self._transport.abort)

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Return room for what surely belongs to the header."""
        self._buffer = bytearray(self._parser.needed)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read; hand over when the header is complete."""
        result = self._parser.feed(bytes(self._buffer[:nbytes]))
        if result is None or self._transport is None:
            return
        # Stopped before anything else: the loop may have more reads of this turn in hand.
        self._transport.pause_reading()
        if self._deadline is not None:
            self._deadline.cancel()
        if isinstance(result, ProxyFault):
            logger.info(
                "proxy header refused",
                extra={"proxy": str(self._transport.get_extra_info("peername")), "reason": result.reason},
            )
            self._transport.abort()
            return
        self._hand_over(self._transport, result)

    def eof_received(self) -> bool:
        """Close our side too."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Note that the connection is gone before its header was complete."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None

    def pause_writing(self) -> None:
        """Do nothing: nothing is written here."""

    def resume_writing(self) -> None:
        """Do nothing: nothing is written here."""

    def _hand_over(self, transport: asyncio.Transport, header: ProxyHeader) -> None:
        if self._tls is not None:
            if not self._tls.spawn(self._start_tls(transport, header.source, self._tls)):
                transport.abort()
            return
        protocol = self._factory()
        transport.set_protocol(as_protocol(protocol))
        # Reading first, so that a pause by the protocol stands.
        transport.resume_reading()
        protocol.connection_made(with_peer(transport, header.source))

    async def _start_tls(self, transport: asyncio.Transport, source: Address | None, tls: TlsStart) -> None:
        try:
            secure = await self._loop.start_tls(
                transport,
                as_protocol(_Handshaking()),
                tls.context,
                server_side=True,
                ssl_handshake_timeout=tls.handshake_timeout_s,
                ssl_shutdown_timeout=tls.shutdown_timeout_s,
            )
        except (OSError, RuntimeError) as error:  # ssl.SSLError and timeouts are OSErrors; RuntimeError: gone meanwhile
            logger.debug("tls handshake failed", extra={"address": str(source), "error": str(error)})
            transport.abort()
            return
        except asyncio.CancelledError:
            transport.abort()
            raise
        if secure is None:
            transport.abort()
            return
        # No await since the handshake ended: the protocol has its transport before the first bytes come.
        protocol = self._factory()
        secure.set_protocol(as_protocol(protocol))
        protocol.connection_made(with_peer(secure, source))


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
