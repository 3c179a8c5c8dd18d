"""The logs that have more to store than they should, and who is told.

Edges let clients wait that publish to a full log, so that a log that is stuck, or busy, slows nobody else. The bounds
of `services.router.pressure` stay behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from services.common.subjects import KEPT, OUT, kept_instance, log_topic
from services.router.edge_link import EdgeLink

logger = logging.getLogger(__name__)


class FullLogs:
    """Logs that are full. Owned by one event loop.

    Args:
        edges: returns those that take part, and shards.
    """

    def __init__(self, edges: Callable[[], Iterable[EdgeLink]]) -> None:
        self._edges = edges
        self.logs: set[tuple[str, str]] = set()
        """Instance and parent topic of each; no parent topic: the stream of kept messages of the instance."""
        self.on_room: Callable[[], None] = lambda: None
        """Called when one has room again."""

    def note(self, lane: str, is_full: bool) -> None:  # noqa: FBT001 - LogWriter's
        """Note that a lane of the log writer is full, or has room again."""
        if lane.startswith(f"{OUT}."):
            log = log_topic(lane)
        elif lane.startswith(f"{KEPT}."):
            log = (kept_instance(lane), "")
        else:
            return  # retained messages, or those that nobody publishes
        if is_full:
            self.logs.add(log)
            logger.warning("log is full, its publishers wait", extra={"instance_id": log[0], "parent_topic": log[1]})
        else:
            self.logs.discard(log)
            self.on_room()
        for edge in self._edges():
            if not edge.is_shard:
                edge.tell(log, is_full=is_full)

    def has(self, instance_id: str, topic: str) -> bool:
        """Return whether the log of a topic's parent is full."""
        return bool(self.logs) and (instance_id, topic.partition("/")[0]) in self.logs

    def tell_all(self, edge: EdgeLink) -> None:
        """Tell an edge that starts anew."""
        for log in self.logs:
            edge.tell(log, is_full=True)
