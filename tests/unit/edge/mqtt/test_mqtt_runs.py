"""Packets that are passed on together: the same as one by one."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from services.edge.mqtt.codec import Decoder, encode
from services.edge.mqtt.events import Acknowledged, Event, Failed
from services.edge.mqtt.machine import Limits, ServerConnection
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Connect, Packet, PingReq, PubAck, PubAckRun, Publish, PublishRun

PUBLICATIONS = st.builds(
    lambda topic, payload, qos, retain: Publish(topic, payload, qos, retain, False, 7 if qos else 0),
    st.sampled_from(["a", "a/b", "ä", "t" * 130]),
    st.sampled_from([b"", b"1", b"2", b"12", b"0\x00", bytes(200)]),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([False, False, False, True]),
)
PACKETS = st.lists(st.one_of(PUBLICATIONS, st.just(PingReq()), st.builds(PubAck, st.integers(1, 65_535))), max_size=30)


def one_by_one(packets: list[Packet]) -> list[Packet]:
    found: list[Packet] = []
    for packet in packets:
        if isinstance(packet, PublishRun):
            assert packet.count > 1
            found += packet.publications()
        elif isinstance(packet, PubAckRun):
            assert len(packet.identifiers) > 1
            found += [PubAck(identifier) for identifier in packet.identifiers]
        else:
            found.append(packet)
    return found


def decoder() -> Decoder:
    made = Decoder(1 << 20)
    made.gathers_runs = True
    return made


@hypothesis.given(PACKETS, st.lists(st.integers(1, 400), max_size=10))
def test_runs_hold_the_packets_that_came(packets: list[Packet], cuts: list[int]) -> None:
    data = b"".join(map(encode, packets))
    gathering = decoder()
    found: list[Packet] = []
    for cut in cuts:
        found += gathering.feed(data[:cut])
        data = data[cut:]
    found += gathering.feed(data)
    assert b"".join(map(encode, found)) == b"".join(map(encode, packets))
    assert one_by_one(found) == packets
    assert gathering.error is None


@hypothesis.given(st.binary(max_size=60), st.integers(0, 5))
def test_malformed_bytes_after_a_run_end_it_as_they_end_packets(rest: bytes, count: int) -> None:
    data = encode(Publish("a", b"x", 0, False, False, 0)) * count + encode(PubAck(1)) * count + rest
    plain = Decoder(1 << 20)
    gathering = decoder()
    assert one_by_one(gathering.feed(data)) == plain.feed(data)
    assert str(gathering.error) == str(plain.error)
    assert gathering.pending_bytes == plain.pending_bytes


def test_what_differs_is_no_run() -> None:
    first = Publish("a", b"1", 0, False, False, 0)
    others = [
        Publish("a", b"12", 0, False, False, 0),
        Publish("b", b"1", 0, False, False, 0),
        Publish("a", b"1", 0, True, False, 0),
        Publish("a", b"1", 1, False, False, 1),
    ]
    for other in others:
        assert decoder().feed(encode(first) + encode(other)) == [first, other]
    assert Decoder(1 << 20).feed(encode(first) * 2) == [first, first]


@pytest.mark.parametrize("length", [b"\x05", b"\x85\x00", b"\x85\x80\x80\x00"])
def test_packets_with_a_longer_length_than_they_need_are_no_run(length: bytes) -> None:
    # Whoever gets a run expects the packets that `encode` would make: anything else breaks the link.
    packets = (b"\x30" + length + b"\x00\x01abc") * 2
    found = decoder().feed(packets)
    assert one_by_one(found) == [Publish("a", b"bc", 0, False, False, 0)] * 2
    assert all(packet.frames == b"\x30\x05\x00\x01abc" * 2 for packet in found if isinstance(packet, PublishRun))


def connected() -> ServerConnection:
    machine = ServerConnection(now=0, limits=Limits(), gathers_runs=True)
    machine.feed(encode(Connect(4, "c", True, 0, None, None, None)), 0)
    machine.accept(0, session_present=False)
    machine.take_output()
    return machine


def deliver(machine: ServerConnection, qos: int, tokens: list[object | None]) -> None:
    for token in tokens:
        assert machine.deliver(OutboundMessage(b"a", b"x", retain=False), qos, token)


def test_acknowledgements_that_come_together_complete_their_deliveries() -> None:
    machine = connected()
    deliver(machine, 1, ["x", None, "y", "z"])
    events: list[Event] = machine.feed(b"".join(encode(PubAck(n)) for n in (1, 2, 3, 9)), 0)
    assert events == [Acknowledged("x"), Acknowledged("y")]
    assert [identifier for identifier, _ in machine.session.sent.unacknowledged()] == [4]


def test_acknowledgements_that_come_together_make_room_for_what_is_queued() -> None:
    machine = connected()
    limit = Limits().max_inflight
    deliver(machine, 1, [None] * (limit + 3))
    machine.take_output()
    machine.feed(encode(PubAck(1)) + encode(PubAck(2)), 0)
    assert machine.queued_count == 1
    assert len(machine.take_output()) == 2 * 3


def test_an_acknowledgement_of_the_wrong_kind_among_others_ends_the_connection() -> None:
    machine = connected()
    deliver(machine, 1, ["x"])
    deliver(machine, 2, ["y"])
    events = machine.feed(b"".join(encode(PubAck(n)) for n in (1, 2, 3)), 0)
    assert events[0] == Acknowledged("x")
    assert isinstance(events[1], Failed)


@pytest.mark.parametrize("data", [encode(Publish("a", b"", 0, False, False, 0)) * 2, encode(PubAck(1)) * 2])
def test_a_run_before_connect_ends_the_connection(data: bytes) -> None:
    machine = ServerConnection(now=0, limits=Limits(), gathers_runs=True)
    assert isinstance(machine.feed(data, 0)[0], Failed)
