"""Published messages on their way to a log: what is remembered of each, and the headers that it gets there."""

from __future__ import annotations

from services.common.log_wire import header_lines
from services.common.subjects import P2P_HEADER, P2P_KEPT, P2P_ONLINE, TOPIC_HEADER, encode_topic
from services.router.domain.columns import CLEAN_SESSION, DELIVERED, P2P, QOS, Columns
from services.router.domain.routing import Route
from services.router.ports import Source
from weimq.router.v1 import router_pb2

MAX_LINES = 65_536
"""Header lines remembered; beyond, all are forgotten and made anew."""
MAX_REMEMBERED = 512
"""Longest topic and client id, together, whose lines are remembered, in characters: so hostile ones fill no memory."""

_QOS_TEXT = ("0", "1", "2")


class Publication:
    """A message of QoS 1 or 2 on its way to the log, or to the stream of kept messages."""

    __slots__ = (
        "in_kept",
        "instance_id",
        "is_delivered",
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
        flags: int,
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
        self.qos = flags & QOS
        self.is_delivered = flags & DELIVERED != 0
        self.sequence = sequence
        self.retained_by = retained_by
        self.in_kept = in_kept
        self.shown_topic = shown_topic  # empty: `topic`


class HeaderLines:
    """The properties of messages as header lines, product.md section 3.4, remembered since they repeat."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, str, int, str], bytes] = {}

    def of(
        self,
        route: Route,
        flags: int,
        topic_flags: int,
        client_id: str,
        origin: str,
        shown_topic: str,
        in_kept: bool,  # noqa: FBT001 - hot path
    ) -> bytes:
        """Return the lines for a message, without its id.

        Args:
            route: of its topic.
            flags: of the message.
            topic_flags: of the topic.
            client_id: of the publisher.
            origin: value of `mqttOrigin`; empty: none.
            shown_topic: value of `mqttRealTopic`; empty: none.
            in_kept: it goes to the stream of kept messages, and not to the log of its topic.
        """
        if shown_topic or in_kept or topic_flags & P2P:
            is_p2p = topic_flags & P2P != 0
            return _lines(route, flags, client_id, origin, shown_topic, is_p2p=is_p2p, in_kept=in_kept)
        key = (route.instance_id, route.topic, client_id, flags & (QOS | CLEAN_SESSION), origin)
        lines = self._lines.get(key)
        if lines is None:
            lines = _lines(route, flags, client_id, origin, "", is_p2p=False, in_kept=False)
            if len(route.topic) + len(client_id) <= MAX_REMEMBERED:
                if len(self._lines) >= MAX_LINES:
                    self._lines.clear()
                self._lines[key] = lines
        return lines


def _lines(
    route: Route, flags: int, client_id: str, origin: str, shown_topic: str, *, is_p2p: bool, in_kept: bool
) -> bytes:
    headers = {
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
    if in_kept:
        headers[TOPIC_HEADER] = encode_topic(route.topic)
    elif route.subject and route.topic_header:  # the subject tells whether one is needed
        headers[TOPIC_HEADER] = route.topic_header
    return header_lines(headers)


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
