from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.mqtt.codec import Decoder, encode
from services.edge.mqtt.errors import (
    LocalUseError,
    MalformedPacketError,
    ProtocolViolationError,
)
from services.edge.mqtt.events import Acknowledged, Event, Failed
from services.edge.mqtt.machine import TRANSITIONS, Limits, ServerConnection, State
from services.edge.mqtt.outbound import OutboundMessage
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
from tests.unit.edge.mqtt.mqtt_strategies import FROM_SERVER, PACKET

CONNECT = Connect(4, "c", True, 60, None, None, None)
KEPT = Connect(4, "c", False, 60, None, None, None)


def sent_by(machine: ServerConnection) -> list[Packet]:
    """Decode what the machine wants to send."""
    decoder = Decoder(1 << 22)
    assert machine.has_output == bool(machine._output)
    packets = decoder.feed(b"".join(machine.take_output()))
    assert decoder.error is None
    assert decoder.pending_bytes == 0
    assert not machine.has_output
    return packets


def feed(machine: ServerConnection, *packets: Packet, now: float = 0.0) -> list[Event]:
    return machine.feed(b"".join(encode(packet) for packet in packets), now)


def connected(limits: Limits | None = None, connect: Connect = CONNECT) -> ServerConnection:
    machine = ServerConnection(now=0.0, limits=limits or Limits())
    assert feed(machine, connect) == [connect]
    assert machine.accept(0.0, session_present=False) == []
    assert sent_by(machine) == [ConnAck(False, 0)]
    return machine


def state_of(machine: ServerConnection) -> State:
    """Read the state anew; a type checker would remember what an earlier assertion said."""
    return machine.state


def failure(events: list[Event]) -> str:
    """Return the statement of the failure, which is the last event."""
    assert not any(isinstance(event, Failed) for event in events[:-1])
    last = events[-1]
    assert isinstance(last, Failed)
    return last.error.requirement


def message(payload: bytes = b"m") -> OutboundMessage:
    return OutboundMessage(b"t", payload, False)


def publish(qos: int, identifier: int, *, dup: bool = False, payload: bytes = b"m") -> Publish:
    return Publish("t", payload, qos, False, dup, identifier)


# --- CONNECT ----------------------------------------------------------------------------------


def test_states_on_the_way_in() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    assert state_of(machine) is State.AWAITING_CONNECT
    assert feed(machine, CONNECT) == [CONNECT]
    assert state_of(machine) is State.CONNECTING
    assert not machine.has_output
    machine.accept(0.0, session_present=False)
    assert state_of(machine) is State.CONNECTED


@pytest.mark.spec("MQTT-3.2.0-1")
@pytest.mark.spec("MQTT-3.1.4-4")
def test_connack_comes_before_anything_else() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    assert feed(machine, KEPT, PingReq(), publish(0, 0)) == [KEPT]
    assert feed(machine, Subscribe(1, [("a", 0)])) == []
    assert not machine.has_output
    events = machine.accept(0.0, session_present=True)
    assert events == [publish(0, 0), Subscribe(1, [("a", 0)])]
    assert sent_by(machine) == [ConnAck(True, 0), PingResp()]


@pytest.mark.spec("MQTT-3.1.0-1")
@pytest.mark.parametrize(
    "packet",
    [packet for packet in TRANSITIONS[State.CONNECTED] if packet is not Connect],
    ids=lambda packet: packet.__name__,
)
def test_first_packet_other_than_connect_ends_the_connection(packet: type) -> None:
    samples: dict[type, Packet] = {
        Publish: publish(1, 1),
        PubAck: PubAck(1),
        PubRec: PubRec(1),
        PubRel: PubRel(1),
        PubComp: PubComp(1),
        Subscribe: Subscribe(1, [("a", 0)]),
        Unsubscribe: Unsubscribe(1, ["a"]),
        PingReq: PingReq(),
        Disconnect: Disconnect(),
    }
    machine = ServerConnection(now=0.0, limits=Limits())
    assert failure(feed(machine, samples[packet], CONNECT)) == "MQTT-3.1.0-1"
    assert state_of(machine) is State.CLOSED
    assert not machine.has_output


@pytest.mark.spec("MQTT-3.1.0-2")
def test_second_connect_ends_the_connection() -> None:
    machine = connected()
    events = feed(machine, publish(0, 0), CONNECT, publish(0, 0))
    assert events[0] == publish(0, 0)
    assert len(events) == 2
    assert failure(events) == "MQTT-3.1.0-2"


@pytest.mark.spec("MQTT-3.1.0-2")
def test_second_connect_before_the_answer_ends_the_connection() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    assert feed(machine, CONNECT, CONNECT) == [CONNECT]
    assert failure(machine.accept(0.0, session_present=False)) == "MQTT-3.1.0-2"


@pytest.mark.spec("MQTT-3.1.2-2")
@pytest.mark.parametrize("level", [0, 5, 6, 0x84])
def test_unknown_protocol_level_is_answered_and_closed(level: int) -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    body = b"\x00\x04MQTT" + bytes((level,)) + b"\x02\x00\x3c\x00\x00\x01c"
    events = machine.feed(bytes((0x10, len(body))) + body, 0.0)
    assert failure(events) == "MQTT-3.1.2-2"
    assert len(events) == 1
    assert sent_by(machine) == [ConnAck(False, 1)]


@pytest.mark.spec("MQTT-3.1.4-1")
def test_malformed_connect_is_closed_without_an_answer() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    events = machine.feed(b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x3c\x00\x01c", 0.0)
    assert failure(events) == "MQTT-3.1.2-3"
    assert not machine.has_output


def test_mqtt_3_1_is_spoken() -> None:
    old = Connect(3, "c", True, 60, None, None, None)
    connected(connect=old)


def test_empty_client_id_is_the_drivers_decision() -> None:
    nameless = Connect(4, "", False, 0, None, None, None)
    machine = ServerConnection(now=0.0, limits=Limits())
    assert feed(machine, nameless) == [nameless]


@pytest.mark.spec("MQTT-3.2.2-4")
@pytest.mark.spec("MQTT-3.2.2-5")
@pytest.mark.spec("MQTT-3.1.4-5")
def test_refused_client_is_answered_and_not_listened_to() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    assert feed(machine, CONNECT, publish(1, 1)) == [CONNECT]
    machine.refuse(2)
    assert sent_by(machine) == [ConnAck(False, 2)]
    assert state_of(machine) is State.CLOSED
    assert feed(machine, publish(1, 2)) == []


def test_bytes_before_connack_are_bounded() -> None:
    machine = ServerConnection(now=0.0, limits=Limits(max_packet_bytes=1000))
    assert feed(machine, CONNECT) == [CONNECT]
    chunk = bytes(64 * 1024)
    for _ in range(8):
        assert machine.feed(chunk, 0.0) == []
    assert failure(machine.feed(chunk, 0.0)) == "MQTT-4.8.0-1"


def test_stranger_may_not_send_a_packet_larger_than_a_connect() -> None:
    wire = b"\x10\x80\x80\x40"  # 1 MiB
    machine = ServerConnection(now=0.0, limits=Limits(max_packet_bytes=1 << 22))
    assert failure(machine.feed(wire, 0.0)) == "MQTT-4.8.0-1"


def test_largest_connect_is_accepted() -> None:
    field = 65_535
    largest = Connect(3, "c" * field, True, 0, "u" * field, bytes(field), Will("w" * field, bytes(field), 2, True))
    machine = ServerConnection(now=0.0, limits=Limits())
    assert feed(machine, largest)[0] == largest


def test_limit_of_packets_applies_after_accept() -> None:
    machine = connected(Limits(max_packet_bytes=1 << 22))
    big = publish(0, 0, payload=bytes(1 << 21))
    assert feed(machine, big) == [big]


@pytest.mark.spec("MQTT-3.2.2-1")
def test_clean_session_is_never_present() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    feed(machine, CONNECT)
    with pytest.raises(LocalUseError):
        machine.accept(0.0, session_present=True)


def test_misuse_by_the_driver_raises() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    for call in (
        lambda: machine.accept(0.0, session_present=False),
        lambda: machine.refuse(5),
        lambda: machine.deliver(message(), 0),
        lambda: machine.deliver(message(), 1),
        lambda: machine.suback(1, [0]),
        lambda: machine.unsuback(1),
    ):
        with pytest.raises(LocalUseError):
            call()
    feed(machine, CONNECT)
    with pytest.raises(LocalUseError):
        machine.refuse(0)
    machine.accept(0.0, session_present=False)
    with pytest.raises(LocalUseError):
        machine.accept(0.0, session_present=False)
    with pytest.raises(LocalUseError):
        machine.refuse(5)
    with pytest.raises(LocalUseError):
        machine.deliver(message(), 3)
    with pytest.raises(LocalUseError):
        machine.suback(1, [3])  # [MQTT-3.9.3-2]
    assert len(machine.session.sent) == 0


def test_calls_after_the_end_are_ignored() -> None:
    machine = connected()
    feed(machine, publish(1, 1), publish(2, 2), Subscribe(3, [("a", 0)]), Disconnect())
    machine.acknowledge(1, 1)
    machine.acknowledge(2, 2)
    machine.suback(3, [0])
    machine.unsuback(3)
    machine.refuse(5)
    machine.close()
    assert not machine.deliver(message(), 0)
    assert not machine.deliver(message(), 1)
    assert machine.accept(0.0, session_present=False) == []
    assert machine.feed(b"\xff" * 100, 0.0) == []
    assert machine.on_deadline(1e9) == []
    assert machine.next_deadline() is None
    assert not machine.has_output


# --- received publications --------------------------------------------------------------------


def test_disconnect_is_the_last_event() -> None:
    machine = connected()
    assert feed(machine, Disconnect(), publish(0, 0), CONNECT) == [Disconnect()]
    assert state_of(machine) is State.CLOSED


def test_malformed_packet_is_reported_after_the_packets_before_it() -> None:
    machine = connected()
    events = machine.feed(encode(publish(0, 0)) + b"\xc1\x00" + encode(publish(0, 0)), 0.0)
    assert events[:-1] == [publish(0, 0)]
    assert failure(events) == "MQTT-2.2.2-2"
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, MalformedPacketError)


@given(FROM_SERVER)
def test_packet_that_only_a_server_sends_ends_the_connection(packet: Packet) -> None:
    machine = connected()
    events = feed(machine, packet)
    assert failure(events) == "MQTT-4.8.0-1"
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, ProtocolViolationError)


@pytest.mark.spec("MQTT-4.3.2-2")
@pytest.mark.spec("MQTT-2.3.1-6")
def test_qos1_received_is_acknowledged_when_the_mesh_has_it() -> None:
    machine = connected()
    assert feed(machine, publish(1, 9)) == [publish(1, 9)]
    assert not machine.has_output
    assert machine.outstanding_received == 1
    machine.acknowledge(9, 1)
    assert sent_by(machine) == [PubAck(9)]
    assert machine.outstanding_received == 0
    machine.acknowledge(9, 1)
    assert not machine.has_output
    assert feed(machine, publish(1, 9)) == [publish(1, 9)], "a new publication"


@pytest.mark.spec("MQTT-4.3.3-2")
def test_qos2_received_is_delivered_once() -> None:
    machine = connected()
    assert feed(machine, publish(2, 9)) == [publish(2, 9)]
    assert feed(machine, publish(2, 9, dup=True)) == []
    assert not machine.has_output, "the mesh does not have it yet"
    assert machine.outstanding_received == 1
    machine.acknowledge(9, 2)
    machine.acknowledge(9, 2)
    assert sent_by(machine) == [PubRec(9)]
    assert machine.outstanding_received == 0
    assert feed(machine, publish(2, 9, dup=True)) == []
    assert sent_by(machine) == [PubRec(9)]
    assert feed(machine, PubRel(9)) == []
    assert sent_by(machine) == [PubComp(9)]
    assert feed(machine, PubRel(9)) == []
    assert sent_by(machine) == [PubComp(9)]
    assert feed(machine, publish(2, 9)) == [publish(2, 9)], "the identifier is free again"


def test_receive_maximum_asks_for_a_pause() -> None:
    machine = connected(Limits(receive_maximum=3))
    feed(machine, publish(1, 1), publish(2, 2))
    assert not machine.wants_pause
    feed(machine, publish(1, 3))
    assert machine.wants_pause
    machine.acknowledge(2, 2)
    assert not machine.wants_pause, "PUBREL must be read, so what is recorded does not count"
    assert feed(machine, publish(1, 4), publish(1, 5)) == [publish(1, 4), publish(1, 5)]


def test_requests_without_an_answer_count_for_the_pause() -> None:
    machine = connected(Limits(receive_maximum=2))
    feed(machine, Subscribe(1, [("a", 0)]), Unsubscribe(2, ["a"]))
    assert machine.wants_pause
    assert machine.outstanding_received == 0
    machine.suback(1, [1])
    assert not machine.wants_pause
    machine.unsuback(2)
    assert sent_by(machine) == [SubAck(1, [1]), UnsubAck(2)]


def test_qos2_identifiers_without_pubrel_are_bounded() -> None:
    machine = connected(Limits(max_unreleased=2))
    events = feed(machine, publish(2, 1), publish(2, 2), publish(2, 2), publish(2, 3))
    assert events[:2] == [publish(2, 1), publish(2, 2)]
    assert failure(events) == "MQTT-4.8.0-1"
    assert len(machine.session.received) == 2


@pytest.mark.spec("MQTT-3.12.4-1")
def test_pingreq_is_answered() -> None:
    machine = connected()
    assert feed(machine, PingReq(), PingReq()) == []
    assert sent_by(machine) == [PingResp(), PingResp()]


# --- sent publications ------------------------------------------------------------------------


def test_qos0_delivery_is_sent_at_once_whatever_the_window() -> None:
    machine = connected(Limits(max_inflight=1, max_queued=0))
    assert machine.deliver(message(), 1)
    assert machine.deliver(message(b"zero"), 0, "token")
    assert sent_by(machine) == [publish(1, 1), publish(0, 0, payload=b"zero")]


@pytest.mark.spec("MQTT-4.3.2-1")
def test_qos1_delivery() -> None:
    machine = connected()
    assert machine.deliver(message(), 1, "token")
    assert sent_by(machine) == [publish(1, 1)]
    assert feed(machine, PubAck(2)) == [], "unknown identifier"
    assert feed(machine, PubAck(1)) == [Acknowledged("token")]
    assert feed(machine, PubAck(1)) == []
    assert not machine.has_output


@pytest.mark.spec("MQTT-4.3.3-1")
def test_qos2_delivery() -> None:
    machine = connected()
    assert machine.deliver(message(), 2, "token")
    assert sent_by(machine) == [publish(2, 1)]
    assert feed(machine, PubRec(1)) == []
    assert sent_by(machine) == [PubRel(1)]
    assert feed(machine, PubRec(1)) == []
    assert sent_by(machine) == [PubRel(1)]
    assert feed(machine, PubComp(1)) == [Acknowledged("token")]
    assert feed(machine, PubComp(1)) == []


def test_pubrec_of_an_unknown_identifier_is_answered() -> None:
    machine = connected()
    assert feed(machine, PubRec(77)) == []
    assert sent_by(machine) == [PubRel(77)]


def test_delivery_without_a_token_is_completed_silently() -> None:
    machine = connected()
    machine.deliver(message(), 1)
    assert feed(machine, PubAck(1)) == []
    assert len(machine.session.sent) == 0


@pytest.mark.spec("MQTT-4.6.0-6")
def test_full_window_queues_and_sends_in_order() -> None:
    machine = connected(Limits(max_inflight=2, max_queued=3))
    results = [machine.deliver(message(bytes((n,))), 1 + n % 2, n) for n in range(7)]
    assert results == [True] * 5 + [False] * 2
    assert [packet.payload for packet in sent_by(machine) if isinstance(packet, Publish)] == [
        b"\0",
        b"\1",
    ]
    assert feed(machine, PubAck(1)) == [Acknowledged(0)]
    assert sent_by(machine) == [publish(1, 3, payload=b"\2")]
    assert machine.deliver(message(b"\5"), 1, 5), "one place is free in the queue"
    assert feed(machine, PubRec(2)) == []
    assert sent_by(machine) == [PubRel(2)], "the window is still full"
    assert feed(machine, PubComp(2), PubAck(3)) == [Acknowledged(1), Acknowledged(2)]
    assert sent_by(machine) == [publish(2, 4, payload=b"\3"), publish(1, 5, payload=b"\4")]
    assert machine.session.queued_count == 1


def test_queue_is_bounded_in_bytes_and_takes_at_least_one() -> None:
    machine = connected(Limits(max_inflight=1, max_queued_bytes=10))
    assert machine.deliver(message(), 1)
    assert machine.deliver(message(bytes(11)), 1)
    assert not machine.deliver(message(b""), 1)
    feed(machine, PubAck(1))
    assert machine.deliver(message(bytes(6)), 1)
    assert not machine.deliver(message(bytes(6)), 1)
    assert machine.deliver(message(bytes(4)), 1)


# --- resumed sessions -------------------------------------------------------------------------


def resumed(first: ServerConnection, limits: Limits | None = None) -> ServerConnection:
    first.close()
    machine = ServerConnection(now=0.0, limits=limits or Limits())
    feed(machine, KEPT)
    events = machine.accept(0.0, session_present=True, session=first.session)
    assert events == []
    return machine


@pytest.mark.spec("MQTT-4.4.0-1")
@pytest.mark.spec("MQTT-3.3.1-1")
@pytest.mark.spec("MQTT-4.6.0-1")
@pytest.mark.spec("MQTT-4.6.0-4")
def test_resumed_session_repeats_what_is_not_completed() -> None:
    first = connected(Limits(max_inflight=5, max_queued=10), KEPT)
    for n in range(7):
        assert first.deliver(message(bytes((n,))), 2 if n in (0, 1, 3) else 1, n)
    first.take_output()
    feed(first, PubRec(2), PubRec(1), PubAck(5))
    machine = resumed(first)
    assert sent_by(machine) == [
        ConnAck(True, 0),
        PubRel(2),
        PubRel(1),
        publish(1, 3, dup=True, payload=b"\2"),
        publish(2, 4, dup=True, payload=b"\3"),
        publish(1, 6, dup=True, payload=b"\5"),
    ]
    events = feed(machine, PubAck(3), PubComp(1), PubComp(2), PubRec(4), PubAck(6), PubComp(4))
    assert [event.token for event in events if isinstance(event, Acknowledged)] == [2, 0, 1, 5, 3]
    assert sent_by(machine)[0] == publish(1, 7, payload=b"\6"), "from the queue, for the first time"


@pytest.mark.spec("MQTT-4.3.3-2")
def test_resumed_session_knows_the_received_identifiers() -> None:
    first = connected(connect=KEPT)
    feed(first, publish(2, 1), publish(2, 2), publish(2, 3), publish(2, 4))
    first.acknowledge(1, 2)
    first.close()
    first.acknowledge(2, 2)  # the mesh answered after the connection was gone
    machine = resumed(first)
    first.session.received.record(3)
    machine.take_output()
    assert machine.outstanding_received == 1
    repeated = [publish(2, n, dup=True) for n in (1, 2, 3, 4)]
    assert feed(machine, *repeated) == []
    assert sent_by(machine) == [PubRec(1), PubRec(2), PubRec(3)]
    machine.acknowledge(4, 2)
    assert sent_by(machine) == [PubRec(4)]
    assert feed(machine, *(PubRel(n) for n in (1, 2, 3, 4))) == []
    assert len(machine.session.received) == 0


def test_fresh_session_knows_nothing() -> None:
    machine = connected(connect=KEPT)
    assert len(machine.session.sent) == 0
    assert machine.session is not connected(connect=KEPT).session


# --- time -------------------------------------------------------------------------------------


@pytest.mark.spec("MQTT-3.1.2-24")
def test_silence_of_one_and_a_half_keep_alives_ends_the_connection() -> None:
    machine = ServerConnection(now=100.0, limits=Limits())
    feed(machine, CONNECT, now=101.0)
    assert machine.next_deadline() is None
    machine.accept(103.0, session_present=False)
    assert machine.next_deadline() == 103.0 + 90.0
    assert feed(machine, PingReq(), now=150.0) == []
    assert machine.next_deadline() == 240.0
    assert machine.on_deadline(239.9) == []
    assert state_of(machine) is State.CONNECTED
    assert failure(machine.on_deadline(240.0)) == "MQTT-3.1.2-24"
    assert state_of(machine) is State.CLOSED


def test_keep_alive_0_never_ends_the_connection() -> None:
    machine = connected(connect=Connect(4, "c", True, 0, None, None, None))
    assert machine.next_deadline() is None
    assert machine.on_deadline(1e9) == []


@pytest.mark.parametrize(("override", "deadline"), [(None, 90.0), (0, None), (3, 4.5)])
def test_driver_may_replace_the_keep_alive(override: int | None, deadline: float | None) -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    feed(machine, CONNECT)
    machine.accept(0.0, session_present=False, keep_alive_s=override)
    assert machine.next_deadline() == deadline


def test_part_of_a_packet_is_a_sign_of_life() -> None:
    machine = connected()
    assert machine.feed(b"\x30", 80.0) == []
    assert machine.next_deadline() == 170.0


def test_delivery_is_no_sign_of_life() -> None:
    machine = connected()
    machine.deliver(message(), 1)
    assert machine.next_deadline() == 90.0


def test_pause_that_we_asked_for_is_no_silence() -> None:
    machine = connected(Limits(receive_maximum=1))
    feed(machine, publish(1, 1), now=10.0)
    assert machine.wants_pause
    assert machine.on_deadline(100.0) == []
    assert machine.on_deadline(190.0) == []
    machine.acknowledge(1, 1)
    assert machine.on_deadline(280.0) == [], "what waits in the socket is not read yet"
    assert failure(machine.on_deadline(370.0)) == "MQTT-3.1.2-24"


def test_no_connect_in_time_ends_the_connection() -> None:
    machine = ServerConnection(now=5.0, limits=Limits(connect_timeout_s=2.0))
    assert machine.next_deadline() == 7.0
    machine.feed(b"\x10", 6.0)
    assert machine.next_deadline() == 7.0, "dripping bytes buy no time"
    assert machine.on_deadline(6.9) == []
    assert failure(machine.on_deadline(7.0)) == "MQTT-3.1.0-1"


# --- totality ---------------------------------------------------------------------------------


def in_state(state: State) -> ServerConnection:
    machine = ServerConnection(now=0.0, limits=Limits(receive_maximum=2, max_unreleased=3))
    if state is not State.AWAITING_CONNECT:
        feed(machine, CONNECT)
    if state is State.CONNECTED:
        machine.accept(0.0, session_present=False)
    if state is State.CLOSED:
        machine.close()
    return machine


def check_events(machine: ServerConnection, events: list[Event]) -> None:
    for event in events[:-1]:
        assert not isinstance(event, Failed | Disconnect)
    if events and isinstance(events[-1], Failed | Disconnect):
        assert state_of(machine) is State.CLOSED


@given(st.sampled_from(State), st.lists(PACKET, max_size=10), st.data())
def test_any_packets_in_any_state_proceed_or_end_closed(
    state: State, packets: list[Packet], data: st.DataObject
) -> None:
    machine = in_state(state)
    for packet in packets:
        before = machine.state
        if before is State.CONNECTED and data.draw(st.booleans()):
            machine.deliver(message(), data.draw(st.integers(0, 2)), object())
        events = feed(machine, packet)
        check_events(machine, events)
        if before is State.CLOSED:
            assert events == []
        elif before is not State.CONNECTING and type(packet) not in TRANSITIONS[before]:
            assert isinstance(events[-1], Failed)
        if machine.state is State.CONNECTING and data.draw(st.booleans()):
            check_events(machine, machine.accept(0.0, session_present=False))
        sent_by(machine)


@given(st.sampled_from(State), st.lists(st.binary(max_size=20), max_size=5))
def test_any_bytes_in_any_state_never_raise(state: State, chunks: list[bytes]) -> None:
    machine = in_state(state)
    for chunk in chunks:
        check_events(machine, machine.feed(chunk, 0.0))
        if machine.state is State.CONNECTING:
            check_events(machine, machine.accept(0.0, session_present=False))
    sent_by(machine)


@given(st.lists(PACKET, max_size=8), st.data())
def test_any_chunking_gives_the_same_events(packets: list[Packet], data: st.DataObject) -> None:
    wire = b"".join(encode(packet) for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    whole = in_state(State.CONNECTED)
    expected = whole.feed(wire, 0.0)
    pieces = in_state(State.CONNECTED)
    found: list[Event] = []
    for start, stop in itertools.pairwise([0, *cuts, len(wire)]):
        found += pieces.feed(wire[start:stop], 0.0)
    assert [repr(event) for event in found] == [repr(event) for event in expected]
    assert pieces.state is whole.state
    assert b"".join(pieces.take_output()) == b"".join(whole.take_output())


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(State)


def test_pubrel_before_pubrec_ends_the_connection() -> None:
    """Else the late answer to the first publication would acknowledge the next one with its identifier."""
    machine = connected()
    events = feed(machine, publish(2, 5), PubRel(5))
    assert isinstance(events[-1], Failed)
    assert machine.state is State.CLOSED


@pytest.mark.spec("MQTT-4.6.0-2")
@pytest.mark.spec("MQTT-4.6.0-3")
@pytest.mark.parametrize("qos", [1, 2])
@given(order=st.permutations(list(range(1, 9))))
def test_answers_keep_the_order_of_the_publications(qos: int, order: list[int]) -> None:
    machine = connected()
    feed(machine, *(publish(qos, n) for n in range(1, 9)))
    for n in order:
        machine.acknowledge(n, qos)
    answer = PubAck if qos == 1 else PubRec
    assert sent_by(machine) == [answer(n) for n in range(1, 9)]


def test_an_answer_waits_for_those_before_it() -> None:
    machine = connected()
    feed(machine, publish(1, 1), publish(1, 2), publish(1, 2), publish(2, 3))
    machine.acknowledge(2, 1)
    assert sent_by(machine) == []
    machine.acknowledge(3, 2)
    assert sent_by(machine) == [PubRec(3)], "the two QoS have their own order"
    machine.acknowledge(1, 1)
    assert sent_by(machine) == [PubAck(1), PubAck(2)]
    machine.acknowledge(2, 1)
    assert sent_by(machine) == [PubAck(2)]


@pytest.mark.parametrize(("level", "told"), [(3, False), (4, True)])
def test_a_client_of_mqtt_31_is_not_told_of_its_session(level: int, told: bool) -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    machine.feed(encode(Connect(level, "c", False, 0, None, None, None)), 0.0)
    machine.accept(0.0, session_present=True)
    assert sent_by(machine) == [ConnAck(told, 0)]
