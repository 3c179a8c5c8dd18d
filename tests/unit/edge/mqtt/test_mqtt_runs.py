"""Packets that are passed on together: the same as one by one."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from services.edge.mqtt.answers import AnswerRun, PubRelRun
from services.edge.mqtt.codec import Decoder, encode
from services.edge.mqtt.events import Acknowledged, Event, Failed
from services.edge.mqtt.machine import Limits, ServerConnection
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import (
    Connect,
    Packet,
    PingReq,
    PubAck,
    PubComp,
    Publish,
    PublishRun,
    PubRec,
    PubRel,
)

IDENTIFIERS = st.sampled_from([1, 2, 3, 255, 256, 257, 65_534, 65_535])
PUBLICATIONS = st.builds(
    lambda topic, payload, qos, retain, dup, number: Publish(
        topic, payload, qos, retain, dup and qos > 0, number if qos else 0
    ),
    st.sampled_from(["a", "a", "a/b", "ä", "t" * 130]),
    st.sampled_from([b"", b"1", b"2", b"2", b"12", b"0\x00", bytes(200)]),
    st.sampled_from([0, 0, 0, 1, 1, 1, 2, 2]),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([False, False, False, False, True]),
    IDENTIFIERS,
)
ALIKE = st.lists(
    st.builds(
        lambda payload, number: (payload, number),
        st.sampled_from([b"1", b"2"]),
        IDENTIFIERS,
    ),
    min_size=2,
    max_size=4,
).flatmap(
    lambda messages: st.sampled_from([1, 2]).map(
        lambda qos: [Publish("a", payload, qos, False, False, number) for payload, number in messages]
    )
)
ANSWER_TYPES: dict[int, type[PubAck | PubRec | PubComp]] = {0x40: PubAck, 0x50: PubRec, 0x70: PubComp}
FROM_CLIENT: st.SearchStrategy[Packet] = st.builds(
    lambda answer, number: answer(number), st.sampled_from([PubAck, PubRec, PubRel, PubRel, PubComp]), IDENTIFIERS
)
PACKETS = st.lists(st.one_of(PUBLICATIONS, st.just(PingReq()), FROM_CLIENT), max_size=30)


def one_by_one(packets: list[Packet]) -> list[Packet]:
    found: list[Packet] = []
    for packet in packets:
        if isinstance(packet, PublishRun):
            assert packet.count > 1
            found += packet.publications()
        elif isinstance(packet, AnswerRun):
            assert packet.count > 0
            answer = ANSWER_TYPES[packet.first_byte]
            found += [answer(packet.packet_identifier + n) for n in range(packet.count)]
        elif isinstance(packet, PubRelRun):
            assert packet.identifiers
            found += [PubRel(identifier) for identifier in packet.identifiers]
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
    data = encode(Publish("a", b"x", 0, False, False, 0)) * count
    data += b"".join(encode(Publish("a", b"x", 1, False, False, n)) for n in range(1, count + 1))
    data += b"".join(encode(Publish("a", b"x", 2, False, False, n)) for n in range(1, count + 1))
    for answer in (PubAck, PubRec, PubRel, PubComp):
        data += b"".join(encode(answer(n)) for n in range(1, count + 1))
    data += rest
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
        Publish("a", b"1", 1, False, True, 1),
        Publish("a", b"1", 2, False, False, 1),
    ]
    for other in others:
        assert decoder().feed(encode(first) + encode(other)) == [first, other]
    assert Decoder(1 << 20).feed(encode(first) * 2) == [first, first]


@pytest.mark.parametrize(("qos", "answer"), [(1, PubAck), (2, PubRec)])
def test_acknowledged_packets_are_a_run_whatever_their_identifiers(qos: int, answer: type[PubAck | PubRec]) -> None:
    packets = [Publish("a", b"%d" % n, qos, False, False, identifier) for n, identifier in enumerate([9, 7, 7, 65_535])]
    run = decoder().feed(b"".join(map(encode, packets)))[0]
    assert isinstance(run, PublishRun)
    assert run.identifiers == [9, 7, 7, 65_535]
    assert run.publications() == packets
    assert run.acknowledgements() == b"".join(encode(answer(packet.packet_identifier)) for packet in packets)
    for n, packet in enumerate(packets):
        packet.packet_identifier = 254 + n
    assert run.renumbered(254) == b"".join(map(encode, packets))


def test_identifier_zero_within_a_run_ends_the_connection_after_those_before_it() -> None:
    packets = b"".join(encode(Publish("a", b"x", 1, False, False, 7)) for _ in range(3))
    gathering = decoder()
    assert len(one_by_one(gathering.feed(packets + packets[:5] + b"\0\0x"))) == 3
    assert gathering.error is not None
    assert gathering.error.requirement == "MQTT-2.3.1-1"


@pytest.mark.parametrize("length", [b"\x05", b"\x85\x00", b"\x85\x80\x80\x00"])
def test_packets_with_a_longer_length_than_they_need_are_no_run(length: bytes) -> None:
    # Whoever gets a run expects the packets that `encode` would make: anything else breaks the link.
    packets = (b"\x30" + length + b"\x00\x01abc") * 2
    found = decoder().feed(packets)
    assert one_by_one(found) == [Publish("a", b"bc", 0, False, False, 0)] * 2
    assert all(packet.frames == b"\x30\x05\x00\x01abc" * 2 for packet in found if isinstance(packet, PublishRun))


def connected(*, gathers_runs: bool = True, limits: Limits | None = None) -> ServerConnection:
    machine = ServerConnection(now=0, limits=limits or Limits(), gathers_runs=gathers_runs)
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


class Pair:
    """A publisher and a subscriber, joined as an edge that serves the topic joins them."""

    def __init__(self, *, gathers_runs: bool) -> None:
        self.publisher = connected(gathers_runs=gathers_runs, limits=Limits(receive_maximum=8))
        self.subscriber = connected(gathers_runs=gathers_runs, limits=Limits(max_inflight=6, max_queued=1000))
        # A delivery with a token is kept by itself.
        self.token = None if gathers_runs else "token"
        self.unanswered: list[tuple[int, int]] = []
        self.failed = False

    def publish(self, data: bytes, granted: int, *, answers: bool) -> None:
        """Take bytes of the publisher; without `answers` its publications are answered later."""
        for event in self.publisher.feed(data, 0):
            if isinstance(event, PublishRun):
                run = PublishRun(event.topic, event.frames, event.count, event.payload_bytes)  # as a router gives it
                self.failed = not self.subscriber.deliver_run(run, granted) or self.failed
                if event.identifiers and answers:
                    self.publisher.acknowledge_run(event)
                elif event.identifiers:
                    self.unanswered += [(identifier, event.qos) for identifier in event.identifiers]
            elif isinstance(event, Publish):
                message = OutboundMessage(event.topic.encode(), event.payload, retain=False)
                self.failed = not self.subscriber.deliver(message, min(event.qos, granted), self.token) or self.failed
                if event.qos and answers:
                    self.publisher.acknowledge(event.packet_identifier, event.qos)
                elif event.qos:
                    self.unanswered.append((event.packet_identifier, event.qos))
            else:
                self.failed = True

    def answer(self, number: int) -> None:
        """Answer one of the publications that wait for it."""
        if self.unanswered:
            self.publisher.acknowledge(*self.unanswered.pop(number % len(self.unanswered)))

    def release(self, identifiers: list[int]) -> None:
        """Take PUBREL packets of the publisher."""
        data = b"".join(encode(PubRel(identifier)) for identifier in identifiers)
        self.failed = bool(self.publisher.feed(data, 0)) or self.failed

    def receive(self, data: bytes) -> None:
        """Take bytes of the subscriber."""
        self.failed = any(isinstance(event, Failed) for event in self.subscriber.feed(data, 0)) or self.failed

    @property
    def seen(self) -> tuple[object, ...]:
        """What there is to see from outside."""
        machines = (self.publisher, self.subscriber)
        sent = self.subscriber.session.sent
        return (
            [b"".join(machine.take_output()) for machine in machines],
            [machine.state for machine in machines],
            [machine.wants_pause for machine in machines],
            self.publisher.outstanding_received,
            sorted(self.publisher.session.received.recorded()),
            (self.subscriber.queued_count, len(sent), sent.has_room, sent.last_identifier),
            self.failed,
        )

    def repeated(self) -> bytes:
        """Return what the next connection of the subscriber begins with."""
        output: list[bytes] = []
        self.subscriber.session.resume(output)
        return b"".join(output)


ANSWERS = st.lists(st.tuples(st.sampled_from([PubAck, PubAck, PubRec, PubComp]), st.integers(1, 12)), max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"),
            st.one_of(PACKETS, ALIKE, ALIKE, st.tuples(ALIKE, PACKETS).map(lambda pair: pair[0] + pair[1])),
            st.sampled_from([1, 1, 2, 2, 2, 0]),
            st.booleans(),
        ),
        st.tuples(st.just("answer"), st.integers(0, 5)),
        st.tuples(st.just("receive"), ANSWERS),
        st.tuples(st.just("in order"), st.integers(1, 8), st.booleans()),
        st.tuples(st.just("release"), st.lists(IDENTIFIERS, max_size=2), st.integers(0, 8)),
    ),
    max_size=12,
)


@hypothesis.given(STEPS)
def test_what_is_passed_on_together_looks_like_one_by_one(steps: list[tuple[Any, ...]]) -> None:
    fast, slow = Pair(gathers_runs=True), Pair(gathers_runs=False)
    for kind, *values in steps:
        slow_recorded = slow.publisher.session.received.recorded()
        sent = slow.subscriber.session.sent
        slow_oldest = [PubAck(number) if qos == 1 else PubRec(number) for number, (_, qos, _) in sent.unacknowledged()]
        slow_completions = [PubComp(number) for number, _ in sent.released()]
        for pair in (fast, slow):
            if kind == "publish":
                packets, granted, answers = values
                pair.publish(b"".join(map(encode, packets)), granted, answers=answers)
            elif kind == "answer":
                pair.answer(values[0])
            elif kind == "receive":
                # Who acknowledges what is queued yet may see that the queue moves after several PUBACKs.
                latest = slow.subscriber.session.sent.last_identifier
                pair.receive(b"".join(encode(answer(number)) for answer, number in values[0] if number <= latest))
            elif kind == "release":
                recorded = slow_recorded[: values[1]]
                pair.release([*recorded, *values[0]])
            else:
                count, completes = values
                pair.receive(b"".join(map(encode, (slow_completions if completes else slow_oldest)[:count])))
        assert fast.seen == slow.seen
        if fast.failed:
            return
    assert fast.repeated() == slow.repeated()


@pytest.mark.parametrize("data", [encode(Publish("a", b"", 0, False, False, 0)) * 2, encode(PubAck(1)) * 2])
def test_a_run_before_connect_ends_the_connection(data: bytes) -> None:
    machine = ServerConnection(now=0, limits=Limits(), gathers_runs=True)
    assert isinstance(machine.feed(data, 0)[0], Failed)
