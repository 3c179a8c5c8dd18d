"""The short way of a message: which edge may deliver which topics by itself, and how that ends in time.

For topics with a log an edge serves its own subscribers only (`services.edge.local_delivery`), and nothing of that is
remembered here.

An edge asks for topics without a log that it publishes to, see `services.edge.short_way`. It may serve those whose
every subscriber it has. When one comes elsewhere, the route is revoked, and the frame with that subscription is
confirmed only after the revocation is: so the SUBACK comes when no message can miss the new subscriber. An edge
that does not confirm is waited for as with deliveries, until it is given up.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import StreamContractError
from services.common.topics import matches
from services.router.domain.outbox import Receipt
from services.router.domain.routing import Routing
from services.router.edge_link import EdgeLink
from services.router.shards import Shards
from weimq.router.v1 import router_pb2

MAX_ROUTES = 16_384
"""Topics that one edge may serve at a time; an edge asks for no more than a quarter of them."""

WILDCARDS = frozenset("+#")


class _Fence:
    """The confirmation of one edge's frames, until routes of others are revoked."""

    __slots__ = ("_edge",)

    def __init__(self, edge: EdgeLink) -> None:
        self._edge = edge
        edge.fences += 1

    def acknowledge(self, _sequence: int) -> None:
        """Note that nobody takes the short way past the edge any more; see `domain.outbox.Publisher`."""
        self._edge.fences -= 1
        self._edge.go_on()


class ShortWay:
    """Routes that edges have. Owned by one event loop.

    Args:
        routing: finds the subscribers.
        edges: by slot.
        shards: as long as one is unknown, nobody knows what is to be kept.
    """

    def __init__(self, routing: Routing, edges: Sequence[EdgeLink | None], shards: Shards) -> None:
        self._routing = routing
        self._edges = edges
        self._shards = shards
        # By instance and parent topic: the slots of the edges that have a route of each topic.
        self._granted: dict[tuple[str, str], dict[str, set[int]]] = {}
        self._counts: dict[int, int] = {}

    def answer(self, edge: EdgeLink, question: router_pb2.RouteQuestion, *, is_begun: bool) -> None:
        """Answer the question of an edge.

        Raises:
            StreamContractError: the topic is not acceptable.
        """
        instance_id, topic = question.instance_id, question.topic
        try:
            route = self._routing.route(instance_id, topic, is_p2p=False)
        except ValueError as error:
            raise StreamContractError(str(error), rule="route_questions") from error
        slot = edge.slot
        legs = [leg for leg in route.legs if leg.slot == slot]
        is_local = is_begun and not edge.is_shard
        if question.is_logged:  # whether none of its targets skips any messages
            is_local = is_local and legs == [leg for leg in route.acknowledged_legs if leg.slot == slot]
        else:
            is_local = (
                is_local
                and not self._shards.unknown
                and route.is_plain
                and route.legs is route.acknowledged_legs
                and len(legs) == len(route.legs)
                and self._counts.get(slot, 0) < MAX_ROUTES
            )
        answer = router_pb2.RouteAnswer(
            instance_id=instance_id, topic=topic, is_local=is_local, is_logged=question.is_logged
        )
        if is_local:
            for leg in legs:
                answer.target_ids.extend(leg.target_ids)
        if is_local and not question.is_logged:
            slots = self._granted.setdefault((instance_id, topic.partition("/")[0]), {}).setdefault(topic, set())
            if slot not in slots:
                slots.add(slot)
                self._counts[slot] = self._counts.get(slot, 0) + 1
        edge.answer_route(answer)

    def revoke(self, edge: EdgeLink, targets: Sequence[router_pb2.Target]) -> None:
        """Revoke the routes of other edges that new filters of this edge or shard select; its frame waits for that."""
        receipt: Receipt | None = None
        for target in targets:
            for key in self._keys(target.instance_id, target.topic_filter):
                topics = self._granted[key]
                for topic in [each for each in topics if matches(target.topic_filter, each)]:
                    for slot in topics[topic] - {edge.slot}:
                        other = self._edges[slot]
                        assert other is not None  # noqa: S101 - `leave` forgets the routes of an edge
                        if receipt is None:
                            receipt = Receipt(_Fence(edge), 0, 1)
                        receipt.waiting += 1
                        other.revoke_route(router_pb2.RouteQuestion(instance_id=key[0], topic=topic), receipt)
                        self._forget(key, topic, slot)
        if receipt is not None:
            receipt.settle()

    def leave(self, edge: EdgeLink) -> None:
        """Forget the routes of an edge that is gone or starts anew."""
        if not self._counts.pop(edge.slot, 0):
            return
        for key in list(self._granted):
            for topic in list(self._granted[key]):
                self._forget(key, topic, edge.slot)

    def _keys(self, instance_id: str, topic_filter: str) -> list[tuple[str, str]]:
        parent = topic_filter.partition("/")[0]
        if parent not in WILDCARDS:
            return [(instance_id, parent)] if (instance_id, parent) in self._granted else []
        return [key for key in self._granted if key[0] == instance_id]

    def _forget(self, key: tuple[str, str], topic: str, slot: int) -> None:
        topics = self._granted[key]
        slots = topics[topic]
        if slot in slots:
            slots.discard(slot)
            if slot in self._counts:
                self._counts[slot] -= 1
        if not slots:
            del topics[topic]
            if not topics:
                del self._granted[key]
