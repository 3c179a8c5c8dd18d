"""Messages of shared subscriptions: each to one member, and to another when that one's edge did not take it.

A member's edge owes a message until it has confirmed it. When the edge is given up before, the message goes to another
member, and its publisher waits on. What a client got and did not complete before it went comes back from its edge.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from services.common.errors import StreamContractError
from services.common.topics import InvalidTopicError, validate_topic_name
from services.router.domain.columns import QOS
from services.router.domain.outbox import Receipt, SharedDelivery
from services.router.domain.routing import Leg, Route, Routing
from services.router.edge_link import EdgeLink
from services.router.flooding import HIGH_BYTES as FLOOD_BYTES
from services.router.flooding import Flooding
from services.router.ports import Source
from services.router.pressure import Pressure
from weimq.router.v1 import router_pb2

logger = logging.getLogger(__name__)


class Shares:
    """Delivers to shared subscriptions.

    Args:
        routing: knows their members.
        edges: by slot.
        pressure: knows which edges should get nothing now.
        flooding: is told when too much of QoS 0 waits for an edge.
    """

    def __init__(
        self, routing: Routing, edges: Sequence[EdgeLink | None], pressure: Pressure, flooding: Flooding
    ) -> None:
        self._routing = routing
        self._edges = edges
        self._pressure = pressure
        self._flooding = flooding
        # Not that of the publication: an edge drops a message of QoS 2 that it had, whatever its targets were.
        self._origin = f"shared-{secrets.token_hex(8)}"
        self._sequence = 0
        self.dropped_messages = 0
        """Messages of QoS 1 and 2 that no member was left for."""

    def deliver(self, source: Source, route: Route, payload: bytes, qos: int, receipt: Receipt | None) -> None:
        """Send a message to one member of each shared subscription of its route; `receipt` waits for them."""
        for share in route.shares:
            leg = share.next(self._pressure.blocked)
            if leg is None:  # a route is found anew after its interests changed, so there is one
                continue
            if receipt is not None:
                receipt.waiting += 1
            edge = self._send(leg, SharedDelivery(share.group, leg.topic, payload, qos, receipt))
            if not qos and edge.qos0_bytes > FLOOD_BYTES:
                self._flooding.slow(source, edge)
            if edge.pending_bytes > self._pressure.high_bytes:
                self._pressure.hold_for_edge(source, edge)

    def hand_on(self, shared: SharedDelivery) -> None:
        """Send a message that was for a member whose edge is gone to another one."""
        group = shared.group
        share = self._routing.share(group.instance_id, group.share_name, group.topic_filter, shared.topic)
        leg = share.next(self._pressure.blocked) if share is not None else None
        if share is None or leg is None:
            self.dropped_messages += 1
            if shared.receipt is not None:
                shared.receipt.settle()
        else:
            self._send(leg, SharedDelivery(share.group, shared.topic, shared.payload, shared.qos, shared.receipt))

    def take_back(self, source: EdgeLink, returned: router_pb2.ReturnedMessages) -> None:
        """Send messages that members got and did not complete to others.

        Raises:
            StreamContractError: the columns are not acceptable.
        """
        targets = list(returned.targets)
        topics = list(returned.topics)
        _check(returned, targets, topics)
        for topic_index, target_index, payload, qos in zip(
            returned.topic_indexes, returned.target_indexes, returned.payloads, returned.flags, strict=True
        ):
            target = targets[target_index]
            topic = topics[topic_index]
            share = self._routing.share(target.instance_id, target.share_name, target.topic_filter, topic)
            leg = share.next(self._pressure.blocked) if share is not None else None
            if share is None or leg is None:
                self.dropped_messages += 1
                continue
            edge = self._send(leg, SharedDelivery(share.group, topic, payload, qos, None))
            if edge.pending_bytes > self._pressure.high_bytes:
                self._pressure.hold_for_edge(source, edge)

    def _send(self, leg: Leg, shared: SharedDelivery) -> EdgeLink:
        edge = self._edges[leg.slot]
        assert edge is not None  # noqa: S101 - for the type checker: a member leaves with its edge
        self._sequence += 1
        edge.deliver_shared(leg, shared, self._origin, self._sequence)
        return edge


def _check(returned: router_pb2.ReturnedMessages, targets: list[router_pb2.Target], topics: list[str]) -> None:
    count = len(returned.payloads)
    if not len(returned.topic_indexes) == len(returned.target_indexes) == len(returned.flags) == count:
        raise StreamContractError("the columns of returned messages differ in length", rule="returned")
    if max(returned.topic_indexes, default=-1) >= len(topics) or max(returned.target_indexes, default=-1) >= len(
        targets
    ):
        raise StreamContractError("an index of returned messages is out of range", rule="returned")
    if any(flag not in (1, QOS - 1) for flag in set(returned.flags)):
        raise StreamContractError("messages of QoS 1 and 2 come back", rule="returned")
    if not all(target.share_name and target.topic_filter for target in targets):
        raise StreamContractError("messages of shared subscriptions come back", rule="returned")
    try:
        for topic in topics:
            validate_topic_name(topic)
    except InvalidTopicError as error:
        raise StreamContractError(str(error), rule="returned") from error
