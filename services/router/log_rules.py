"""What the log writer asks about its lanes, answered by what exists."""

from __future__ import annotations

from services.common.subjects import KEPT, OUT, log_stream, log_topic
from services.router.auth_watch import AuthWatch


class LogRules:
    """Which message logs are ordered, and which are gone.

    Args:
        watch: knows the parent topics.
    """

    def __init__(self, watch: AuthWatch) -> None:
        self._watch = watch

    def is_ordered(self, lane: str) -> bool:
        """Return whether a lane is the log of a topic of message type `ordered`, or may be one.

        Kept messages are ordered as well: a position of theirs stands for all before it.
        """
        if lane.startswith(f"{KEPT}."):
            return True
        topic = _topic(lane)
        catalog = self._watch.catalog
        return topic is not None and (catalog is None or catalog.is_ordered(*topic))

    def is_ours(self, lane: str) -> bool:
        """Return whether only this router writes to the stream of a lane: not so for retained and dead messages."""
        return lane.startswith((f"{OUT}.", f"{KEPT}."))

    def stream_of(self, lane: str) -> str:
        """Return the stream of a lane that is a message log, where repeats are looked for; else nothing."""
        topic = _topic(lane)
        return "" if topic is None else log_stream(*topic)

    def is_gone(self, lane: str) -> bool:
        """Return whether a lane is the log of a topic that was deleted."""
        topic = _topic(lane)
        catalog = self._watch.catalog
        return topic is not None and catalog is not None and not catalog.has_log(*topic)


def _topic(lane: str) -> tuple[str, str] | None:
    return log_topic(lane) if lane.startswith(f"{OUT}.") else None
