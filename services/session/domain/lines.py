"""Who waits for room at an edge, and in which order they have their turns. Pure, hot path.

When very many clients come back at once, each gets its first message before any gets the rest: a client that has just
connected goes ahead, and takes one message at its first turn.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

C = TypeVar("C")


class Line(Generic[C]):
    """Connections of one edge that have something to be fetched. Each is in it once."""

    __slots__ = ("_first", "_others")

    def __init__(self) -> None:
        # Ordered ones: the first key of a plain dictionary is found in the longer a time the more were taken out.
        self._first: OrderedDict[C, None] = OrderedDict()
        self._others: OrderedDict[C, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._first or self._others)

    def add(self, channel: C, *, is_first: bool) -> None:
        """Have a connection wait; `is_first`: for its first turn."""
        (self._first if is_first else self._others)[channel] = None

    def pop(self) -> C:
        """Take out whose turn it is; there is somebody."""
        return (self._first or self._others).popitem(last=False)[0]

    def discard(self, channel: C) -> None:
        """Take a connection out that ended."""
        self._first.pop(channel, None)
        self._others.pop(channel, None)
