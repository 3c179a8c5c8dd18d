"""Back-pressure: sources of messages are held while too much is pending somewhere.

Everything that can pile up is measured: the messages that the logs have not stored, and for each edge what it has
not confirmed. When one of these passes its high mark, frames of the edges whose messages went there are taken and not
confirmed (*held*), so that their link windows (8 MiB each) fill and they stop reading from their clients. When all
of them are below the low mark, the held frames are confirmed.
"""

from __future__ import annotations

import logging

from services.router.edge_link import EdgeLink
from services.router.ports import Log, Source

logger = logging.getLogger(__name__)


class Pressure:
    """Who is held, and because of whom. Owned by one event loop.

    Args:
        high_bytes: pending bytes above which sources are held.
        low_bytes: pending bytes below which they go on.
    """

    def __init__(self, high_bytes: int, low_bytes: int) -> None:
        self.high_bytes = high_bytes
        self._low_bytes = low_bytes
        self._log: Log | None = None
        self._held: list[Source] = []
        self._is_log_congested = False
        self._congested: set[int] = set()
        self._unlinked: set[int] = set()
        self.blocked: frozenset[int] = frozenset()
        """Slots of edges that are congested, or have no stream for now."""

    @property
    def held(self) -> int:
        """How many sources are held."""
        return len(self._held)

    def begin(self, log: Log) -> None:
        """Measure this log from now on."""
        self._log = log

    def hold(self, source: Source) -> None:
        """Confirm no more frames of a source."""
        if not source.is_held:
            source.is_held = True
            self._held.append(source)

    def written(self, source: Source) -> None:
        """Hold a source when it wrote more than the logs can store for now."""
        if self._log is not None and self._log.backlog_bytes > self.high_bytes:
            self._is_log_congested = True
            self.hold(source)

    def hold_for_edge(self, source: Source, edge: EdgeLink) -> None:
        """Hold a source because too much is pending for an edge."""
        if not edge.is_congested:
            edge.is_congested = True
            self._congested.add(edge.slot)
            self._block()
            logger.warning("edge is slow, holding its publishers", extra={"edge_id": edge.edge_id})
        self.hold(source)

    def linked(self, edge: EdgeLink, *, is_linked: bool) -> None:
        """Note that an edge has a stream, or has none for now."""
        if is_linked == (edge.slot in self._unlinked):
            if is_linked:
                self._unlinked.discard(edge.slot)
            else:
                self._unlinked.add(edge.slot)
            self._block()

    def confirmed(self, edge: EdgeLink) -> None:
        """Note that less is pending for an edge."""
        if edge.is_congested and edge.pending_bytes <= self._low_bytes:
            self._clear(edge)
            self.relieve()

    def stored(self) -> None:
        """Note that the logs have stored something."""
        if self._is_log_congested:
            self.relieve()

    def leave(self, edge: EdgeLink) -> None:
        """Forget an edge that is gone."""
        self._clear(edge)
        self.linked(edge, is_linked=True)
        self.relieve()

    @property
    def is_holding(self) -> bool:
        """Whether a source is held."""
        return bool(self._held)

    def relieve(self) -> None:
        """Let held sources go on when nothing is congested any more."""
        log = self._log
        if log is None:
            return
        if self._is_log_congested and log.backlog_bytes <= self._low_bytes:
            self._is_log_congested = False
        if self._held and not self._is_log_congested and not self._congested:
            held = self._held
            self._held = []
            for source in held:
                source.release()

    def _clear(self, edge: EdgeLink) -> None:
        if edge.is_congested:
            edge.is_congested = False
            self._congested.discard(edge.slot)
            self._block()

    def _block(self) -> None:
        self.blocked = frozenset(self._congested | self._unlinked)
