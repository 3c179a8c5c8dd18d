"""Encoding of control packets, both directions.

The edge sends its deliveries through `outbound`, which encodes once per message and not once per
subscriber; this module is for everything else, for clients in tests and for load tools.
"""

# ruff: noqa: PLR2004 - bit masks and lengths of the wire format; names would hide the layout

from __future__ import annotations

from services.edge.mqtt.answers import AnswerRun, PubRelRun, answers, answers_in_order
from services.edge.mqtt.errors import LocalUseError
from services.edge.mqtt.first_bytes import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
)
from services.edge.mqtt.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PublishRun,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from services.edge.mqtt.primitives import (
    encode_field,
    encode_identifier,
    encode_remaining_length,
    encode_text,
)


def encode(packet: Packet) -> bytes:  # noqa: C901, PLR0911, PLR0912 - one branch per packet type
    """Return the bytes of one packet.

    Raises:
        LocalUseError: a value does not fit its field (too long, out of range, contradictory).
    """
    if isinstance(packet, Publish):
        return _encode_publish(packet)
    if isinstance(packet, PublishRun):
        return packet.frames
    if isinstance(packet, PubAck):
        return _encode_identified(PUBACK, packet.packet_identifier)
    if isinstance(packet, AnswerRun):
        return answers_in_order(bytes((packet.first_byte, 2)), packet.packet_identifier, packet.count)
    if isinstance(packet, PubRelRun):
        return answers(bytes((PUBREL, 2)), packet.identifiers)
    if isinstance(packet, PubRec):
        return _encode_identified(PUBREC, packet.packet_identifier)
    if isinstance(packet, PubRel):
        return _encode_identified(PUBREL, packet.packet_identifier)
    if isinstance(packet, PubComp):
        return _encode_identified(PUBCOMP, packet.packet_identifier)
    if isinstance(packet, Connect):
        return _encode_connect(packet)
    if isinstance(packet, ConnAck):
        return bytes((CONNACK, 2, packet.session_present, _byte(packet.return_code)))
    if isinstance(packet, Subscribe):
        parts = [encode_identifier(packet.packet_identifier)]
        for topic_filter, qos in packet.filters:
            parts += (encode_text(topic_filter), bytes((_qos(qos),)))
        return _frame(SUBSCRIBE, parts)
    if isinstance(packet, SubAck):
        codes = bytes([_byte(code) for code in packet.return_codes])
        return _frame(SUBACK, [encode_identifier(packet.packet_identifier), codes])
    if isinstance(packet, Unsubscribe):
        parts = [encode_identifier(packet.packet_identifier)]
        parts += [encode_text(topic_filter) for topic_filter in packet.filters]
        return _frame(UNSUBSCRIBE, parts)
    if isinstance(packet, UnsubAck):
        return _encode_identified(UNSUBACK, packet.packet_identifier)
    if isinstance(packet, PingReq):
        return bytes((PINGREQ, 0))
    if isinstance(packet, PingResp):
        return bytes((PINGRESP, 0))
    if isinstance(packet, Disconnect):
        return bytes((DISCONNECT, 0))
    raise AssertionError("the union of packets is closed")


def _frame(first: int, parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return bytes((first,)) + encode_remaining_length(len(body)) + body


def _encode_identified(first: int, packet_identifier: int) -> bytes:
    return bytes((first, 2)) + encode_identifier(packet_identifier)


def _byte(value: int) -> int:
    if not 0 <= value <= 0xFF:
        raise LocalUseError(f"{value} is no byte")
    return value


def _qos(value: int) -> int:
    if value not in (0, 1, 2):
        raise LocalUseError(f"{value} is no quality of service")
    return value


def _encode_publish(packet: Publish) -> bytes:
    qos = _qos(packet.qos)
    first = PUBLISH | qos << 1
    if packet.retain:
        first |= 0x01
    topic = encode_text(packet.topic)
    payload = packet.payload
    if qos == 0:
        if packet.dup or packet.packet_identifier:
            # [MQTT-3.3.1-2], [MQTT-2.3.1-5]
            raise LocalUseError("QoS 0 has neither DUP nor a packet identifier")
        length = len(topic) + len(payload)
        return bytes((first,)) + encode_remaining_length(length) + topic + payload
    if packet.dup:
        first |= 0x08
    return _frame(first, [topic, encode_identifier(packet.packet_identifier), payload])


def _encode_connect(packet: Connect) -> bytes:
    flags = 0x02 if packet.clean_session else 0
    payload = [encode_text(packet.client_id)]
    will = packet.will
    if will is not None:
        flags |= 0x04 | _qos(will.qos) << 3
        if will.retain:
            flags |= 0x20
        payload += (encode_text(will.topic), encode_field(will.payload))
    if packet.username is not None:
        flags |= 0x80
        payload.append(encode_text(packet.username))
    if packet.password is not None:
        if packet.username is None:
            raise LocalUseError("a password needs a user name")  # [MQTT-3.1.2-22]
        flags |= 0x40
        payload.append(encode_field(packet.password))
    if not 0 <= packet.keep_alive_s <= 0xFFFF:
        raise LocalUseError(f"{packet.keep_alive_s} is no keep alive")
    name = "MQIsdp" if packet.protocol_level == 3 else "MQTT"
    header = bytes((_byte(packet.protocol_level), flags)) + packet.keep_alive_s.to_bytes(2, "big")
    return _frame(CONNECT, [encode_text(name), header, *payload])
