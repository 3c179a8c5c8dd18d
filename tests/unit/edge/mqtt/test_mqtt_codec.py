from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.mqtt import codec
from services.edge.mqtt.codec import Decoder, TopicCache, encode
from services.edge.mqtt.errors import LocalUseError
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
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    Will,
)
from tests.unit.edge.mqtt.mqtt_strategies import CONNECT, PACKET

MAX_PACKET_BYTES = 1 << 20

WIRE: list[tuple[Packet, bytes]] = [
    (
        Connect(4, "c", True, 60, None, None, None),
        b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c",
    ),
    (
        Connect(3, "c", False, 0, "u", b"p", Will("w", b"x", 2, True)),
        b"\x10\x1b\x00\x06MQIsdp\x03\xf4\x00\x00\x00\x01c\x00\x01w\x00\x01x\x00\x01u\x00\x01p",
    ),
    (ConnAck(True, 0), b"\x20\x02\x01\x00"),
    (ConnAck(False, 5), b"\x20\x02\x00\x05"),
    (Publish("a/b", b"hi", 0, False, False, 0), b"\x30\x07\x00\x03a/bhi"),
    (Publish("a", b"", 0, True, False, 0), b"\x31\x03\x00\x01a"),
    (Publish("a", b"hi", 1, False, False, 258), b"\x32\x07\x00\x01a\x01\x02hi"),
    (Publish("a", b"hi", 2, True, True, 10), b"\x3d\x07\x00\x01a\x00\x0ahi"),
    (Publish("a", b"x" * 197, 0, False, False, 0), b"\x30\xc8\x01\x00\x01a" + b"x" * 197),
    (PubAck(1), b"\x40\x02\x00\x01"),
    (PubRec(1), b"\x50\x02\x00\x01"),
    (PubRel(1), b"\x62\x02\x00\x01"),
    (PubComp(65535), b"\x70\x02\xff\xff"),
    (Subscribe(7, [("a", 0), ("+/#", 2)]), b"\x82\x0c\x00\x07\x00\x01a\x00\x00\x03+/#\x02"),
    (SubAck(7, [0, 1, 2, 128]), b"\x90\x06\x00\x07\x00\x01\x02\x80"),
    (Unsubscribe(7, ["a", "b"]), b"\xa2\x08\x00\x07\x00\x01a\x00\x01b"),
    (UnsubAck(7), b"\xb0\x02\x00\x07"),
    (PingReq(), b"\xc0\x00"),
    (PingResp(), b"\xd0\x00"),
    (Disconnect(), b"\xe0\x00"),
]


def decode_whole(data: bytes) -> list[Packet]:
    decoder = Decoder(MAX_PACKET_BYTES)
    packets = decoder.feed(data)
    assert decoder.error is None
    assert decoder.pending_bytes == 0
    return packets


@pytest.mark.parametrize(("packet", "wire"), WIRE, ids=lambda value: repr(value)[:40])
def test_packet_has_these_bytes_in_both_directions(packet: Packet, wire: bytes) -> None:
    assert encode(packet) == wire
    assert decode_whole(wire) == [packet]


@given(PACKET)
def test_round_trip(packet: Packet) -> None:
    assert decode_whole(encode(packet)) == [packet]


@given(st.lists(PACKET, max_size=8), st.data())
def test_any_chunking_gives_the_same_packets(packets: list[Packet], data: st.DataObject) -> None:
    wire = b"".join(encode(packet) for packet in packets)
    assert decode_whole(wire) == packets
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    decoder = Decoder(MAX_PACKET_BYTES)
    found: list[Packet] = []
    for start, stop in itertools.pairwise([0, *cuts, len(wire)]):
        found += decoder.feed(wire[start:stop])
    assert found == packets
    assert decoder.error is None
    assert decoder.pending_bytes == 0


@given(st.lists(PACKET.filter(lambda packet: len(encode(packet)) < 500), max_size=4))
def test_byte_by_byte_gives_each_packet_with_its_last_byte(packets: list[Packet]) -> None:
    decoder = Decoder(MAX_PACKET_BYTES)
    for packet in packets:
        wire = encode(packet)
        for byte in wire[:-1]:
            assert decoder.feed(bytes((byte,))) == []
        assert decoder.feed(wire[-1:]) == [packet]


@given(st.lists(PACKET, max_size=3), st.binary(max_size=60), st.data())
def test_any_bytes_give_packets_or_need_more_or_an_error(
    packets: list[Packet], noise: bytes, data: st.DataObject
) -> None:
    wire = b"".join(encode(packet) for packet in packets) + noise
    whole = Decoder(5000)
    expected = whole.feed(wire)
    cut = data.draw(st.integers(0, len(wire)))
    pieces = Decoder(5000)
    found = pieces.feed(wire[:cut]) + pieces.feed(wire[cut:])
    assert found == expected
    assert (pieces.error is None) == (whole.error is None)
    if pieces.error is not None and whole.error is not None:
        assert pieces.error.requirement == whole.error.requirement
        assert pieces.feed(b"\xc0\x00") == []
    assert pieces.pending_bytes <= 5000


@given(PACKET, st.data())
def test_one_changed_byte_never_raises(packet: Packet, data: st.DataObject) -> None:
    wire = bytearray(encode(packet))
    position = data.draw(st.integers(0, min(len(wire), 60) - 1))
    wire[position] = data.draw(st.integers(0, 255))
    decoder = Decoder(MAX_PACKET_BYTES)
    for found in decoder.feed(bytes(wire)):
        encode(found)  # whatever was accepted is a value that can be sent


def test_packets_before_a_malformed_one_are_returned_and_nothing_after_it() -> None:
    decoder = Decoder(MAX_PACKET_BYTES)
    ping = b"\xc0\x00"
    assert decoder.feed(ping + ping + b"\xc1\x00" + ping) == [PingReq(), PingReq()]
    assert decoder.error is not None
    assert decoder.feed(ping) == []


@pytest.mark.parametrize(
    "length_bytes", [b"\x80\x01", b"\xff\x7f", b"\x80\x80\x01", b"\xff\xff\x7f", b"\x80\x80\x80\x01"]
)
def test_remaining_length_of_each_size(length_bytes: bytes) -> None:
    length = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(length_bytes))
    wire = b"\x30" + length_bytes + b"\x00\x01a" + bytes(length - 3)
    decoder = Decoder(len(wire))
    packets = decoder.feed(wire)
    assert packets == [Publish("a", bytes(length - 3), 0, False, False, 0)]
    assert encode(packets[0]) == wire


def test_remaining_length_in_more_bytes_than_needed_is_read() -> None:
    # MQTT 3.1.1 does not demand the shortest form.
    assert decode_whole(b"\xc0\x80\x80\x00") == [PingReq()]
    decoder = Decoder(MAX_PACKET_BYTES)
    assert [decoder.feed(bytes((byte,))) for byte in b"\xc0\x80\x00"] == [[], [], [PingReq()]]


def test_fifth_byte_of_the_remaining_length_is_refused_whatever_it_says() -> None:
    decoder = Decoder(MAX_PACKET_BYTES)
    assert decoder.feed(b"\xc0\x80\x80\x80\x80\x00") == []
    assert decoder.error is not None


def test_packet_of_the_limit_is_accepted_and_one_byte_more_is_not() -> None:
    wire = encode(Publish("a", b"x" * 195, 0, False, False, 0))
    assert len(Decoder(len(wire)).feed(wire)) == 1
    decoder = Decoder(len(wire) - 1)
    assert decoder.feed(wire) == []
    assert decoder.error is not None


def test_declared_length_is_refused_before_its_bytes_arrive() -> None:
    decoder = Decoder(1000)
    assert decoder.feed(b"\x30\xff\xff\xff\x7f") == []
    assert decoder.error is not None
    assert decoder.pending_bytes == 0


def test_bad_header_is_refused_before_its_bytes_arrive() -> None:
    decoder = Decoder(1000)
    assert decoder.feed(b"GET / HTTP/1.1\r\n") == []
    assert decoder.error is not None


def test_pause_after_connect_keeps_what_follows_until_resume() -> None:
    connect = Connect(4, "c", True, 0, None, None, None)
    decoder = Decoder(MAX_PACKET_BYTES, pause_after_connect=True)
    assert decoder.feed(encode(connect) + b"\xc0") == [connect]
    assert decoder.is_paused
    assert decoder.feed(b"\x00\xc0") == []
    assert decoder.resume() == [PingReq()]
    assert decoder.feed(b"\x00") == [PingReq()]


@given(CONNECT, st.lists(PACKET, max_size=3))
def test_pause_never_loses_or_decodes_bytes_early(connect: Connect, packets: list[Packet]) -> None:
    packets = [packet for packet in packets if not isinstance(packet, Connect)]
    wire = b"".join(encode(packet) for packet in packets)
    decoder = Decoder(MAX_PACKET_BYTES, pause_after_connect=True)
    assert decoder.feed(encode(connect) + wire) == [connect]
    assert decoder.resume() == packets


@pytest.mark.spec("MQTT-3.1.2-2")
@pytest.mark.parametrize(
    ("name", "level", "decoded_level"),
    [
        (b"MQTT", 5, 5),
        (b"MQTT", 0, 0),
        (b"MQTT", 0x84, 0x84),
        (b"MQIsdp", 9, 9),
        (b"MQTT", 3, 0),
        (b"MQIsdp", 4, 0),
    ],
)
def test_unknown_level_decodes_to_the_level_alone(name: bytes, level: int, decoded_level: int) -> None:
    body = len(name).to_bytes(2, "big") + name + bytes((level,)) + b"\xff\xff whatever"
    packets = decode_whole(bytes((0x10, len(body))) + body)
    assert packets == [Connect(decoded_level, "", True, 0, None, None, None)]


@pytest.mark.spec("MQTT-1.5.3-3")
def test_byte_order_mark_is_kept() -> None:
    wire = b"\x30\x06\x00\x04\xef\xbb\xbfa"
    assert decode_whole(wire) == [Publish("\ufeffa", b"", 0, False, False, 0)]


def test_topics_are_decoded_once_and_the_cache_is_bounded() -> None:
    cache = TopicCache()
    decoder = Decoder(MAX_PACKET_BYTES, topics=cache)

    def publish(topic: str) -> str:
        packet = decoder.feed(encode(Publish(topic, b"", 0, False, False, 0)))[0]
        assert isinstance(packet, Publish)
        return packet.topic

    assert publish("a/b") is publish("a/b")
    assert publish("x" * 257) == "x" * 257
    assert list(cache.entries.values()) == ["a/b"]
    for index in range(codec._MAX_CACHED_TOPICS + 10):
        assert publish(f"t/{index}") == f"t/{index}"
        assert len(cache.entries) <= codec._MAX_CACHED_TOPICS


def test_malformed_topic_is_not_cached() -> None:
    cache = TopicCache()
    decoder = Decoder(MAX_PACKET_BYTES, topics=cache)
    assert decoder.feed(b"\x30\x03\x00\x01+") == []
    assert decoder.error is not None
    assert cache.entries == {}


@pytest.mark.parametrize(
    "packet",
    [
        Publish("a", b"", 3, False, False, 1),
        Publish("a", b"", 0, False, True, 0),
        Publish("a", b"", 0, False, False, 1),
        Publish("a", b"", 1, False, False, 0),
        Publish("a", b"", 1, False, False, 65_536),
        Publish("a" * 65_536, b"", 0, False, False, 0),
        Publish("a\0", b"", 0, False, False, 0),
        Publish("\ud800", b"", 0, False, False, 0),
        Publish("a", bytes(268_435_456), 0, False, False, 0),
        PubAck(0),
        Subscribe(1, [("a", 3)]),
        Connect(4, "c", True, 0, None, b"p", None),
        Connect(4, "c", True, 65_536, None, None, None),
        Connect(256, "c", True, 0, None, None, None),
        ConnAck(False, 256),
    ],
    ids=range(15),
)
def test_encode_refuses_what_the_wire_cannot_carry(packet: Packet) -> None:
    with pytest.raises(LocalUseError):
        encode(packet)


def test_representation_hides_secrets() -> None:
    connect = Connect(4, "c", True, 0, "u", b"hunter2", Will("w", b"hidden", 0, False))
    assert "hunter2" not in repr(connect)
    assert "hidden" not in repr(connect)
    assert "username='u'" in repr(connect)
    assert "secret" not in repr(Publish("a", b"secret", 0, False, False, 0))


def test_equality_is_by_type_and_content() -> None:
    assert PubAck(1) == PubAck(1)
    assert PubAck(1) != PubAck(2)
    assert PubAck(1) != PubRec(1)
    with pytest.raises(TypeError):
        hash(PubAck(1))
