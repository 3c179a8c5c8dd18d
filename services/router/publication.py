"""Published messages on their way to a log: what is remembered of each, and the headers that it gets there."""

from __future__ import annotations

from services.common.subjects import P2P_HEADER, P2P_KEPT, P2P_ONLINE
from services.router.domain.columns import CLEAN_SESSION, P2P, QOS, Columns
from services.router.domain.routing import Route
from services.router.ports import Source
from weimq.router.v1 import router_pb2

_QOS_TEXT = ("0", "1", "2")


class Publication:
    """A message of QoS 1 or 2 on its way to the log, or to the stream of kept messages."""

    __slots__ = (
        "in_kept",
        "instance_id",
        "is_kept_p2p",
        "is_p2p",
        "payload",
        "qos",
        "retained_by",
        "sequence",
        "shown_topic",
        "source",
        "topic",
    )

    def __init__(
        self,
        source: Source,
        route: Route,
        payload: bytes,
        qos: int,
        sequence: int,
        retained_by: str | None,
        topic_flags: int,
        in_kept: bool,  # noqa: FBT001 - hot path
        shown_topic: str,
    ) -> None:
        self.source = source
        self.instance_id = route.instance_id
        self.topic = route.topic
        self.is_p2p = topic_flags & P2P != 0
        self.is_kept_p2p = route.is_kept
        self.payload = payload
        self.qos = qos
        self.sequence = sequence
        self.retained_by = retained_by
        self.in_kept = in_kept
        self.shown_topic = shown_topic  # empty: `topic`


def headers_of(
    route: Route, flags: int, client_id: str, message_id: str, origin: str, shown_topic: str, *, is_p2p: bool
) -> dict[str, str]:
    """Return the properties of a message as headers, product.md section 3.4, and what was decided about a P2P one."""
    headers = {
        "Nats-Msg-Id": message_id,
        "qoslevel": _QOS_TEXT[flags & QOS],
        "cleansessionflag": "true" if flags & CLEAN_SESSION else "false",
        "clientId": client_id,
    }
    if route.second_topic:
        headers["mqttSecondTopic"] = route.second_topic
    if origin:
        headers["mqttOrigin"] = origin
    if is_p2p:  # a shard that reads the log has nothing else to tell it by
        headers[P2P_HEADER] = P2P_KEPT if route.is_kept else P2P_ONLINE
    if shown_topic:
        headers["mqttRealTopic"] = shown_topic
    return headers


def columns_of(batch: router_pb2.PublishBatch) -> Columns:
    """Return the columns of a batch.

    Raises:
        StreamContractError: they do not fit together.
    """
    return Columns(
        instances=list(batch.instances),
        topics=list(batch.topics),
        topic_instances=list(batch.topic_instances),
        topic_flags=batch.topic_flags,
        publishers=list(batch.publishers),
        topic_indexes=list(batch.topic_indexes),
        sequences=list(batch.sequences),
        payloads=list(batch.payloads),
        flags=batch.flags,
        publisher_indexes=list(batch.publisher_indexes),
        run_counts=list(batch.run_counts),
        run_payload_bytes=list(batch.run_payload_bytes),
    )
