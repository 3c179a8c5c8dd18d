"""Tells a client that takes nothing from one that has much to take."""

from __future__ import annotations

SLOW_QUEUE = 1000
"""Waiting deliveries from which on a client must show progress: a burst alone is no fault of it."""


class StallClock:
    """How long a client has acknowledged nothing although many deliveries wait."""

    __slots__ = ("_limit_s", "_seen", "_since")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._seen = 0
        self._since = 0.0

    def is_stalled(self, now: float, waiting: int, last_identifier: int) -> bool:
        """Say whether the client had its time.

        Args:
            now: monotonic seconds.
            waiting: deliveries that wait for an acknowledgement of earlier ones.
            last_identifier: packet identifier sent last; it moves with every acknowledgement while deliveries wait.
        """
        if waiting < SLOW_QUEUE:
            return False
        if last_identifier != self._seen or not self._since:
            self._seen = last_identifier
            self._since = now
        return now - self._since >= self._limit_s
