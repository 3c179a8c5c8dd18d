"""The opening handshake of a WebSocket connection, without I/O: a request in, a response out."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
from collections.abc import Sequence

from websockets.datastructures import MultipleValuesError
from websockets.exceptions import NegotiationError
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from services.edge.transports.layer import Address

MAX_HEAD_BYTES = 8192
"""Longest request head; what popular HTTP servers allow for one line."""

_END = b"\r\n\r\n"

SUBPROTOCOLS = (Subprotocol("mqtt"), Subprotocol("mqttv3.1"))
"""In order of preference (MQTT 3.1.1 section 6; the second is that of MQTT 3.1 clients)."""

LIBRARY_LOGGER = logging.getLogger(__name__).getChild("library")
# The library writes a line for each connection and each refusal; the edge has its own.
LIBRARY_LOGGER.setLevel(logging.WARNING)

_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketOptions:
    """What a WebSocket listener allows."""

    max_message_bytes: int
    """Longest message, whatever its fragments; a longer one closes the connection with 1009."""
    max_first_message_bytes: int
    """The same until the protocol above has answered for the first time: nobody is let in yet."""
    paths: tuple[str, ...] = ("/mqtt", "/")
    """Where MQTT is; any other path gets 404."""
    allowed_origins: tuple[str, ...] = ()
    """Pages that browsers may connect from, `scheme://host:port`; empty: all. Who names none is no browser: let in."""
    trust_forwarded_for: bool = False
    """Whether the last address of X-Forwarded-For is the client's; only behind a proxy that sets it."""
    handshake_timeout_s: float = 10.0
    """Seconds that the opening handshake may take."""
    close_timeout_s: float = 5.0
    """Seconds that the peer has to end the connection once we did."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeResult:
    """What came out of a complete head."""

    response: bytes
    """To be written in any case."""
    is_open: bool
    """Whether the WebSocket connection is open; otherwise the connection ends behind the response."""
    rest: bytes = b""
    """What came behind the head: frames."""
    reason: str = ""
    """Why it was refused."""
    forwarded_for: Address | None = None
    """Address that a trusted proxy named."""


class Handshake:
    """Collects the head of one request and answers it."""

    __slots__ = ("_head", "_options")

    def __init__(self, options: WebSocketOptions) -> None:
        self._options = options
        self._head = bytearray()

    def feed(self, data: bytes) -> HandshakeResult | None:
        """Take bytes; returns None while more are needed. Not called again after a result."""
        # The end may begin in what was there before; what came before is not searched again.
        searched = max(0, len(self._head) - len(_END) + 1)
        self._head += data
        end = self._head.find(_END, searched, MAX_HEAD_BYTES)
        if end >= 0:
            end += len(_END)
            return self._answer(bytes(self._head[:end]), bytes(self._head[end:]))
        if len(self._head) >= MAX_HEAD_BYTES:
            return HandshakeResult(response=_HEAD_TOO_LARGE, is_open=False, reason="request head too large")
        return None

    def _answer(self, head: bytes, rest: bytes) -> HandshakeResult:
        origins = self._options.allowed_origins
        core = ServerProtocol(
            origins=[*map(Origin, origins), None] if origins else None,
            subprotocols=SUBPROTOCOLS,
            select_subprotocol=select_subprotocol,
            logger=LIBRARY_LOGGER,
        )
        core.receive_data(head)
        forwarded_for = None
        for request in core.events_received():
            if isinstance(request, Request):
                if request.path.partition("?")[0] in self._options.paths:
                    response = core.accept(request)
                else:
                    response = core.reject(404, "MQTT is at " + " and ".join(self._options.paths) + ".\n")
                core.send_response(response)
                if self._options.trust_forwarded_for:
                    forwarded_for = forwarded_address(request)
        answer = b"".join(core.data_to_send())
        # The core holds a generator and a method of its own: a cycle of several KB.
        core.parser.close()
        core.select_subprotocol = None  # type: ignore[assignment]  # not asked any more
        if core.state is State.OPEN:
            return HandshakeResult(response=answer, is_open=True, rest=rest, forwarded_for=forwarded_for)
        reason = str(core.handshake_exc or "no such path")
        return HandshakeResult(response=answer or _BAD_REQUEST, is_open=False, reason=reason)


def select_subprotocol(_core: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Return the subprotocol to speak; a client that offers none is let in without (D).

    Raises:
        NegotiationError: the client offers only others.
    """
    if not offered:
        return None
    for subprotocol in SUBPROTOCOLS:
        if subprotocol in offered:
            return subprotocol
    raise NegotiationError("no subprotocol of MQTT offered; expected one of " + ", ".join(SUBPROTOCOLS))


def forwarded_address(request: Request) -> Address | None:
    """Return the last address of X-Forwarded-For, that which the nearest proxy saw; the port is unknown: 0."""
    try:
        value = request.headers.get("X-Forwarded-For", "")
    except MultipleValuesError:
        value = request.headers.get_all("X-Forwarded-For")[-1]
    try:
        return str(ipaddress.ip_address(value.rpartition(",")[2].strip())), 0
    except ValueError:
        return None
