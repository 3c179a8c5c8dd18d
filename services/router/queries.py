"""Answers to queries for retained messages, a part at a time so that neither memory nor the event loop suffers.

A query waits as its text. When its turn comes, the topics it selects are listed, and their messages follow as the edge
confirms what it got before. What is sent is always the message that is retained at that moment: one that came after the
query may reach the edge live and once more as a retained one, but never an older one after a newer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.router.domain.columns import RETAIN
from services.router.domain.retained import RetainedTopic
from services.router.domain.routing import Leg
from services.router.retained import Retained

if TYPE_CHECKING:
    from services.router.edge_link import EdgeLink

QUERY_BYTES = 256
"""What a waiting query takes beside its text, roughly."""
STEP_MESSAGES = 1_024
"""Deliveries after which the next query has its turn to be looked at."""
MAX_WORK = 8_192
"""Deliveries, and levels looked at, in one go; the next go follows a confirmation."""


class Query:
    """A question for the retained messages that a topic filter selects."""

    __slots__ = ("instance_id", "position", "query_id", "size", "topic_filter", "topics")

    def __init__(self, query_id: int, instance_id: str, topic_filter: str) -> None:
        self.query_id = query_id
        self.instance_id = instance_id
        self.topic_filter = topic_filter
        self.size = QUERY_BYTES + len(topic_filter)
        self.topics: list[RetainedTopic] | None = None  # None: its turn has not come
        self.position = 0


class Answers:
    """Answers queries of edges.

    Args:
        retained: the messages.
        origin: under which those of QoS 2 are delivered: not that of the publication, by which the edge would take
            them for repeats of what it had live.
        max_pending_bytes: deliveries of an edge above which its queries wait.
    """

    def __init__(self, *, retained: Retained, origin: str, max_pending_bytes: int) -> None:
        self._retained = retained
        self._origin = origin
        self._max_pending_bytes = max_pending_bytes
        self._sequence = 0

    def answer(self, edge: EdgeLink) -> None:
        """Answer queries of an edge as far as its deliveries allow; to be called again when it has confirmed some."""
        work = MAX_WORK
        while edge.queries and work > 0 and edge.delivery_bytes < self._max_pending_bytes:
            # Each turn delivers or answers something, so that a confirmation follows.
            query = edge.queries[0]
            if query.topics is None:
                query.topics, visited = self._retained.match(query.instance_id, query.topic_filter)
                work -= visited
            work -= 1 + self._deliver(edge, query, query.topics)
            if query.position == len(query.topics):
                edge.answered(edge.next_query().query_id)

    def _deliver(self, edge: EdgeLink, query: Query, topics: list[RetainedTopic]) -> int:
        sent = 0
        while query.position < len(topics) and sent < STEP_MESSAGES and edge.delivery_bytes < self._max_pending_bytes:
            topic = topics[query.position]
            query.position += 1
            message = topic.message
            if message is None:  # deleted since
                continue
            leg = Leg(topic.topic, edge.slot, [query.query_id])
            self._sequence += 1
            edge.deliver(leg, message.payload, message.qos | RETAIN, self._origin, self._sequence, None)
            sent += 1
        return sent
