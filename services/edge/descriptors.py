"""File descriptors of an edge: every connection is one, and the links with the services need some, too."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from typing import cast

from services.edge.transports.layer import ByteProtocol

logger = logging.getLogger(__name__)

ENOUGH = 16_384
"""Descriptors below which the operator is warned: a default of 1,024 is an edge of 800 clients."""
RESERVE = 128
"""Descriptors that are kept for links, certificates and logs: an edge full of clients must be able to link again."""
WARN_EVERY_S = 10.0
MOST_UNSEEN = 32
"""Connections that may be let in without a look at the descriptors, while there is room for twice as many."""


def raise_limit() -> int:
    """Raise the limit of this process as far as it may and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS: the hard limit says more than the kernel allows
            hard = soft
    if hard < ENOUGH:
        logger.warning("few file descriptors: each connection needs one", extra={"limit": hard, "wanted": ENOUGH})
    return hard


class Descriptors:
    """Says whether there is room for one more connection.

    Args:
        limit: of this process.
        reserve: how many of them no connection gets.
    """

    def __init__(self, limit: int, reserve: int = RESERVE) -> None:
        self._highest = limit - reserve
        self._unseen = 0
        self._warned_at = 0.0

    def has_room(self, now: float) -> bool:
        """Return whether a connection that was just accepted may stay; `now` in monotonic seconds."""
        if self._unseen:
            self._unseen -= 1
            return True
        try:
            # The kernel gives the lowest that is free: all below it are taken.
            free = os.dup(2)
        except OSError:
            free = self._highest
        else:
            os.close(free)
        if free < self._highest:
            self._unseen = min(MOST_UNSEEN, (self._highest - free) // 2)
            return True
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            logger.warning("too many connections, closing new ones", extra={"limit": self._highest})
        return False


class Refused:
    """Protocol of a connection for which there is no room: it is closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        cast("asyncio.Transport", transport).abort()

    def data_received(self, data: bytes) -> None:
        """See `ByteProtocol`."""

    def eof_received(self) -> bool:
        """See `ByteProtocol`."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See `ByteProtocol`."""

    def pause_writing(self) -> None:
        """See `ByteProtocol`."""

    def resume_writing(self) -> None:
        """See `ByteProtocol`."""


def refuse() -> ByteProtocol:
    """Return the protocol of a connection for which there is no room."""
    return Refused()
