"""Statements that take more than the bytes of one connection: several clients, time, faults, the services' part."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncGenerator

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from typing_extensions import override

from services.edge.mqtt import codec
from services.edge.mqtt.errors import LocalUseError
from services.edge.mqtt.machine import Limits, ServerConnection
from services.edge.mqtt.packets import (
    ConnAck,
    Connect,
    ConnectReturnCode,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    Will,
)
from services.edge.router_link import RouterLink
from services.session.domain.effects import Decide, Evict
from services.session.domain.presence import Presence
from tests.conformance.live import MAX_SUBSCRIPTIONS, LiveEdge, Wire, live_edge, until
from tests.support.fakes import FakeSession
from weimq.auth.v1 import auth_pb2
from weimq.session.v1 import session_pb2

pytestmark = pytest.mark.timeout(30)


class Talk:
    """A connection in packets."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._decoder = codec.Decoder(1 << 22)
        self._packets: list[Packet] = []

    def send(self, *packets: Packet) -> None:
        self.wire.send(b"".join(map(codec.encode, packets)))

    async def receive(self) -> Packet | None:
        """Return the next packet, None at the end."""
        while not self._packets:
            data = await self.wire.take(max(1, len(self.wire.received)))
            if not data:
                return None
            self._packets += self._decoder.feed(data)
        return self._packets.pop(0)

    async def fence(self) -> list[Packet]:
        """Return what comes before the answer to a publication that nobody gets."""
        self.send(Publish("$fence", b"", 1, False, False, 65_000))
        found: list[Packet] = []
        while (packet := await self.receive()) != PubAck(65_000):
            assert packet is not None, "closed"
            found.append(packet)
        return found


def connect(client_id: str = "me", *, clean_session: bool = True, keep_alive_s: int = 60) -> Connect:
    return Connect(4, client_id, clean_session, keep_alive_s, None, None, None)


@contextlib.asynccontextmanager
async def talking(edge: LiveEdge, packet: Connect) -> AsyncGenerator[Talk]:
    """Connect and get in."""
    async with edge.wire() as wire:
        talk = Talk(wire)
        talk.send(packet)
        assert await talk.receive() == ConnAck(False, 0)
        yield talk


# --- CONNECT ----------------------------------------------------------------------------------


@pytest.mark.spec("MQTT-3.1.3-1")
@pytest.mark.spec("MQTT-3.1.2-9")
def test_fields_of_connect_are_read_in_their_order() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    body = b"\x00\x04MQTT\x04\xf6\x00\x3c" + b"".join(
        len(field).to_bytes(2, "big") + field for field in (b"client", b"will topic", b"will message", b"user", b"pass")
    )
    assert machine.feed(bytes((0x10, len(body))) + body, 0.0) == [
        Connect(4, "client", True, 60, "user", b"pass", Will("will topic", b"will message", 2, True))
    ]


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.1.3-6")
async def test_each_empty_client_id_becomes_a_unique_one() -> None:
    async with (
        live_edge() as edge,
        talking(edge, connect("")),
        talking(edge, connect("")),
        talking(edge, connect("named")),
    ):
        client_ids = [opening.connection.client_id for opening in edge.session.openings]
        assert len(set(client_ids)) == 3
        assert all(client_ids)
        assert client_ids[2] == "named"


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.1.3-9")
@pytest.mark.spec("MQTT-3.2.2-4")
@pytest.mark.spec("MQTT-3.2.2-5")
async def test_a_client_id_that_is_not_let_in_gets_connack_2_and_the_end() -> None:
    async with live_edge() as edge, edge.wire() as wire:
        edge.session.taken.add("me")
        talk = Talk(wire)
        talk.send(connect(), PingReq())
        assert await talk.receive() == ConnAck(False, ConnectReturnCode.IDENTIFIER_REJECTED)
        assert await talk.receive() is None


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.2.2-5")
@pytest.mark.spec("MQTT-3.1.4-5")
async def test_what_follows_a_connect_with_wrong_credentials_is_not_processed() -> None:
    async with live_edge() as edge, edge.wire() as wire:
        talk = Talk(wire)
        talk.send(Connect(4, "me", True, 60, "u", b"wrong", None), Publish("a", b"x", 1, False, False, 1))
        assert await talk.receive() == ConnAck(False, ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD)
        assert await talk.receive() is None
        async with talking(edge, connect("other")) as other:
            assert await other.fence() == []
        assert [topic for topic, *_ in edge.router.published] == ["$fence"]


class PresenceSession(FakeSession):
    """Decides as the session service does: by its rules of presence."""

    def __init__(self) -> None:
        super().__init__()
        self._presence = Presence(edge_grace_ms=5000)
        self._presence.open_edge("edge", "1", 0, resumed=False)
        self._presence.complete_snapshot("edge", 0)
        self._now_ms = 1

    @override
    def _take(self, frame: session_pb2.LinkRequest) -> None:
        self.openings.extend(frame.openings)
        self.closings.extend(frame.closings)
        self.snapshots += frame.snapshot_complete
        for opening in frame.openings:
            one = opening.connection
            self._presence.open(
                "edge", one.instance_id, one.client_id, one.channel_id, one.address, self._now_ms,
                established_ms=0, takeover=opening.takeover,
            )  # fmt: skip
        for closing in frame.closings:
            one = closing.connection
            self._presence.close(
                "edge", one.instance_id, one.client_id, one.channel_id, one.address, self._now_ms,
                connect_time_ms=one.connect_time_ms, disconnected=False,
            )  # fmt: skip
        for effect in self._presence.take_effects():
            if isinstance(effect, Decide):
                admission = session_pb2.ADMISSION_ACCEPTED if effect.accepted else session_pb2.ADMISSION_DUPLICATE
                self.to_send.decisions.add(
                    channel_id=effect.channel_id, admission=admission, connect_time_ms=effect.connect_time_ms
                )
            elif isinstance(effect, Evict):
                self.to_send.evicted_channel_ids.append(effect.channel_id)
        self.link.confirm(frame.frame)
        self.link.wake()


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.1.4-2")
async def test_a_client_that_connects_again_displaces_its_older_connection() -> None:
    async with live_edge(session=PresenceSession()) as edge, talking(edge, connect("me")) as old:
        async with talking(edge, connect("me")) as new, talking(edge, connect("other")) as other:
            assert await old.receive() is None
            assert await new.fence() == []
            assert await other.fence() == []
        assert [closing.reason for closing in edge.session.closings][:1] == [session_pb2.CLOSE_REASON_EVICTED]


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.1.0-1")
async def test_a_connection_without_a_connect_is_closed_in_time() -> None:
    async with live_edge(connect_timeout_s=0.3) as edge, edge.wire() as wire:
        wire.send(b"\x10")
        assert await wire.wait_closed() == b""


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.1.2-24")
async def test_silence_of_one_and_a_half_keep_alives_closes_the_connection() -> None:
    async with (
        live_edge() as edge,
        talking(edge, connect("patient", keep_alive_s=0)) as patient,
        talking(edge, connect("silent", keep_alive_s=1)) as silent,
    ):
        start = time.monotonic()
        assert await silent.receive() is None
        assert time.monotonic() - start >= 1.45, "what the client sent last was a moment before"
        patient.send(PingReq())
        assert await patient.receive() == PingResp()
        await until(lambda: edge.session.closings)
        assert edge.session.closings[0].reason == session_pb2.CLOSE_REASON_KEEP_ALIVE_TIMEOUT


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.1.2-6")
async def test_nothing_of_a_clean_session_reaches_the_next_one() -> None:
    async with live_edge() as edge, talking(edge, connect("other")) as other:
        async with talking(edge, connect()) as first:
            first.send(Subscribe(1, [("a/#", 1)]))
            assert await first.receive() == SubAck(1, [1])
            first.send(Publish("b", b"1", 2, False, False, 7))
            assert await first.receive() == PubRec(7)
            other.send(Publish("a/x", b"unacknowledged", 1, False, False, 1))
            assert await other.receive() == PubAck(1)
            assert await first.receive() == Publish("a/x", b"unacknowledged", 1, False, False, 1)
            first.send(Disconnect())
            assert await first.receive() is None
        async with talking(edge, connect()) as second:
            other.send(Publish("a/x", b"nobody", 1, False, False, 2))
            assert await other.receive() == PubAck(2)
            assert await second.fence() == []
            second.send(Publish("b", b"2", 2, False, False, 7))
            assert await second.receive() == PubRec(7)
        assert [payload for topic, payload, *_ in edge.router.published if topic == "b"] == [b"1", b"2"]


# --- PUBLISH ----------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.spec("MQTT-4.6.0-5")
@pytest.mark.spec("MQTT-4.6.0-6")
@pytest.mark.spec("MQTT-3.3.2-3")
async def test_messages_of_a_topic_reach_each_subscriber_in_their_order(qos: int) -> None:
    count = 500
    async with (
        live_edge() as edge,
        talking(edge, connect("publisher")) as publisher,
        talking(edge, connect("one")) as one,
        talking(edge, connect("two")) as two,
    ):
        for subscriber, topic_filter in ((one, "a/b"), (two, "a/+")):
            subscriber.send(Subscribe(1, [(topic_filter, qos)]))
            assert await subscriber.receive() == SubAck(1, [qos])
        for n in range(count):
            publisher.send(Publish("a/b", b"%d" % n, qos, False, False, n + 1 if qos else 0))
        for subscriber in (one, two):
            payloads: list[bytes] = []
            while len(payloads) < count:
                packet = await subscriber.receive()
                assert isinstance(packet, Publish | PubRel)
                if isinstance(packet, PubRel):
                    continue
                assert (packet.topic, packet.qos, packet.dup) == ("a/b", qos, False)
                payloads.append(packet.payload)
                if qos:
                    number = packet.packet_identifier
                    subscriber.wire.send(bytes((0x40 if qos == 1 else 0x50, 2)) + number.to_bytes(2, "big"))
                if qos == 2:
                    subscriber.wire.send(b"\x70\x02" + packet.packet_identifier.to_bytes(2, "big"))
            assert payloads == [b"%d" % n for n in range(count)]


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-4.5.0-1")
async def test_a_message_reaches_every_connected_client_that_subscribed_to_it() -> None:
    async with (
        live_edge() as edge,
        talking(edge, connect("publisher")) as publisher,
        talking(edge, connect("one")) as one,
        talking(edge, connect("two")) as two,
        talking(edge, connect("none")) as none,
    ):
        for talk, topic_filter in ((one, "a/#"), (two, "+/b"), (none, "b/#")):
            talk.send(Subscribe(1, [(topic_filter, 1)]))
            assert await talk.receive() == SubAck(1, [1])
        publisher.send(Publish("a/b", b"x", 1, False, False, 1))
        assert await publisher.receive() == PubAck(1)
        for talk in (one, two):
            assert await talk.receive() == Publish("a/b", b"x", 1, False, False, 1)
        assert await none.fence() == []


@pytest.mark.asyncio
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.spec("MQTT-3.3.5-2")
async def test_a_publication_that_is_not_allowed_closes_the_connection(qos: int) -> None:
    async with live_edge(auth_pb2.PROFILE_LMQ) as edge, talking(edge, connect()) as talk:
        talk.send(Publish("nobodys/topic", b"x", qos, False, False, 1 if qos else 0))
        assert await talk.receive() is None
        assert edge.router.published == []


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-4.8.0-2")
async def test_a_fault_while_a_packet_is_processed_closes_its_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live_edge() as edge, talking(edge, connect("a")) as victim, talking(edge, connect("b")) as other:
        with monkeypatch.context() as patch:

            def fail(*_args: object, **_kwargs: object) -> None:
                raise RuntimeError("out of something")

            asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
            patch.setattr(RouterLink, "publish", fail)
            victim.send(Publish("a", b"x", 1, False, False, 1))
            assert await victim.receive() is None
        assert await other.fence() == []


# --- SUBSCRIBE --------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-3.8.4-5")
@pytest.mark.spec("MQTT-3.9.3-1")
async def test_filters_that_are_not_granted_say_so_in_their_place() -> None:
    async with live_edge() as edge, talking(edge, connect()) as talk:
        filters = [(f"f/{n}", n % 3) for n in range(MAX_SUBSCRIPTIONS + 2)]
        talk.send(Subscribe(1, [*filters, filters[1]]))
        granted = [n % 3 for n in range(MAX_SUBSCRIPTIONS)]
        assert await talk.receive() == SubAck(1, [*granted, 0x80, 0x80, filters[1][1]])


@pytest.mark.spec("MQTT-3.9.3-2")
def test_only_the_four_return_codes_of_suback_can_be_sent() -> None:
    machine = ServerConnection(now=0.0, limits=Limits())
    machine.feed(codec.encode(connect()), 0.0)
    machine.accept(0.0, session_present=False)
    machine.take_output()
    sent = []
    for code in range(256):
        try:
            machine.suback(1, [code])
        except LocalUseError:
            assert not machine.has_output
        else:
            sent.append(code)
            assert b"".join(machine.take_output()) == bytes((0x90, 3, 0, 1, code))
    assert sent == [0, 1, 2, 0x80]


# --- a client of somebody else ----------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.spec("MQTT-7.0.0-2")
@pytest.mark.spec("MQTT-7.1.1-1")
async def test_an_unmodified_client_needs_no_extension() -> None:
    async with live_edge() as edge:
        assert await asyncio.to_thread(_round_trips, edge.ports["tcp"]) == [
            ("a/b", b"%d" % qos, qos, False, False) for qos in (0, 1, 2)
        ]


def _round_trips(port: int) -> list[tuple[str, bytes, int, bool, bool]]:
    """Publish and receive at each QoS with paho; return topic, payload, QoS, retain and DUP."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)

    def on_connect(*_args: object) -> None:
        client.subscribe("a/#", 2)

    granted: queue.Queue[object] = queue.Queue()
    messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
    client.on_connect = on_connect
    client.on_subscribe = lambda *_: granted.put(None)
    client.on_message = lambda _client, _userdata, message: messages.put(message)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        granted.get(timeout=10)
        received = []
        for qos in (0, 1, 2):
            client.publish("a/b", b"%d" % qos, qos)
            message = messages.get(timeout=10)
            received.append((message.topic, bytes(message.payload), message.qos, message.retain, message.dup))
        return received
    finally:
        client.disconnect()
        client.loop_stop()
