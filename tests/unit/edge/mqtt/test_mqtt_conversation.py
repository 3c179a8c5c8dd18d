"""Whole conversations of the machine with a simple client over a wire that breaks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.mqtt.codec import Decoder, encode
from services.edge.mqtt.events import Acknowledged
from services.edge.mqtt.inflight import SessionState
from services.edge.mqtt.machine import Limits, ServerConnection
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import (
    Connect,
    Packet,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
)
from services.edge.mqtt.window import MAX_IDENTIFIER

CONNECT = Connect(4, "c", False, 0, None, None, None)
LIMITS = Limits(max_inflight=4, max_queued=1000, receive_maximum=4)


class Client:
    """A client that keeps its session: answers deliveries, publishes, repeats after a break."""

    def __init__(self) -> None:
        self.got: list[Publish] = []
        self.received_qos2: set[int] = set()
        self.unacknowledged: dict[int, Publish] = {}
        self.released: list[int] = []
        self.next_identifier = 0

    def publish(self, payload: bytes, qos: int) -> Publish:
        self.next_identifier += 1
        packet = Publish("up", payload, qos, False, False, self.next_identifier)
        self.unacknowledged[self.next_identifier] = packet
        return packet

    def repeat(self) -> list[Packet]:
        again: list[Packet] = [PubRel(identifier) for identifier in self.released]
        again += [
            Publish(p.topic, p.payload, p.qos, False, True, p.packet_identifier) for p in self.unacknowledged.values()
        ]
        return again

    def handle(self, packet: Packet) -> list[Packet]:
        match packet:
            case Publish(qos=1):
                self.got.append(packet)
                return [PubAck(packet.packet_identifier)]
            case Publish(qos=2):
                if packet.packet_identifier not in self.received_qos2:
                    self.received_qos2.add(packet.packet_identifier)
                    self.got.append(packet)
                return [PubRec(packet.packet_identifier)]
            case PubRel():
                self.received_qos2.discard(packet.packet_identifier)
                return [PubComp(packet.packet_identifier)]
            case PubAck():
                self.unacknowledged.pop(packet.packet_identifier, None)
            case PubRec():
                if self.unacknowledged.pop(packet.packet_identifier, None) is not None:
                    self.released.append(packet.packet_identifier)
                return [PubRel(packet.packet_identifier)]
            case PubComp():
                if packet.packet_identifier in self.released:
                    self.released.remove(packet.packet_identifier)
            case _:
                pass
        return []


class Wire:
    """Client and machine, the bytes between them, and a mesh that answers in its own time."""

    def __init__(self) -> None:
        self.client = Client()
        self.session: SessionState | None = None
        self.forwarded: list[Publish] = []
        self.unanswered: list[tuple[int, int]] = []
        self.acknowledged: list[object] = []
        self.reconnect()

    def reconnect(self) -> None:
        """Lose what is on the way in both directions and resume."""
        self.to_client: list[Packet] = []
        self.to_server: list[Packet] = []
        # Answers for QoS 1 belong to the lost connection; those for QoS 2 to the session.
        self.unanswered = [entry for entry in self.unanswered if entry[1] == 2]
        machine = ServerConnection(now=0.0, limits=LIMITS)
        assert machine.feed(encode(CONNECT), 0.0) == [CONNECT]
        present = self.session is not None
        assert machine.accept(0.0, session_present=present, session=self.session) == []
        self.machine = machine
        self.session = machine.session
        self.to_server += self.client.repeat()
        self.flush()

    def flush(self) -> None:
        self.to_client += Decoder(1 << 20).feed(b"".join(self.machine.take_output()))

    def step_server(self) -> None:
        if self.to_server and not self.machine.wants_pause:
            for event in self.machine.feed(encode(self.to_server.pop(0)), 0.0):
                if isinstance(event, Publish):
                    self.forwarded.append(event)
                    self.unanswered.append((event.packet_identifier, event.qos))
                else:
                    assert isinstance(event, Acknowledged)
                    self.acknowledged.append(event.token)
            self.flush()

    def step_client(self) -> None:
        if self.to_client:
            self.to_server += self.client.handle(self.to_client.pop(0))

    def step_mesh(self) -> None:
        if self.unanswered:
            self.machine.acknowledge(*self.unanswered.pop(0))
            self.flush()

    def settle(self) -> None:
        for _ in range(5000):
            if not (self.to_server or self.to_client or self.unanswered):
                return
            self.step_mesh()
            self.step_server()
            self.step_client()
        pytest.fail("the conversation does not come to an end")


def check_messages(sent: list[tuple[int, bytes]], got: list[Publish], *, breaks: bool) -> None:
    """Compare what was published with what arrived."""
    for qos in (1, 2):
        expected = [payload for sent_qos, payload in sent if sent_qos == qos]
        found = [packet.payload for packet in got if packet.qos == qos]
        if qos == 2 or not breaks:
            assert sorted(found) == sorted(expected)
        else:
            assert set(found) == set(expected)


@pytest.mark.spec("MQTT-4.3.2-1")
@pytest.mark.spec("MQTT-4.3.3-1")
@pytest.mark.spec("MQTT-4.3.3-2")
@pytest.mark.spec("MQTT-4.4.0-1")
@given(st.integers(), st.booleans())
def test_nothing_is_lost_and_qos2_is_never_doubled_over_a_breaking_wire(seed: int, breaks: bool) -> None:
    chance = random.Random(seed)
    wire = Wire()
    downlink: list[tuple[int, bytes]] = []
    uplink: list[tuple[int, bytes]] = []
    for number in range(120):
        action = chance.randrange(40 if breaks else 39)
        payload = b"%d" % number
        qos = chance.choice([1, 2])
        if action < 6:
            downlink.append((qos, payload))
            assert wire.machine.deliver(OutboundMessage(b"down", payload, False), qos, payload)
            wire.flush()
        elif action < 12:
            uplink.append((qos, payload))
            wire.to_server.append(wire.client.publish(payload, qos))
        elif action < 21:
            wire.step_server()
        elif action < 30:
            wire.step_client()
        elif action < 39:
            wire.step_mesh()
        else:
            wire.reconnect()
        assert len(wire.machine.session.sent) <= LIMITS.max_inflight
        assert wire.machine.outstanding_received <= LIMITS.receive_maximum
    wire.settle()

    check_messages(downlink, wire.client.got, breaks=breaks)
    check_messages(uplink, wire.forwarded, breaks=breaks)
    # First deliveries are in order per QoS.
    for qos in (1, 2):
        firsts = list(dict.fromkeys(p.payload for p in wire.client.got if p.qos == qos))
        assert firsts == [payload for sent_qos, payload in downlink if sent_qos == qos]
    assert sorted(map(repr, set(wire.acknowledged))) == sorted(repr(p) for _, p in downlink)
    assert len(wire.acknowledged) == len(downlink), "each token comes back once"
    assert len(wire.machine.session.sent) == 0
    assert len(wire.machine.session.received) == 0
    assert wire.machine.outstanding_received == 0


def test_identifiers_are_used_again_after_the_wrap() -> None:
    machine = Wire().machine
    shared = OutboundMessage(b"a", b"", False)
    assert machine.deliver(shared, 2)  # identifier 1 stays in use
    machine.take_output()
    seen = []
    for _ in range(MAX_IDENTIFIER + 2):
        assert machine.deliver(shared, 1)
        identifier = machine.take_output()[1]
        seen.append(int.from_bytes(identifier, "big"))
        assert machine.feed(b"\x40\x02" + identifier, 0.0) == []
    assert seen[:2] == [2, 3]
    assert seen[MAX_IDENTIFIER - 2 :] == [MAX_IDENTIFIER, 2, 3, 4]
