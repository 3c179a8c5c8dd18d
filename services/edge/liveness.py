"""Asks at TCP level whether a peer is still there (product.md section 2.4), without a byte of MQTT.

Keep-alive probes are switched on for the time of the question. The peer is alive as soon as the kernel has had an
acknowledgement since then; it is dead when none came within three seconds, be it that probes or that sent data stay
unanswered.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

DEADLINE_S = 3.0
"""How long a peer has to answer."""
LOOK_S = 0.05
"""How often the kernel is asked."""

# struct tcp_info of Linux: eight bytes of small fields, then 32-bit counters; the 13th is `tcpi_last_ack_recv`,
# milliseconds since the last acknowledgement came.
_TCP_INFO_BYTES = 104
_LAST_ACK_RECEIVED_OFFSET = 8 + 4 * 12


def probe(transport: asyncio.BaseTransport, loop: asyncio.AbstractEventLoop, answer: Callable[[bool], None]) -> None:
    """Find out whether the peer of `transport` still answers, and call `answer` once, within three seconds.

    The answer True comes early; False also when the transport is closed meanwhile. Where the kernel does not tell
    (other than Linux), a connection that is open counts as alive.
    """
    _Probe(transport, loop, answer).look()


class _Probe:
    """One question."""

    def __init__(
        self, transport: asyncio.BaseTransport, loop: asyncio.AbstractEventLoop, answer: Callable[[bool], None]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._answer = answer
        self._started = loop.time()
        self._socket: socket.socket | None = None
        if not transport.is_closing():
            self._socket = _duplicate(transport)
            if self._socket is not None:
                _set_probes(self._socket, idle_s=1)

    def look(self) -> None:
        """Answer if the answer is known, else look again a little later."""
        elapsed_s = self._loop.time() - self._started
        if self._transport.is_closing():
            self._finish(alive=False)
        elif self._socket is None or _last_acknowledgement_s(self._socket) < elapsed_s:
            self._finish(alive=True)
        elif elapsed_s >= DEADLINE_S:
            self._finish(alive=False)
        else:
            self._loop.call_later(LOOK_S, self.look)

    def _finish(self, *, alive: bool) -> None:
        if self._socket is not None:
            if alive:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            self._socket.close()
        self._answer(alive)


def _duplicate(transport: asyncio.BaseTransport) -> socket.socket | None:
    known = transport.get_extra_info("socket")
    if known is None or not hasattr(socket, "TCP_INFO"):
        return None
    return socket.fromfd(known.fileno(), known.family, known.type)


def _set_probes(sock: socket.socket, *, idle_s: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    # Last: the kernel sends the first probe at once when the connection has been idle for longer.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)


def _last_acknowledgement_s(sock: socket.socket) -> float:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (milliseconds,) = struct.unpack_from("=I", info, _LAST_ACK_RECEIVED_OFFSET)
    return float(milliseconds) / 1000
