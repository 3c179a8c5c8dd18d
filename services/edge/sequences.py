"""Numbers of the messages that an edge gives to routers: with its incarnation they are message ids. Hot path."""

from __future__ import annotations


class Sequences:
    """Rises from 1, for all routers together."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 1

    def take(self, count: int) -> int:
        """Return the first of so many numbers, which follow one another and are used up."""
        first = self._next
        self._next = first + count
        return first
