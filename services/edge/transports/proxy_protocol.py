"""The layer that takes the PROXY header of a connection and then steps aside.

It reads exactly the header and not a byte more (it is a buffered protocol whose buffer ends where the header may
end), so that TLS can start on the untouched rest, and a plain protocol gets the socket's transport for itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from services.edge.transports.layer import ProtocolFactory, as_protocol, with_peer
from services.edge.transports.proxy_header import ProxyFault, ProxyHeader, ProxyParser
from services.edge.transports.strangers import Strangers

logger = logging.getLogger(__name__)


class ProxyProtocolLayer:
    """The first protocol of a connection from a proxy; a connection without a valid header is closed."""

    __slots__ = (
        "_buffer",
        "_deadline",
        "_factory",
        "_header_timeout_s",
        "_loop",
        "_parser",
        "_strangers",
        "_transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: ProtocolFactory,
        *,
        header_timeout_s: float,
        strangers: Strangers,
    ) -> None:
        """Wait for a connection.

        Args:
            loop: the running loop.
            factory: makes the protocol that gets the connection.
            header_timeout_s: seconds that the header may take.
            strangers: of the edge.
        """
        self._loop = loop
        self._factory = factory
        self._header_timeout_s = header_timeout_s
        self._strangers = strangers
        self._parser = ProxyParser()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of the socket."""
        self._transport = cast("asyncio.Transport", transport)
        self._deadline = self._loop.call_later(self._header_timeout_s, self._transport.abort)
        self._strangers.enter(self, self._transport)

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
        self._end()
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
        self._end()
        self._transport = None

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        """Do nothing: nothing is written here."""

    def resume_writing(self) -> None:
        """Do nothing: nothing is written here."""

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._strangers.leave(self)

    def _hand_over(self, transport: asyncio.Transport, header: ProxyHeader) -> None:
        protocol = self._factory()
        transport.set_protocol(as_protocol(protocol))
        # Reading first, so that a pause by the protocol stands.
        transport.resume_reading()
        protocol.connection_made(with_peer(transport, header.source))
