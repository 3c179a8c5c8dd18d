"""The interests that edges and session shards send over their links, checked against the contract."""

from __future__ import annotations

from services.common.errors import StreamContractError
from services.common.topics import InvalidTopicError, validate_topic_filter
from services.router.domain.routing import OF_SHARD, SKIPS_ACKNOWLEDGED, SKIPS_QOS0, Routing
from services.router.edge_link import EdgeLink
from weimq.router.v1 import router_pb2


class Interests:
    """Enters the targets of edges and shards into the routing.

    Args:
        routing: finds them again.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def add(self, edge: EdgeLink, target: router_pb2.Target) -> None:
        """Add a target.

        Raises:
            StreamContractError: it is not acceptable.
        """
        target_id = target.target_id
        known = edge.targets.get(target_id)
        if edge.snapshot is not None:
            edge.snapshot.add(target_id)
        if known is not None:
            if known == target:
                return
            raise StreamContractError(f"target id {target_id} has another interest", rule="targets")
        _check(edge, target)
        if target.HasField("client_id"):
            self._routing.add_client(target.instance_id, target.client_id, edge.slot, target_id)
        elif target.share_name:
            self._routing.add_member(target.instance_id, target.share_name, target.topic_filter, edge.slot, target_id)
        else:
            self._routing.add_filter(target.instance_id, target.topic_filter, edge.slot, target_id, _kind(edge, target))
        kept = edge.targets[target_id] = router_pb2.Target()  # `target` would keep its whole frame alive
        kept.CopyFrom(target)

    def remove(self, edge: EdgeLink, target_id: int) -> None:
        """Remove a target; nothing happens when there is none."""
        target = edge.targets.pop(target_id, None)
        if target is None:
            return
        if target.HasField("client_id"):
            self._routing.remove_client(target.instance_id, target.client_id, edge.slot, target_id)
        elif target.share_name:
            self._routing.remove_member(
                target.instance_id, target.share_name, target.topic_filter, edge.slot, target_id
            )
        else:
            self._routing.remove_filter(
                target.instance_id, target.topic_filter, edge.slot, target_id, _kind(edge, target)
            )

    def remove_all(self, edge: EdgeLink) -> None:
        """Remove the targets of an edge that is gone."""
        for target_id in list(edge.targets):
            self.remove(edge, target_id)

    def complete(self, edge: EdgeLink) -> None:
        """Remove the targets that an edge did not send again.

        Raises:
            StreamContractError: they are complete already.
        """
        if edge.snapshot is None:
            raise StreamContractError("the snapshot is complete already", rule="snapshot")
        for target_id in edge.targets.keys() - edge.snapshot:
            self.remove(edge, target_id)
        edge.snapshot = None


def _kind(edge: EdgeLink, target: router_pb2.Target) -> int:
    kind = OF_SHARD if edge.is_shard else 0
    if target.skips_qos0:
        kind |= SKIPS_QOS0
    if target.skips_acknowledged:
        kind |= SKIPS_ACKNOWLEDGED
    return kind


def _check(edge: EdgeLink, target: router_pb2.Target) -> None:
    interest = target.WhichOneof("interest")
    if not target.target_id or interest is None:
        raise StreamContractError("a target has a positive id and an interest", rule="targets")
    is_limited = target.skips_qos0 or target.skips_acknowledged
    if edge.is_shard:
        if interest == "client_id" or target.share_name or not target.skips_qos0 or target.skips_acknowledged:
            raise StreamContractError("a target of a session shard is a filter that skips QoS 0 alone", rule="targets")
    elif (interest == "client_id" or target.share_name) and is_limited:
        raise StreamContractError("a filter that is not shared may skip messages, nothing else", rule="targets")
    if interest == "client_id":
        if target.share_name:
            raise StreamContractError("a client is not shared", rule="targets")
        return
    check_filter(target.topic_filter, "targets")


def check_filter(topic_filter: str, rule: str) -> None:
    """Accept a topic filter.

    Raises:
        StreamContractError: MQTT does not allow it.
    """
    try:
        validate_topic_filter(topic_filter)
    except InvalidTopicError as error:
        raise StreamContractError(str(error), rule=rule) from error
