"""Inbound messages on their way, and those that wait for their log, so that other topics go on behind them."""

from __future__ import annotations

from collections import deque

from nats.aio.msg import Msg

Log = tuple[str, str]
"""Instance and parent topic; no parent topic: all those of the instance without a log."""


class Parking:
    """Counts what is on its way, and holds messages by the log that they wait for, each log's in order."""

    def __init__(self) -> None:
        self._waiting: dict[Log, deque[Msg]] = {}
        self._on_way: dict[Log, int] = {}

    def __contains__(self, log: Log) -> bool:
        return log in self._waiting

    @property
    def logs(self) -> list[Log]:
        """The logs that are waited for."""
        return list(self._waiting)

    @property
    def has_on_way(self) -> bool:
        """Whether messages are on their way."""
        return bool(self._on_way)

    def on_way(self, log: Log) -> int:
        """Return how many messages of a log are on their way."""
        return self._on_way.get(log, 0)

    def leave(self, log: Log) -> int:
        """Note that a message of a log is safe, and return how many are still on their way."""
        left = self._on_way.pop(log) - 1
        if left:
            self._on_way[log] = left
        return left

    def depart(self, log: Log) -> None:
        """Note that a message is on its way."""
        self._on_way[log] = self._on_way.get(log, 0) + 1

    def park(self, log: Log, message: Msg) -> None:
        """Put a message behind those that wait for a log."""
        self._waiting.setdefault(log, deque()).append(message)

    def take(self, log: Log, most: int, most_bytes: int) -> list[Msg]:
        """Return the first messages that wait for a log: at least one, then up to a number and size."""
        waiting = self._waiting[log]
        taken = [waiting.popleft()]
        size = len(taken[0].data)
        while waiting and len(taken) < most and (size := size + len(waiting[0].data)) <= most_bytes:
            taken.append(waiting.popleft())
        if not waiting:
            del self._waiting[log]
        return taken

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
        self._on_way.clear()
