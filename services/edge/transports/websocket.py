"""WebSocket as a layer: frames towards the socket, a plain byte stream towards the protocol above.

    state      on                                        next
    OPENING    request accepted                          OPEN: the protocol above is made
    OPENING    request refused, too large, too late      CLOSING, without a protocol above
    OPEN       close() of the protocol above             CLOSING: close frame sent, the peer's is awaited
    OPEN       close frame, fault or end of the peer     CLOSING: the protocol above has lost its connection
    CLOSING    end of the peer, or `close_timeout_s`     CLOSED
    any        connection lost                           CLOSED

Flow control passes through: a pause of the protocol above stops reading the socket, and a socket that takes no more
pauses the protocol above. Pongs are answers too: while the socket takes no more, a peer that pings is not read.
One message is one `write`. Received fragments are passed on as they come: MQTT is a stream.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Any, cast

from websockets.frames import CloseCode, Opcode
from websockets.protocol import Protocol, Side
from websockets.protocol import State as CoreState

from services.edge.transports.layer import CLOSED_TRANSPORT, READ_BYTES, Address, ByteProtocol, ProtocolFactory
from services.edge.transports.strangers import Strangers
from services.edge.transports.websocket_handshake import LIBRARY_LOGGER, Handshake, HandshakeResult, WebSocketOptions

logger = logging.getLogger(__name__)

BINARY = Opcode.BINARY
CONT = Opcode.CONT
TEXT = Opcode.TEXT
PING = Opcode.PING
CORE_OPEN = CoreState.OPEN

_buffer = bytearray(READ_BYTES)
"""For all connections: what is read is taken at once."""


class State(enum.Enum):
    """See the table of the module."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPENING = State.OPENING
OPEN = State.OPEN
CLOSING = State.CLOSING
CLOSED = State.CLOSED


class WebSocketLayer:
    """Protocol of one socket and transport of one protocol above, both by their methods."""

    __slots__ = (
        "_above",
        "_address",
        "_core",
        "_factory",
        "_handshake",
        "_has_answered",
        "_is_held",
        "_is_lingering",
        "_is_paused",
        "_is_peer_slow",
        "_is_read",
        "_is_turn_over",
        "_loop",
        "_options",
        "_state",
        "_strangers",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: ProtocolFactory,
        options: WebSocketOptions,
        strangers: Strangers,
    ) -> None:
        """Wait for a connection.

        Args:
            loop: the running loop.
            factory: makes the protocol above once the WebSocket connection is open.
            options: what is allowed.
            strangers: of the edge.
        """
        self._loop = loop
        self._factory = factory
        self._options = options
        self._strangers = strangers
        self._state = OPENING
        self._handshake: Handshake | None = Handshake(options)
        self._core: Protocol
        self._above: ByteProtocol | None = None
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._address: Address | None = None
        self._has_answered = False
        self._is_paused = False
        """The protocol above does not want to read."""
        self._is_held = False
        """The peer pings without reading our pongs."""
        self._is_turn_over = False
        """The peer had its part of this loop turn."""
        self._is_read = True
        self._is_peer_slow = False
        self._is_lingering = False
        """All was said; what still comes is not looked at."""

    # --- protocol of the socket ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of the socket."""
        self._transport = cast("asyncio.Transport", transport)
        self._timer = self._loop.call_later(self._options.handshake_timeout_s, self._on_timer)
        self._strangers.enter(self, self._transport)

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Return where to read to; see `asyncio.BufferedProtocol`."""
        return _buffer

    def buffer_updated(self, size: int) -> None:
        """Take bytes of the peer; there may be more than fit, which wait until others had their turn."""
        self.data_received(bytes(memoryview(_buffer)[:size]))
        if size == READ_BYTES and self._state is OPEN:
            self._is_turn_over = True
            self._loop.call_later(0, self._on_turn)
            self._read_or_pause()

    def _on_turn(self) -> None:
        self._is_turn_over = False
        self._read_or_pause()

    def data_received(self, data: bytes) -> None:
        """Take bytes of the peer."""
        if self._state is OPEN:
            self._core.receive_data(data)
            self._take_frames()
        elif self._state is OPENING and self._handshake is not None:
            result = self._handshake.feed(data)
            if result is not None:
                self._handshake = None
                self._answer(result)
        elif self._state is CLOSING and not self._is_lingering:
            self._await_close(data)

    def eof_received(self) -> bool:
        """Close our side too."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the socket is gone."""
        core = getattr(self, "_core", None)  # only one that was opened has it
        if core is not None:
            core.parser.close()  # see `Handshake`
        self._state = CLOSED
        self._stop_timer()
        self._strangers.leave(self)
        self._lose(error)
        self._transport = CLOSED_TRANSPORT

    def pause_writing(self) -> None:
        """Note that the peer reads too slowly."""
        self._is_peer_slow = True
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Note that the peer has caught up."""
        self._is_peer_slow = False
        self._is_held = False
        self._read_or_pause()
        if self._above is not None:
            self._above.resume_writing()

    # --- transport of the protocol above -------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send `data` as one binary message."""
        if self._state is not OPEN or self._core.state is not CORE_OPEN:
            return
        if not self._has_answered:
            self._has_answered = True
            self._core.max_message_size = self._options.max_message_bytes
        self._core.send_binary(data)
        self._write_out()

    def close(self) -> None:
        """Start the closing handshake after what was written."""
        if self._state is not OPEN or self._core.state is not CORE_OPEN:
            return  # behind a close frame of the peer, `_take_frames` ends it
        self._core.send_close(CloseCode.NORMAL_CLOSURE)
        self._end()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or being closed."""
        return self._state is not OPEN or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Read no more of the socket; what was read already is passed on."""
        if self._state is OPEN:
            self._is_paused = True
            self._read_or_pause()

    def resume_reading(self) -> None:
        """Read again."""
        if self._state is OPEN:
            self._is_paused = False
            self._read_or_pause()

    def is_reading(self) -> bool:
        """Return whether the socket is read."""
        return self._state is OPEN and self._is_read

    def _read_or_pause(self) -> None:
        """Read the socket unless there is a reason not to; of one that is being closed, all that comes."""
        is_read = self._state is not OPEN or not (self._is_paused or self._is_held or self._is_turn_over)
        if is_read is not self._is_read and not self._transport.is_closing():
            self._is_read = is_read
            if is_read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the protocol above is paused; frame headers count."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the socket did not take yet."""
        return self._transport.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        """Return false: a WebSocket connection can't be closed on one side."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """Return the peer's address, or what the socket's transport knows."""
        if name == "peername" and self._address is not None:
            return self._address
        return self._transport.get_extra_info(name, default)

    # --- opening -------------------------------------------------------------------------------

    def _answer(self, result: HandshakeResult) -> None:
        self._stop_timer()
        self._transport.write(result.response)
        if not result.is_open:
            logger.info(
                "websocket refused",
                extra={"address": str(self._transport.get_extra_info("peername")), "reason": result.reason},
            )
            self._linger()
            return
        self._strangers.leave(self)
        # A core of its own for the frames: that of the handshake keeps the request, several KB, for good.
        self._core = Protocol(Side.SERVER, max_size=self._options.max_first_message_bytes, logger=LIBRARY_LOGGER)
        self._address = result.forwarded_for
        self._state = OPEN
        self._above = self._factory()
        self._above.connection_made(cast("asyncio.BaseTransport", self))
        if self._is_peer_slow:
            self._above.pause_writing()
        if result.rest and self._state is OPEN:
            self.data_received(result.rest)

    # --- frames --------------------------------------------------------------------------------

    def _take_frames(self) -> None:
        payloads: list[bytes] = []
        is_text = False
        pinged = False
        for frame in self._core.events_received():
            opcode = frame.opcode  # type: ignore[union-attr]  # a request comes from a ServerProtocol only
            if opcode is BINARY or opcode is CONT:
                payloads.append(frame.data)  # type: ignore[union-attr,arg-type]  # received data is bytes
            elif opcode is PING:
                pinged = True
            elif opcode is TEXT:
                is_text = True
                break
        if payloads and self._above is not None:
            self._above.data_received(payloads[0] if len(payloads) == 1 else b"".join(payloads))
        if self._state is not OPEN:
            return  # the protocol above closed; its close frame is out
        if is_text:
            self._core.fail(CloseCode.UNSUPPORTED_DATA, "MQTT is binary")
        if self._core.state is not CORE_OPEN:
            self._end_by_peer()
            return
        if pinged:
            self._write_out()
            if self._is_peer_slow:
                self._is_held = True
                self._read_or_pause()

    def _write_out(self) -> None:
        for part in self._core.data_to_send():
            # An empty part asks for the end, see `_linger`.
            if part and not self._transport.is_closing():
                self._transport.write(part)

    # --- end -----------------------------------------------------------------------------------

    def _end(self) -> None:
        """Send what the core has, the close frame last, and wait for the peer's."""
        self._state = CLOSING
        self._write_out()
        self._read_or_pause()  # for its close frame
        if self._core.eof_sent:
            self._linger()
        else:
            self._timer = self._loop.call_later(self._options.close_timeout_s, self._on_timer)

    def _end_by_peer(self) -> None:
        if self._core.close_rcvd is None:
            fault = str(self._core.parser_exc or self._core.close_sent)
            address = str(self.get_extra_info("peername"))
            logger.info("websocket fault", extra={"address": address, "error": fault})
        self._end()
        self._lose(None)

    def _await_close(self, data: bytes) -> None:
        self._core.receive_data(data)
        self._core.events_received()
        self._core.data_to_send()  # dropped: behind our close frame pongs are owed to nobody
        if self._core.eof_sent:
            self._linger()

    def _linger(self) -> None:
        """Let the peer end the connection.

        Closing with bytes unread would reset the connection, and the peer could lose the last that we sent.
        """
        self._state = CLOSING
        self._is_lingering = True
        if self._timer is None:
            self._timer = self._loop.call_later(self._options.close_timeout_s, self._on_timer)
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _on_timer(self) -> None:
        self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose(self, error: Exception | None) -> None:
        above, self._above = self._above, None
        if above is not None:
            above.connection_lost(error)
