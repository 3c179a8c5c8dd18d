"""A message of a backend application: its subject and headers as a publication (product.md section 3.4). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.subjects import in_topic
from services.router.domain.catalog import Catalog, RefusedError, check_topic
from services.router.domain.columns import CLEAN_SESSION, P2P

QOS = {"0": 0, "1": 1, "2": 2}
FLAGS = {"true": CLEAN_SESSION, "false": 0}


class InboundMessage:
    """What a message says, checked."""

    __slots__ = ("flags", "instance_id", "payload", "shown_topic", "topic", "topic_flags")

    def __init__(
        self, *, instance_id: str, topic: str, topic_flags: int, flags: int, payload: bytes, shown_topic: str
    ) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.topic_flags = topic_flags
        self.flags = flags
        self.payload = payload
        self.shown_topic = shown_topic
        """Topic that clients see instead; empty: `topic`."""


def read(subject: str, headers: Mapping[str, str], payload: bytes, catalog: Catalog) -> InboundMessage:
    """Return the publication that a message of the stream of inbound messages stands for.

    Raises:
        RefusedError: it stands for none.
    """
    try:
        instance_id, parent_topic = in_topic(subject)
    except ValueError as error:
        raise RefusedError("the subject is not `mq.in.<instance>.<parent topic>`, escaped") from error
    second_topic = headers.get("mqttSecondTopic", "")
    if second_topic and not second_topic.startswith("/"):
        raise RefusedError("header mqttSecondTopic does not begin with `/`")
    topic = parent_topic + second_topic
    topic_flags = catalog.check(instance_id, topic, len(payload))
    qos = QOS.get(headers.get("qoslevel", "1"))
    if qos is None:
        raise RefusedError("header qoslevel is not 0, 1 or 2")
    clean_session = FLAGS.get(headers.get("cleansessionflag", "true"))
    if clean_session is None:
        raise RefusedError("header cleansessionflag is neither true nor false")
    if not topic_flags & P2P:
        clean_session = CLEAN_SESSION
    shown_topic = headers.get("mqttRealTopic", "")
    if shown_topic:
        try:
            check_topic(catalog.instances[instance_id], shown_topic, is_p2p=True)
        except RefusedError as error:
            raise RefusedError(f"header mqttRealTopic: {error}") from error
    return InboundMessage(
        instance_id=instance_id,
        topic=topic,
        topic_flags=topic_flags,
        flags=qos | clean_session,
        payload=payload,
        shown_topic=shown_topic,
    )
