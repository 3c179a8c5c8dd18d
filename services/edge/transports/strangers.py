"""Connections that have sent no CONNECT yet, bounded in number, and what they make us hold until they are let in.

A stranger enters with each layer that it gets to (PROXY header, TLS, WebSocket, MQTT), so the oldest is the one that
got no further for the longest time. It gives way when there are too many: whoever opens connections without end closes
its own, and a client has the time in which that many come.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from services.edge.transports.layer import TransportInfo

logger = logging.getLogger(__name__)

MAX_STRANGERS = 16_384
"""Each costs 2 to 4 KB."""
MAX_TLS_STRANGERS = 1024
"""Each costs up to 75 KB while its handshake is under way, and 25 KB behind it."""
STRANGER_BYTES = 4096
"""What any connection may make us hold before it is let in; a CONNECT seldom has more than some hundred bytes."""
STRANGERS_BYTES = 16 << 20
"""What all of those together may hold beyond that: long client ids and wills are allowed, not by the thousand."""
WARN_EVERY_S = 10.0


TLS_S = 3.0
"""What one in TLS has before others may take its place: closed sooner, those who only hold a place would come again
at once, and cost more than they did by holding it."""
WAIT_S = 0.1
"""How often those that wait for a place look again."""


class Stranger(Protocol):
    """A layer of a connection that is waiting for its peer."""

    def abort(self) -> None:
        """Close the connection at once."""


class Strangers:
    """The strangers of an edge.

    Args:
        limit: of all together.
        tls_limit: of those whose TLS handshake was started.
    """

    def __init__(self, limit: int = MAX_STRANGERS, tls_limit: int = MAX_TLS_STRANGERS) -> None:
        self._limit = limit
        self._tls_limit = tls_limit
        self._all: dict[Stranger, None] = {}
        self._tls: dict[Stranger, float] = {}
        """Each with the time from which it may be closed for another."""
        self._has_tls = False
        """Whether there ever was a handshake; without, no transport need be asked about its own."""
        self._held: dict[object, int] = {}
        self._held_bytes = 0
        self._warned_at = 0.0
        self.closed_count = 0
        """Strangers that gave way to others."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    @property
    def in_tls(self) -> int:
        """Those whose TLS handshake was started."""
        return len(self._tls)

    def enter(self, stranger: Stranger, transport: TransportInfo) -> None:
        """Add a stranger whose layer has its transport."""
        self._all[stranger] = None
        if self._has_tls and transport.get_extra_info("sslcontext") is not None:
            self.start_tls(stranger)  # it had its place, and goes on
        if len(self._all) > self._limit:
            self.close_oldest()

    def start_tls(self, stranger: Stranger) -> None:
        """Note that the TLS handshake of a stranger begins; see `tls_wait_s`."""
        self._has_tls = True
        self._tls[stranger] = time.monotonic() + TLS_S

    def tls_wait_s(self) -> float:
        """Return the seconds that the next TLS handshake has to wait; the oldest may be closed for it."""
        if len(self._tls) < self._tls_limit:
            return 0.0
        oldest, until = next(iter(self._tls.items()))
        if time.monotonic() < until:
            return WAIT_S
        self._close(oldest)
        return 0.0

    def leave(self, stranger: Stranger) -> None:
        """Note that the stranger got to the next layer, sent its CONNECT, or is gone.

        One that was closed is gone when its transport is: the end of TLS or WebSocket takes as long as the peer likes,
        within seconds, and keeps what it costs.
        """
        self._all.pop(stranger, None)
        self._tls.pop(stranger, None)

    def may_hold(self, connection: object, size: int) -> bool:
        """Note that a connection that is not let in makes us hold `size` bytes; False: it must be closed."""
        if size <= STRANGER_BYTES and connection not in self._held:
            return True
        self._held_bytes += size - self._held.get(connection, 0)
        self._held[connection] = size
        return self._held_bytes <= STRANGERS_BYTES

    def release(self, connection: object) -> None:
        """Note that a connection is let in, or gone."""
        self._held_bytes -= self._held.pop(connection, 0)

    def close_oldest(self) -> bool:
        """Close the one that got no further for the longest time; False: there is none."""
        if not self._all:
            return False
        self._close(next(iter(self._all)))
        return True

    def close_all(self) -> None:
        """Close all: the listeners are closed."""
        for stranger in list(self._all):
            self.leave(stranger)
            stranger.abort()

    def _close(self, stranger: Stranger) -> None:
        self.leave(stranger)
        stranger.abort()
        self.closed_count += 1
        now = time.monotonic()
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            extra = {"strangers": len(self._all), "in_tls": self.in_tls, "closed": self.closed_count}
            logger.warning("too many connections without CONNECT, closing the oldest", extra=extra)
