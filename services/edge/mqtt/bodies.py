"""Decoding of everything but PUBLISH, and the checks of the fixed header.

All functions read `buffer[start:stop]`, the bytes after the fixed header, and raise
MalformedPacketError. PUBLISH lives in `codec`, where the loop over a chunk is.
"""

# ruff: noqa: PLR2004 - bit masks and lengths of the wire format; names would hide the layout

from __future__ import annotations

from services.common.topics import InvalidTopicError, validate_topic_filter, validate_topic_name
from services.edge.mqtt.errors import MalformedPacketError
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
    SUBACK_FAILURE,
    ConnAck,
    Connect,
    ConnectReturnCode,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    Will,
)
from services.edge.mqtt.primitives import decode_text, read_field, read_identifier

_FIRST_BYTES = {
    first >> 4: first
    for first in (
        CONNECT,
        CONNACK,
        PUBACK,
        PUBREC,
        PUBREL,
        PUBCOMP,
        SUBSCRIBE,
        SUBACK,
        UNSUBSCRIBE,
        UNSUBACK,
        PINGREQ,
        PINGRESP,
        DISCONNECT,
    )
}
"""Packet type -> the only first byte it may have (MQTT 3.1.1 table 2.2); PUBLISH has several."""

_FLAG_REQUIREMENTS = {
    PUBREL: "MQTT-3.6.1-1",
    SUBSCRIBE: "MQTT-3.8.1-1",
    UNSUBSCRIBE: "MQTT-3.10.1-1",
    DISCONNECT: "MQTT-3.14.1-1",
}

_FIXED_LENGTHS = {
    CONNACK: 2,
    PUBACK: 2,
    PUBREC: 2,
    PUBREL: 2,
    PUBCOMP: 2,
    UNSUBACK: 2,
    PINGREQ: 0,
    PINGRESP: 0,
    DISCONNECT: 0,
}

# Packets without content are one object each.
_PING_REQ = PingReq()
_PING_RESP = PingResp()
_DISCONNECT = Disconnect()

_HIGHEST_QOS = 2


def without_flags(first: int) -> int:
    """Return a first byte as MQTT 3.1.1 wants it: 3.1 has DUP in more packets, and does not look at unused flags."""
    return _FIRST_BYTES.get(first >> 4, first)


def check_fixed_header(first: int, length: int) -> None:
    """Accept a first byte and remaining length that some packet may have."""
    packet_type = first >> 4
    if packet_type == PUBLISH >> 4:
        if first & 0x06 == 0x06:
            raise MalformedPacketError("MQTT-3.3.1-4", "PUBLISH with QoS 3")
        if first & 0x0E == 0x08:
            raise MalformedPacketError("MQTT-3.3.1-2", "PUBLISH with DUP and QoS 0")
        return
    expected = _FIRST_BYTES.get(packet_type)
    if expected is None:
        raise MalformedPacketError("MQTT-4.8.0-1", f"packet type {packet_type} is reserved")
    if expected not in (first, CONNECT):  # CONNECT says itself whether it is one of MQTT 3.1
        requirement = _FLAG_REQUIREMENTS.get(expected, "MQTT-2.2.2-2")
        raise MalformedPacketError(requirement, f"fixed header byte {first:#04x} has wrong flags")
    fixed_length = _FIXED_LENGTHS.get(first, length)
    if length != fixed_length:
        raise MalformedPacketError("MQTT-4.8.0-1", f"packet type {packet_type} has {length} bytes, not {fixed_length}")


def decode_body(  # noqa: C901, PLR0911, PLR0912 - one branch per packet type
    first: int, buffer: bytes, start: int, stop: int
) -> Packet:
    """Return the packet of a fixed header that `check_fixed_header` accepted."""
    if first == PUBACK:
        return PubAck(read_identifier(buffer, start, stop, "MQTT-2.3.1-6"))
    if first == PUBREC:
        return PubRec(read_identifier(buffer, start, stop, "MQTT-2.3.1-6"))
    if first == PUBREL:
        return PubRel(read_identifier(buffer, start, stop, "MQTT-2.3.1-6"))
    if first == PUBCOMP:
        return PubComp(read_identifier(buffer, start, stop, "MQTT-2.3.1-6"))
    if first == PINGREQ:
        return _PING_REQ
    if first == SUBSCRIBE:
        return _decode_subscribe(buffer, start, stop)
    if first == UNSUBSCRIBE:
        return _decode_unsubscribe(buffer, start, stop)
    if first & 0xF0 == CONNECT:
        return _decode_connect(first, buffer, start, stop)
    if first == DISCONNECT:
        return _DISCONNECT
    if first == CONNACK:
        return _decode_connack(buffer, start)
    if first == SUBACK:
        return _decode_suback(buffer, start, stop)
    if first == UNSUBACK:
        return UnsubAck(read_identifier(buffer, start, stop, "MQTT-2.3.1-7"))
    if first == PINGRESP:
        return _PING_RESP
    raise AssertionError("check_fixed_header lets no other first byte through")


def decode_topic_name(raw: bytes) -> str:
    """Return the topic name of a PUBLISH or will."""
    topic = decode_text(raw)
    try:
        validate_topic_name(topic)
    except InvalidTopicError as error:
        raise MalformedPacketError(error.requirement, error.message) from error
    return topic


def _decode_topic_filter(raw: bytes) -> str:
    topic_filter = decode_text(raw)
    try:
        validate_topic_filter(topic_filter)
    except InvalidTopicError as error:
        raise MalformedPacketError(error.requirement, error.message) from error
    return topic_filter


def _decode_connect(first: int, buffer: bytes, start: int, stop: int) -> Connect:
    name = read_field(buffer, start, stop, "MQTT-3.1.2-1")
    if name not in (b"MQTT", b"MQIsdp"):
        # No answer to what is not MQTT; [MQTT-3.1.2-1] leaves the choice to the server.
        raise MalformedPacketError("MQTT-3.1.2-1", "unknown protocol name")
    position = start + 2 + len(name)
    if position == stop:
        raise MalformedPacketError("MQTT-3.1.4-1", "CONNECT ends before the protocol level")
    protocol_level = buffer[position]
    if (name, protocol_level) not in ((b"MQTT", 4), (b"MQIsdp", 3)):
        # Later levels lay out the rest differently, so nothing after the level is read. A known
        # level under the other name is no level either: it becomes 0, which nobody speaks.
        spoken = protocol_level in (3, 4)
        return Connect(0 if spoken else protocol_level, "", True, 0, None, None, None)  # noqa: FBT003 - a wire field
    position += 1
    if position + 3 > stop:
        raise MalformedPacketError("MQTT-3.1.4-1", "CONNECT ends before the keep alive")
    flags = buffer[position]
    if protocol_level == 3:
        flags &= 0xFE  # MQTT 3.1 does not use the bit, nor those of the fixed header
    elif first != CONNECT:
        raise MalformedPacketError("MQTT-2.2.2-2", f"fixed header byte {first:#04x} has wrong flags")
    _check_connect_flags(flags)
    keep_alive_s = buffer[position + 1] << 8 | buffer[position + 2]
    return _decode_connect_payload(protocol_level, flags, keep_alive_s, buffer, position + 3, stop)


def _check_connect_flags(flags: int) -> None:
    if flags & 0x01:
        raise MalformedPacketError("MQTT-3.1.2-3", "the reserved connect flag is set")
    if flags & 0x04:
        if flags & 0x18 == 0x18:
            raise MalformedPacketError("MQTT-3.1.2-14", "a will with QoS 3")
    elif flags & 0x18:
        raise MalformedPacketError("MQTT-3.1.2-13", "will QoS without will flag")
    elif flags & 0x20:
        raise MalformedPacketError("MQTT-3.1.2-15", "will retain without will flag")
    if flags & 0xC0 == 0x40:
        raise MalformedPacketError("MQTT-3.1.2-22", "password flag without user name flag")


def _decode_connect_payload(
    protocol_level: int, flags: int, keep_alive_s: int, buffer: bytes, position: int, stop: int
) -> Connect:
    raw = read_field(buffer, position, stop, "MQTT-3.1.3-3")
    position += 2 + len(raw)
    client_id = decode_text(raw)
    will: Will | None = None
    if flags & 0x04:
        raw = read_field(buffer, position, stop, "MQTT-3.1.2-9")
        position += 2 + len(raw)
        will_payload = read_field(buffer, position, stop, "MQTT-3.1.2-9")
        position += 2 + len(will_payload)
        will = Will(decode_topic_name(raw), will_payload, flags >> 3 & 0x03, flags & 0x20 != 0)
    username: str | None = None
    password: bytes | None = None
    if flags & 0x80:
        raw = read_field(buffer, position, stop, "MQTT-3.1.2-19")
        position += 2 + len(raw)
        username = decode_text(raw)
        if flags & 0x40:
            password = read_field(buffer, position, stop, "MQTT-3.1.2-21")
            position += 2 + len(password)
    if position != stop:
        # A field whose flag is not set, or garbage. [MQTT-3.1.2-11], [MQTT-3.1.2-18], [MQTT-3.1.2-20]
        raise MalformedPacketError("MQTT-3.1.4-1", "CONNECT has bytes after its last field")
    clean_session = flags & 0x02 != 0
    return Connect(protocol_level, client_id, clean_session, keep_alive_s, username, password, will)


def _decode_connack(buffer: bytes, start: int) -> ConnAck:
    flags = buffer[start]
    return_code = buffer[start + 1]
    if flags > 1:
        raise MalformedPacketError("MQTT-4.8.0-1", "reserved CONNACK flags are set")
    if return_code > ConnectReturnCode.NOT_AUTHORIZED:
        raise MalformedPacketError("MQTT-4.8.0-1", "a reserved CONNACK return code")
    if flags and return_code:
        raise MalformedPacketError("MQTT-3.2.2-4", "session present in a refusing CONNACK")
    return ConnAck(flags == 1, return_code)


def _decode_subscribe(buffer: bytes, start: int, stop: int) -> Subscribe:
    packet_identifier = read_identifier(buffer, start, stop, "MQTT-2.3.1-1")
    position = start + 2
    if position == stop:
        raise MalformedPacketError("MQTT-3.8.3-3", "SUBSCRIBE without a topic filter")
    filters: list[tuple[str, int]] = []
    while position < stop:
        raw = read_field(buffer, position, stop, "MQTT-3.8.3-1")
        position += 2 + len(raw)
        topic_filter = _decode_topic_filter(raw)
        if position == stop:
            raise MalformedPacketError("MQTT-3.8.3-3", "a topic filter without requested QoS")
        qos = buffer[position]
        if qos > _HIGHEST_QOS:
            # The tag is spelled so in the standard.
            raise MalformedPacketError("MQTT-3-8.3-4", f"requested QoS byte {qos:#04x}")
        position += 1
        filters.append((topic_filter, qos))
    return Subscribe(packet_identifier, filters)


def _decode_suback(buffer: bytes, start: int, stop: int) -> SubAck:
    packet_identifier = read_identifier(buffer, start, stop, "MQTT-2.3.1-7")
    return_codes = list(buffer[start + 2 : stop])
    if not return_codes:
        raise MalformedPacketError("MQTT-3.8.4-5", "SUBACK without a return code")
    for return_code in return_codes:
        if return_code > _HIGHEST_QOS and return_code != SUBACK_FAILURE:
            raise MalformedPacketError("MQTT-3.9.3-2", "a reserved SUBACK return code")
    return SubAck(packet_identifier, return_codes)


def _decode_unsubscribe(buffer: bytes, start: int, stop: int) -> Unsubscribe:
    packet_identifier = read_identifier(buffer, start, stop, "MQTT-2.3.1-1")
    position = start + 2
    if position == stop:
        raise MalformedPacketError("MQTT-3.10.3-2", "UNSUBSCRIBE without a topic filter")
    filters: list[str] = []
    while position < stop:
        raw = read_field(buffer, position, stop, "MQTT-3.10.3-1")
        position += 2 + len(raw)
        filters.append(_decode_topic_filter(raw))
    return Unsubscribe(packet_identifier, filters)
