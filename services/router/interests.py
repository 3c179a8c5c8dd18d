"""The interests that edges and session shards send over their links, checked against the contract."""

from __future__ import annotations

from services.common.errors import StreamContractError
from services.common.topics import InvalidTopicError, validate_topic_filter
from services.router.domain.routing import OF_SHARD, SKIPS_ACKNOWLEDGED, SKIPS_QOS0, Routing
from services.router.edge_link import EdgeLink, Kept
from weimq.router.v1 import router_pb2

CLIENT = "client_id"
"""Interest of a target that is one client."""


class Interests:
    """Enters the targets of edges and shards into the routing.

    Args:
        routing: finds them again.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def add(self, edge: EdgeLink, target: router_pb2.Target) -> bool:
        """Add a target; returns whether it is a topic filter.

        Raises:
            StreamContractError: it is not acceptable.
        """
        target_id = target.target_id
        interest = target.WhichOneof("interest")
        is_client = interest == CLIENT
        name = target.client_id if is_client else target.topic_filter
        instance_id, share_name, kind = target.instance_id, target.share_name, _kind(edge, target)
        kept = (interest or "", instance_id, name, share_name, kind)
        known = edge.targets.get(target_id)
        if edge.snapshot is not None:
            edge.snapshot.add(target_id)
        if known is not None:
            if known == kept:
                return not is_client
            raise StreamContractError(f"target id {target_id} has another interest", rule="targets")
        _check(edge, target_id, kept)
        if is_client:
            self._routing.add_client(instance_id, name, edge.slot, target_id)
        elif share_name:
            self._routing.add_member(instance_id, share_name, name, edge.slot, target_id)
        else:
            self._routing.add_filter(instance_id, name, edge.slot, target_id, kind)
        edge.targets[target_id] = kept
        return not is_client

    def remove(self, edge: EdgeLink, target_id: int) -> None:
        """Remove a target; nothing happens when there is none."""
        kept = edge.targets.pop(target_id, None)
        if kept is None:
            return
        interest, instance_id, name, share_name, kind = kept
        if interest == CLIENT:
            self._routing.remove_client(instance_id, name, edge.slot, target_id)
        elif share_name:
            self._routing.remove_member(instance_id, share_name, name, edge.slot, target_id)
        else:
            self._routing.remove_filter(instance_id, name, edge.slot, target_id, kind)

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


def _check(edge: EdgeLink, target_id: int, kept: Kept) -> None:
    interest, _, name, share_name, kind = kept
    if not target_id or not interest:
        raise StreamContractError("a target has a positive id and an interest", rule="targets")
    if edge.is_shard:
        if interest == CLIENT or share_name or kind != OF_SHARD | SKIPS_QOS0:
            raise StreamContractError("a target of a session shard is a filter that skips QoS 0 alone", rule="targets")
    elif kind and (interest == CLIENT or share_name):
        raise StreamContractError("a filter that is not shared may skip messages, nothing else", rule="targets")
    if interest == CLIENT:
        if share_name:
            raise StreamContractError("a client is not shared", rule="targets")
        return
    check_filter(name, "targets")


def check_filter(topic_filter: str, rule: str) -> None:
    """Accept a topic filter.

    Raises:
        StreamContractError: MQTT does not allow it.
    """
    try:
        validate_topic_filter(topic_filter)
    except InvalidTopicError as error:
        raise StreamContractError(str(error), rule=rule) from error
