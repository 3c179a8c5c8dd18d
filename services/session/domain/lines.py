"""Who waits for room at an edge, and in which order they have their turns. Pure, hot path.

When very many clients come back at once, each gets its first message before any gets the rest: a client that has just
connected goes ahead, and takes one message at its first turn.
"""

from __future__ import annotations

from typing import Generic, TypeVar

C = TypeVar("C")


class Line(Generic[C]):
    """Connections of one edge that have something to be fetched. Each is in it once."""

    __slots__ = ("_first", "_others")

    def __init__(self) -> None:
        self._first: dict[C, None] = {}
        self._others: dict[C, None] = {}

    def __bool__(self) -> bool:
        return bool(self._first or self._others)

    def add(self, channel: C, *, is_first: bool) -> None:
        """Have a connection wait; `is_first`: for its first turn."""
        (self._first if is_first else self._others)[channel] = None

    def pop(self) -> C:
        """Take out whose turn it is; there is somebody."""
        line = self._first or self._others
        channel = next(iter(line))
        del line[channel]
        return channel

    def discard(self, channel: C) -> None:
        """Take a connection out that ended."""
        self._first.pop(channel, None)
        self._others.pop(channel, None)
