"""The control packets of MQTT 3.1.1 as plain values.

Attribute names are the standard's. Instances are not checked on construction: the decoder builds
valid ones only, and `encode` refuses what the wire cannot carry. They are mutable for speed, but
nobody changes one. Representations hide passwords and payloads, so that they may be logged.
"""

from __future__ import annotations

import enum
from typing import ClassVar, TypeAlias

from services.edge.mqtt.answers import AnswerRun, PubRelRun
from services.edge.mqtt.first_bytes import PUBACK, PUBREC
from services.edge.mqtt.outbound import Heads, OutboundMessage
from services.edge.mqtt.packet_base import PacketBase
from services.edge.mqtt.primitives import IDENTIFIERS_HIGH, IDENTIFIERS_LOW

_PUBACK = bytes((PUBACK, 2, 0, 0))
_PUBREC = bytes((PUBREC, 2, 0, 0))
"""With room for the packet identifier."""

SUBACK_FAILURE = 0x80
"""SUBACK return code of a filter that was not granted."""


class ConnectReturnCode(enum.IntEnum):
    """Return codes of CONNACK (MQTT 3.1.1 section 3.2.2.3)."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL_VERSION = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    BAD_USER_NAME_OR_PASSWORD = 4
    NOT_AUTHORIZED = 5


class Will(PacketBase):
    """The message that the server publishes when the connection ends without DISCONNECT."""

    __slots__ = ("payload", "qos", "retain", "topic")

    fields: ClassVar[tuple[str, ...]] = ("topic", "payload", "qos", "retain")

    def __init__(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:  # noqa: FBT001 - a wire field
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain


class Connect(PacketBase):
    """CONNECT. For a protocol level that we do not speak, only `protocol_level` is filled in."""

    __slots__ = (
        "clean_session",
        "client_id",
        "keep_alive_s",
        "password",
        "protocol_level",
        "username",
        "will",
    )

    fields: ClassVar[tuple[str, ...]] = (
        "protocol_level",
        "client_id",
        "clean_session",
        "keep_alive_s",
        "username",
        "password",
        "will",
    )

    def __init__(
        self,
        protocol_level: int,
        client_id: str,
        clean_session: bool,  # noqa: FBT001 - a wire field
        keep_alive_s: int,
        username: str | None,
        password: bytes | None,
        will: Will | None,
    ) -> None:
        self.protocol_level = protocol_level
        self.client_id = client_id
        self.clean_session = clean_session
        self.keep_alive_s = keep_alive_s
        self.username = username
        self.password = password
        self.will = will


class ConnAck(PacketBase):
    """CONNACK."""

    __slots__ = ("return_code", "session_present")

    fields: ClassVar[tuple[str, ...]] = ("session_present", "return_code")

    def __init__(self, session_present: bool, return_code: int) -> None:  # noqa: FBT001 - a wire field
        self.session_present = session_present
        self.return_code = return_code


class Publish(PacketBase):
    """PUBLISH; `packet_identifier` is 0 if and only if `qos` is 0."""

    __slots__ = ("dup", "packet_identifier", "payload", "qos", "retain", "topic")

    fields: ClassVar[tuple[str, ...]] = (
        "topic",
        "payload",
        "qos",
        "retain",
        "dup",
        "packet_identifier",
    )

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,  # noqa: FBT001 - a wire field
        dup: bool,  # noqa: FBT001 - a wire field
        packet_identifier: int,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_identifier = packet_identifier


class PublishRun(PacketBase):
    """PUBLISH packets of one QoS and topic, without flags and of equal length, one behind another as they came.

    Only a decoder that was told to makes these: who passes them on has the work of one packet.
    """

    __slots__ = (
        "_messages",
        "_renumbered",
        "_renumbered_first",
        "count",
        "frames",
        "identifiers",
        "payload_bytes",
        "qos",
        "topic",
    )

    fields: ClassVar[tuple[str, ...]] = ("topic", "frames", "count", "payload_bytes", "identifiers")

    def __init__(
        self, topic: str, frames: bytes, count: int, payload_bytes: int, identifiers: list[int] | None = None
    ) -> None:
        self.topic = topic
        self.frames = frames
        """The packets, all of one length."""
        self.count = count
        """How many they are."""
        self.payload_bytes = payload_bytes
        """Length of each payload, with which a packet ends."""
        self.qos = frames[0] >> 1 & 3
        self.identifiers = identifiers
        """At QoS 1 and 2 the packet identifier of each; None: they are of QoS 0, or came from a router."""
        self._messages: list[OutboundMessage] | None = None
        self._renumbered = b""
        self._renumbered_first = 0

    def payloads(self) -> list[bytes]:
        """Return the payload of each packet."""
        frames = self.frames
        step = len(frames) // self.count
        return [frames[stop - self.payload_bytes : stop] for stop in range(step, len(frames) + 1, step)]

    def publications(self) -> list[Publish]:
        """Return the packets that a client sent one by one."""
        topic = self.topic
        if self.identifiers is None:
            return [Publish(topic, payload, 0, False, False, 0) for payload in self.payloads()]  # noqa: FBT003 - no flags
        frames = self.frames
        step = len(frames) // self.count
        stop = 0
        publications = []
        for number in self.identifiers:
            stop += step
            payload = frames[stop - self.payload_bytes : stop]
            publications.append(Publish(topic, payload, self.qos, False, False, number))  # noqa: FBT003 - no flags
        return publications

    def messages(self) -> list[OutboundMessage]:
        """Return what subscribers get that can't take the packets together; made once for all of them."""
        messages = self._messages
        if messages is None:
            topic = self.topic.encode()
            heads = Heads(topic)
            messages = [OutboundMessage(topic, payload, False, heads) for payload in self.payloads()]  # noqa: FBT003 - RETAIN
            self._messages = messages
        return messages

    def renumbered(self, first: int) -> bytes:
        """Return packets of QoS 1 or 2 with packet identifiers that begin with `first` and follow one another.

        The latest ones are kept: subscribers that came together are given the same.
        """
        if first != self._renumbered_first:
            frames = bytearray(self.frames)
            count = self.count
            step = len(frames) // count
            place = step - self.payload_bytes - 2
            frames[place::step] = IDENTIFIERS_HIGH[first : first + count]
            frames[place + 1 :: step] = IDENTIFIERS_LOW[first : first + count]
            self._renumbered = bytes(frames)
            self._renumbered_first = first
        return self._renumbered

    def acknowledgements(self) -> bytes:
        """Return the PUBACK packets for packets of QoS 1, the PUBREC packets for those of QoS 2."""
        frames = self.frames
        count = self.count
        step = len(frames) // count
        place = step - self.payload_bytes - 2
        packets = bytearray((_PUBACK if self.qos == 1 else _PUBREC) * count)
        packets[2::4] = frames[place::step]
        packets[3::4] = frames[place + 1 :: step]
        return bytes(packets)


class PubAck(PacketBase):
    """PUBACK, the answer to a PUBLISH of QoS 1."""

    __slots__ = ("packet_identifier",)

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier",)

    def __init__(self, packet_identifier: int) -> None:
        self.packet_identifier = packet_identifier


class PubRec(PacketBase):
    """PUBREC, the answer to a PUBLISH of QoS 2."""

    __slots__ = ("packet_identifier",)

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier",)

    def __init__(self, packet_identifier: int) -> None:
        self.packet_identifier = packet_identifier


class PubRel(PacketBase):
    """PUBREL, the answer to PUBREC."""

    __slots__ = ("packet_identifier",)

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier",)

    def __init__(self, packet_identifier: int) -> None:
        self.packet_identifier = packet_identifier


class PubComp(PacketBase):
    """PUBCOMP, the answer to PUBREL."""

    __slots__ = ("packet_identifier",)

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier",)

    def __init__(self, packet_identifier: int) -> None:
        self.packet_identifier = packet_identifier


class Subscribe(PacketBase):
    """SUBSCRIBE; `filters` pairs each topic filter with its requested QoS, in wire order."""

    __slots__ = ("filters", "packet_identifier")

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier", "filters")

    def __init__(self, packet_identifier: int, filters: list[tuple[str, int]]) -> None:
        self.packet_identifier = packet_identifier
        self.filters = filters


class SubAck(PacketBase):
    """SUBACK; one return code per filter (granted QoS or `SUBACK_FAILURE`), in request order."""

    __slots__ = ("packet_identifier", "return_codes")

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier", "return_codes")

    def __init__(self, packet_identifier: int, return_codes: list[int]) -> None:
        self.packet_identifier = packet_identifier
        self.return_codes = return_codes


class Unsubscribe(PacketBase):
    """UNSUBSCRIBE."""

    __slots__ = ("filters", "packet_identifier")

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier", "filters")

    def __init__(self, packet_identifier: int, filters: list[str]) -> None:
        self.packet_identifier = packet_identifier
        self.filters = filters


class UnsubAck(PacketBase):
    """UNSUBACK."""

    __slots__ = ("packet_identifier",)

    fields: ClassVar[tuple[str, ...]] = ("packet_identifier",)

    def __init__(self, packet_identifier: int) -> None:
        self.packet_identifier = packet_identifier


class PingReq(PacketBase):
    """PINGREQ."""

    __slots__ = ()


class PingResp(PacketBase):
    """PINGRESP."""

    __slots__ = ()


class Disconnect(PacketBase):
    """DISCONNECT: the client ends the connection in good order."""

    __slots__ = ()


Packet: TypeAlias = (
    Connect
    | ConnAck
    | Publish
    | PublishRun
    | PubAck
    | AnswerRun
    | PubRec
    | PubRel
    | PubRelRun
    | PubComp
    | Subscribe
    | SubAck
    | Unsubscribe
    | UnsubAck
    | PingReq
    | PingResp
    | Disconnect
)
