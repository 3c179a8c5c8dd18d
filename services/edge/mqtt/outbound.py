"""A message on its way to subscribers, encoded once for all of them."""

from __future__ import annotations

from services.edge.mqtt.errors import LocalUseError
from services.edge.mqtt.first_bytes import PUBLISH
from services.edge.mqtt.primitives import encode_field, encode_remaining_length

_DUP = 0x08


class Heads:
    """What precedes packet identifier and payload in deliveries of one topic without the retain bit.

    Kept for the latest length of payload, since those of a topic often have one length.
    """

    __slots__ = ("_heads", "_length", "_topic")

    def __init__(self, topic: bytes) -> None:
        self._topic = encode_field(topic)
        self._length = -1
        self._heads: list[bytes] = []

    def get(self, qos: int, length: int) -> bytes:
        """Return the head of a delivery at `qos` with so many bytes of payload."""
        if length != self._length:
            self._length = length
            self._heads = [_head(self._topic, length, each, 0) for each in (0, 1, 2)]
        return self._heads[qos]


def _head(topic: bytes, length: int, qos: int, retain: int) -> bytes:
    size = len(topic) + length + (2 if qos else 0)
    return bytes((PUBLISH | qos << 1 | retain,)) + encode_remaining_length(size) + topic


class OutboundMessage:
    """One publication, shared by all deliveries of a fan-out.

    The retain bit is part of what is shared: a fan-out to existing subscriptions carries 0, a
    retained message sent to a new one carries 1. [MQTT-3.3.1-8], [MQTT-3.3.1-9]
    """

    __slots__ = ("_frame_qos0", "_head_qos1", "_head_qos2", "_heads", "payload", "retain", "topic")

    def __init__(self, topic: bytes, payload: bytes, retain: bool, heads: Heads | None = None) -> None:  # noqa: FBT001 - a wire field
        """Keep what is to be sent; nothing is encoded yet.

        Args:
            topic: A valid topic name in UTF-8.
            payload: Passed on as it is.
            retain: The retain bit of every delivery.
            heads: Of the topic, when many messages of it are sent.
        """
        self.topic = topic
        self.payload = payload
        self.retain = retain
        self._heads = heads
        self._frame_qos0: bytes | None = None
        self._head_qos1: bytes | None = None
        self._head_qos2: bytes | None = None

    @property
    def frame_qos0(self) -> bytes:
        """The whole PUBLISH of a QoS 0 delivery."""
        frame = self._frame_qos0
        if frame is None:
            frame = self._encode_head(0) + self.payload
            self._frame_qos0 = frame
        return frame

    def head(self, qos: int) -> bytes:
        """Return what precedes packet identifier and payload in a first delivery.

        Args:
            qos: 1 or 2.
        """
        if qos == 1:
            head = self._head_qos1
            if head is None:
                head = self._encode_head(1)
                self._head_qos1 = head
            return head
        if qos != 2:  # noqa: PLR2004 - the other QoS with an identifier
            raise LocalUseError(f"QoS {qos} has no packet identifier")
        head = self._head_qos2
        if head is None:
            head = self._encode_head(2)
            self._head_qos2 = head
        return head

    def head_dup(self, qos: int) -> bytes:
        """Return `head(qos)` with DUP set, for a repeated delivery [MQTT-3.3.1-1]."""
        head = self.head(qos)
        return bytes((head[0] | _DUP,)) + head[1:]

    def _encode_head(self, qos: int) -> bytes:
        if self._heads is not None and not self.retain:
            return self._heads.get(qos, len(self.payload))
        return _head(encode_field(self.topic), len(self.payload), qos, 1 if self.retain else 0)
