"""QoS 0 that is too much for an edge: the edges that send it hold what they have, and slow its publishers.

What waits here for each edge is bounded by that, give or take what each other edge has under way. Messages of QoS 1 and
2, and whatever else goes over their links, go on meanwhile; `pressure` bounds those.
"""

from __future__ import annotations

from typing import Final

from services.router.edge_link import EdgeLink
from services.router.ports import Source

HIGH_BYTES: Final = 8 << 20
LOW_BYTES: Final = 4 << 20
"""Marks of the messages of QoS 0 that wait for one edge."""


class Flooding:
    """Who is slowed, and because of whom. Owned by one event loop."""

    def __init__(self) -> None:
        self._flooded: set[int] = set()
        self._slowed: list[EdgeLink] = []

    @property
    def slowed(self) -> int:
        """How many edges hold their messages of QoS 0."""
        return len(self._slowed)

    def slow(self, source: Source, edge: EdgeLink) -> None:
        """Have a source hold its messages of QoS 0 because too many wait for an edge; others than edges go on."""
        if not edge.is_flooded:
            edge.is_flooded = True
            self._flooded.add(edge.slot)
        if isinstance(source, EdgeLink) and not source.is_slowed:
            source.slow(is_slowed=True)
            self._slowed.append(source)

    def confirmed(self, edge: EdgeLink) -> None:
        """Note that less waits for an edge."""
        if edge.qos0_bytes <= LOW_BYTES:
            self._clear(edge)

    def leave(self, edge: EdgeLink) -> None:
        """Forget an edge that is gone."""
        self._clear(edge)
        if edge.is_slowed:
            self._slowed.remove(edge)

    def _clear(self, edge: EdgeLink) -> None:
        if edge.is_flooded:
            edge.is_flooded = False
            self._flooded.discard(edge.slot)
            if not self._flooded:
                slowed, self._slowed = self._slowed, []
                for each in slowed:
                    each.slow(is_slowed=False)
