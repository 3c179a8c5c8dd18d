"""Every malformed packet by its statement; each case is also fed byte by byte."""

from __future__ import annotations

import pytest

from services.edge.mqtt.codec import Decoder
from services.edge.mqtt.packets import Connect, Disconnect, PingReq, PubRel, Subscribe, Unsubscribe


def frame(first: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes((first, len(body))) + body


def connect(flags: int, payload: bytes, name: bytes = b"\x00\x04MQTT\x04") -> bytes:
    return frame(0x10, name + bytes((flags,)) + b"\x00\x00" + payload)


CID = b"\x00\x01c"

CASES: list[tuple[str, str, bytes]] = [
    # The fixed header
    ("MQTT-4.8.0-1", "packet type 0", b"\x00\x00"),
    ("MQTT-4.8.0-1", "packet type 15", b"\xf0\x00"),
    ("MQTT-4.8.0-1", "remaining length of five bytes", b"\x30\x80\x80\x80\x80\x01"),
    ("MQTT-4.8.0-1", "larger than the limit", b"\x30\xff\xff\x7f"),
    ("MQTT-2.2.2-2", "CONNECT flags", b"\x11" + connect(2, CID)[1:]),
    ("MQTT-2.2.2-2", "CONNACK flags", b"\x21\x02\x00\x00"),
    ("MQTT-2.2.2-2", "PUBACK flags", b"\x42\x02\x00\x01"),
    ("MQTT-2.2.2-2", "PUBREC flags", b"\x52\x02\x00\x01"),
    ("MQTT-3.6.1-1", "PUBREL flags", b"\x60\x02\x00\x01"),
    ("MQTT-3.6.1-1", "PUBREL with DUP", b"\x6a\x02\x00\x01"),
    ("MQTT-2.2.2-2", "PUBCOMP flags", b"\x72\x02\x00\x01"),
    ("MQTT-3.8.1-1", "SUBSCRIBE flags", b"\x80\x06\x00\x01\x00\x01a\x00"),
    ("MQTT-2.2.2-2", "SUBACK flags", b"\x92\x03\x00\x01\x00"),
    ("MQTT-3.10.1-1", "UNSUBSCRIBE flags", b"\xa0\x05\x00\x01\x00\x01a"),
    ("MQTT-2.2.2-2", "UNSUBACK flags", b"\xb2\x02\x00\x01"),
    ("MQTT-2.2.2-2", "PINGREQ flags", b"\xc8\x00"),
    ("MQTT-2.2.2-2", "PINGRESP flags", b"\xd1\x00"),
    ("MQTT-3.14.1-1", "DISCONNECT flags", b"\xe2\x00"),
    ("MQTT-4.8.0-1", "PINGREQ with content", b"\xc0\x01\x00"),
    ("MQTT-4.8.0-1", "PINGRESP with content", b"\xd0\x01\x00"),
    ("MQTT-4.8.0-1", "DISCONNECT with content", b"\xe0\x01\x00"),
    ("MQTT-4.8.0-1", "PUBACK too short", b"\x40\x01\x00"),
    ("MQTT-4.8.0-1", "PUBACK too long", b"\x40\x03\x00\x01\x00"),
    ("MQTT-4.8.0-1", "UNSUBACK too long", b"\xb0\x03\x00\x01\x00"),
    ("MQTT-4.8.0-1", "CONNACK too short", b"\x20\x01\x00"),
    # Packet identifiers
    ("MQTT-2.3.1-1", "PUBLISH QoS 1 with identifier 0", frame(0x32, b"\x00\x01a\x00\x00")),
    ("MQTT-2.3.1-1", "PUBLISH QoS 2 with identifier 0", frame(0x34, b"\x00\x01a\x00\x00x")),
    ("MQTT-2.3.1-1", "PUBLISH QoS 1 without identifier", frame(0x32, b"\x00\x01a\x01")),
    ("MQTT-2.3.1-1", "SUBSCRIBE with identifier 0", frame(0x82, b"\x00\x00\x00\x01a\x00")),
    ("MQTT-2.3.1-1", "SUBSCRIBE without identifier", frame(0x82, b"\x00")),
    ("MQTT-2.3.1-1", "UNSUBSCRIBE with identifier 0", frame(0xA2, b"\x00\x00\x00\x01a")),
    ("MQTT-2.3.1-6", "PUBACK with identifier 0", b"\x40\x02\x00\x00"),
    ("MQTT-2.3.1-6", "PUBREC with identifier 0", b"\x50\x02\x00\x00"),
    ("MQTT-2.3.1-6", "PUBREL with identifier 0", b"\x62\x02\x00\x00"),
    ("MQTT-2.3.1-6", "PUBCOMP with identifier 0", b"\x70\x02\x00\x00"),
    ("MQTT-2.3.1-7", "SUBACK with identifier 0", b"\x90\x03\x00\x00\x00"),
    ("MQTT-2.3.1-7", "UNSUBACK with identifier 0", b"\xb0\x02\x00\x00"),
    # CONNECT
    ("MQTT-3.1.2-1", "no protocol name", frame(0x10, b"")),
    ("MQTT-3.1.2-1", "protocol name cut", frame(0x10, b"\x00\x04MQ")),
    ("MQTT-3.1.2-1", "unknown protocol name", connect(2, CID, b"\x00\x04MQTX\x04")),
    ("MQTT-3.1.2-1", "protocol name in lower case", connect(2, CID, b"\x00\x04mqtt\x04")),
    ("MQTT-3.1.4-1", "no protocol level", frame(0x10, b"\x00\x04MQTT")),
    ("MQTT-3.1.4-1", "no connect flags", frame(0x10, b"\x00\x04MQTT\x04")),
    ("MQTT-3.1.4-1", "keep alive cut", frame(0x10, b"\x00\x04MQTT\x04\x02\x00")),
    ("MQTT-3.1.2-3", "reserved connect flag", connect(0x03, CID)),
    ("MQTT-3.1.2-13", "will QoS 1 without will flag", connect(0x0A, CID)),
    ("MQTT-3.1.2-13", "will QoS 2 without will flag", connect(0x12, CID)),
    ("MQTT-3.1.2-14", "will QoS 3", connect(0x1E, CID + b"\x00\x01w\x00\x00")),
    ("MQTT-3.1.2-15", "will retain without will flag", connect(0x22, CID)),
    ("MQTT-3.1.2-22", "password without user name", connect(0x42, CID + b"\x00\x01p")),
    ("MQTT-3.1.3-3", "no client id", connect(2, b"")),
    ("MQTT-3.1.3-3", "client id cut", connect(2, b"\x00\x05abc")),
    ("MQTT-3.1.2-9", "no will topic", connect(0x06, CID)),
    ("MQTT-3.1.2-9", "no will message", connect(0x06, CID + b"\x00\x01w")),
    ("MQTT-3.1.2-19", "no user name", connect(0x82, CID)),
    ("MQTT-3.1.2-21", "no password", connect(0xC2, CID + b"\x00\x01u")),
    ("MQTT-3.1.4-1", "user name without its flag", connect(0x02, CID + b"\x00\x01u")),
    ("MQTT-3.1.4-1", "password without its flag", connect(0x82, CID + b"\x00\x01u\x00\x01p")),
    ("MQTT-3.1.4-1", "one byte too many", connect(0x02, CID + b"\x00")),
    ("MQTT-1.5.3-1", "client id not UTF-8", connect(2, b"\x00\x01\xff")),
    ("MQTT-1.5.3-1", "client id with a surrogate", connect(2, b"\x00\x03\xed\xa0\x80")),
    ("MQTT-1.5.3-1", "client id with an overlong form", connect(2, b"\x00\x02\xc0\x80")),
    ("MQTT-1.5.3-2", "client id with U+0000", connect(2, b"\x00\x01\x00")),
    ("MQTT-1.5.3-1", "user name not UTF-8", connect(0x82, CID + b"\x00\x01\xff")),
    ("MQTT-1.5.3-2", "user name with U+0000", connect(0x82, CID + b"\x00\x01\x00")),
    ("MQTT-1.5.3-1", "will topic not UTF-8", connect(0x06, CID + b"\x00\x01\xff\x00\x00")),
    ("MQTT-3.3.2-2", "will topic with wildcard", connect(0x06, CID + b"\x00\x01#\x00\x00")),
    ("MQTT-4.7.3-1", "empty will topic", connect(0x06, CID + b"\x00\x00\x00\x00")),
    # CONNACK
    ("MQTT-4.8.0-1", "reserved acknowledge flags", b"\x20\x02\x02\x00"),
    ("MQTT-4.8.0-1", "reserved return code", b"\x20\x02\x00\x06"),
    ("MQTT-3.2.2-4", "session present in a refusal", b"\x20\x02\x01\x05"),
    # PUBLISH
    ("MQTT-3.3.1-4", "QoS 3", frame(0x36, b"\x00\x01a\x00\x01")),
    ("MQTT-3.3.1-2", "DUP with QoS 0", frame(0x38, b"\x00\x01a")),
    ("MQTT-3.3.1-2", "DUP and retain with QoS 0", frame(0x39, b"\x00\x01a")),
    ("MQTT-3.3.2-1", "no topic", frame(0x30, b"")),
    ("MQTT-3.3.2-1", "half a topic length", frame(0x30, b"\x00")),
    ("MQTT-3.3.2-1", "topic cut", frame(0x30, b"\x00\x03ab")),
    ("MQTT-4.7.3-1", "empty topic", frame(0x30, b"\x00\x00x")),
    ("MQTT-3.3.2-2", "topic with +", frame(0x30, b"\x00\x03a/+")),
    ("MQTT-3.3.2-2", "topic with #", frame(0x32, b"\x00\x03a/#\x00\x01")),
    ("MQTT-1.5.3-1", "topic not UTF-8", frame(0x30, b"\x00\x02\xc3\x28")),
    ("MQTT-1.5.3-1", "topic with a surrogate", frame(0x30, b"\x00\x03\xed\xbf\xbf")),
    ("MQTT-1.5.3-2", "topic with U+0000", frame(0x30, b"\x00\x01\x00")),
    # SUBSCRIBE and SUBACK
    ("MQTT-3.8.3-3", "no filter", frame(0x82, b"\x00\x01")),
    ("MQTT-3.8.3-1", "filter length cut", frame(0x82, b"\x00\x01\x00")),
    ("MQTT-3.8.3-1", "filter cut", frame(0x82, b"\x00\x01\x00\x05a\x00")),
    ("MQTT-3.8.3-3", "filter without QoS", frame(0x82, b"\x00\x01\x00\x01a")),
    ("MQTT-3-8.3-4", "requested QoS 3", frame(0x82, b"\x00\x01\x00\x01a\x03")),
    ("MQTT-3-8.3-4", "reserved bits of QoS", frame(0x82, b"\x00\x01\x00\x01a\x80")),
    ("MQTT-3-8.3-4", "reserved bits in the second", frame(0x82, b"\x00\x01\x00\x01a\x00\x00\x01b\x04")),
    ("MQTT-1.5.3-1", "filter not UTF-8", frame(0x82, b"\x00\x01\x00\x01\xff\x00")),
    ("MQTT-4.7.3-1", "empty filter", frame(0x82, b"\x00\x01\x00\x00\x00")),
    ("MQTT-1.5.3-2", "filter with U+0000", frame(0x82, b"\x00\x01\x00\x01\x00\x00")),
    ("MQTT-4.7.1-2", "filter with # inside", frame(0x82, b"\x00\x01\x00\x03#/a\x00")),
    ("MQTT-4.7.1-2", "filter with # in a level", frame(0x82, b"\x00\x01\x00\x02a#\x00")),
    ("MQTT-4.7.1-3", "filter with + in a level", frame(0x82, b"\x00\x01\x00\x02a+\x00")),
    ("MQTT-3.8.4-5", "SUBACK without a code", frame(0x90, b"\x00\x01")),
    ("MQTT-3.9.3-2", "SUBACK with a reserved code", frame(0x90, b"\x00\x01\x03")),
    # UNSUBSCRIBE
    ("MQTT-3.10.3-2", "no filter", frame(0xA2, b"\x00\x01")),
    ("MQTT-3.10.3-1", "filter cut", frame(0xA2, b"\x00\x01\x00\x02a")),
    ("MQTT-3.10.3-1", "half a second filter", frame(0xA2, b"\x00\x01\x00\x01a\x00")),
    ("MQTT-4.7.1-2", "UNSUBSCRIBE filter with # inside", frame(0xA2, b"\x00\x01\x00\x03#/a")),
    ("MQTT-1.5.3-1", "UNSUBSCRIBE filter not UTF-8", frame(0xA2, b"\x00\x01\x00\x01\xff")),
]

# More statements that a case proves, beside the one it is reported with.
ALSO = {
    "user name without its flag": ["MQTT-3.1.2-18"],
    "password without its flag": ["MQTT-3.1.2-20"],
    "one byte too many": ["MQTT-3.1.2-11"],
    "client id not UTF-8": ["MQTT-3.1.3-4"],
    "will topic not UTF-8": ["MQTT-3.1.3-10"],
    "user name not UTF-8": ["MQTT-3.1.3-11"],
    "topic not UTF-8": ["MQTT-3.3.2-1"],
    "filter not UTF-8": ["MQTT-3.8.3-1"],
    "UNSUBSCRIBE filter not UTF-8": ["MQTT-3.10.3-1"],
    "topic with +": ["MQTT-4.7.1-1"],
    "topic with U+0000": ["MQTT-4.7.3-2"],
    "CONNECT flags": ["MQTT-2.2.2-1"],
}


@pytest.mark.parametrize(
    ("requirement", "wire"),
    [
        pytest.param(
            requirement,
            wire,
            id=f"{requirement} {name}",
            marks=[pytest.mark.spec(tag) for tag in [requirement, *ALSO.get(name, [])]],
        )
        for requirement, name, wire in CASES
    ],
)
def test_malformed_packet_is_reported_with_its_statement(requirement: str, wire: bytes) -> None:
    decoder = Decoder(100_000)
    assert decoder.feed(wire) == []
    assert decoder.error is not None
    assert decoder.error.requirement == requirement
    assert requirement in str(decoder.error)

    slow = Decoder(100_000)
    for byte in wire:
        assert slow.feed(bytes((byte,))) == []
    assert slow.error is not None
    assert slow.error.requirement == requirement


@pytest.mark.parametrize("first", range(256))
@pytest.mark.spec("MQTT-2.2.2-1")
@pytest.mark.spec("MQTT-2.2.2-2")
def test_each_first_byte_has_the_flags_of_table_2_2(first: int) -> None:
    packet_type, flags = first >> 4, first & 0x0F
    if packet_type == 3:
        is_allowed = flags & 0x06 != 0x06 and flags & 0x0E != 0x08
    elif packet_type in (6, 8, 10):
        is_allowed = flags == 2
    elif packet_type == 1:
        is_allowed = True  # judged with the protocol level: MQTT 3.1 does not look at the flags
    else:
        is_allowed = packet_type not in (0, 15) and flags == 0
    length = 2 if packet_type in (2, 4, 5, 6, 7, 11) else 0 if packet_type in (12, 13, 14) else 50
    decoder = Decoder(100)
    decoder.feed(bytes((first, length)))
    assert (decoder.error is None) == is_allowed  # judged by the header alone


@pytest.mark.spec("MQTT-2.2.2-2")
@pytest.mark.parametrize("first", range(0x11, 0x20))
def test_connect_has_no_flags(first: int) -> None:
    decoder = Decoder(100)
    assert decoder.feed(bytes((first, 13)) + b"\0\4MQTT\4\2\0\0\0\1c") == []
    assert decoder.error is not None
    assert decoder.error.requirement == "MQTT-2.2.2-2"


@pytest.mark.parametrize("first", range(0x10, 0x20))
@pytest.mark.parametrize("reserved", [0, 1])
def test_unused_flags_of_a_connect_of_mqtt_31_mean_nothing(first: int, reserved: int) -> None:
    decoder = Decoder(100)
    (packet,) = decoder.feed(bytes((first, 15)) + b"\0\6MQIsdp\3" + bytes((2 | reserved,)) + b"\0\0\0\1c")
    assert packet == Connect(3, "c", True, 0, None, None, None)


def test_flags_of_mqtt_31_mean_nothing_after_its_connect() -> None:
    data = b"\x6a\2\0\1" + b"\x8a\6\0\2\0\1a\1" + b"\xaa\5\0\3\0\1a" + b"\xc2\0" + b"\xe8\0"
    expected = [PubRel(1), Subscribe(2, [("a", 1)]), Unsubscribe(3, ["a"]), PingReq(), Disconnect()]
    strict = Decoder(100)
    assert strict.feed(data) == []
    assert strict.error is not None
    for size in (1, 3, len(data)):
        decoder = Decoder(100)
        decoder.ignores_flags = True
        packets = [p for start in range(0, len(data), size) for p in decoder.feed(data[start : start + size])]
        assert packets == expected
