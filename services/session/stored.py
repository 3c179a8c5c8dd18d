"""What the messages of logs say of themselves, by their subject and headers (product.md 3.4)."""

from __future__ import annotations

from typing import NamedTuple

from services.common import subjects
from services.common.log_reader import StoredMessage


class Published(NamedTuple):
    """A publication as its log has it."""

    topic: str
    """By which it is routed."""
    shown_topic: str
    """That clients see."""
    qos: int
    p2p: str
    """What its router decided about a P2P message, see `subjects.P2P_HEADER`; empty: it is none."""


def parse(message: StoredMessage) -> Published:
    """Return what a message of a log, or of a stream of kept messages, says of itself.

    Raises:
        ValueError: it is not understood.
    """
    headers = message.headers
    topic = subjects.message_topic(message.subject, headers.get(subjects.TOPIC_HEADER))[1]
    return Published(
        topic,
        headers.get("mqttRealTopic") or topic,
        int(headers.get("qoslevel", "0")),
        headers.get(subjects.P2P_HEADER, ""),
    )
