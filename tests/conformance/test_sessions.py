"""Statements about sessions that outlive their connections, over edges, session shards and a router that are real."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator

import pytest
import pytest_asyncio

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
)
from tests.conformance.mesh import SessionMesh, running_mesh
from tests.support.edge_world import Device

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    """One mesh for the module; tests use client ids and topics of their own."""
    with running_mesh() as running:
        yield running


@pytest_asyncio.fixture
async def mesh(ports: list[int]) -> AsyncGenerator[SessionMesh]:
    """The connections of a test."""
    connections = SessionMesh(ports)
    yield connections
    connections.close()


@pytest.fixture
def me() -> str:
    """A client id, which is a topic of the test's own too."""
    return f"me-{secrets.token_hex(4)}"


async def connect(
    mesh: SessionMesh, client_id: str, *, clean: bool = False, present: bool = False, edge: int = 0
) -> Device:
    """Connect and get in; the CONNACK must say whether there was a session."""
    device = await mesh.connect(edge)
    await device.send(Connect(4, client_id, clean, 60, None, None, None))
    assert await device.receive() == ConnAck(present, 0)
    return device


async def leave(device: Device) -> None:
    """Disconnect."""
    await device.send(Disconnect())
    assert await device.receive() is None


async def subscribed(mesh: SessionMesh, client_id: str, qos: int, *, edge: int = 0) -> Device:
    """Connect with a session that has the client's topic."""
    device = await connect(mesh, client_id, edge=edge)
    await device.send(Subscribe(1, [(f"{client_id}/#", qos)]))
    assert await device.receive() == SubAck(1, [qos])
    return device


async def publish(mesh: SessionMesh, topic: str, *payloads: bytes, qos: int = 1) -> None:
    """Publish from somebody else, and wait for the acknowledgements."""
    device = await connect(mesh, f"publisher-{secrets.token_hex(4)}", clean=True)
    for n, payload in enumerate(payloads, 1):
        await device.send(Publish(topic, payload, qos, False, False, n))
        assert await device.receive() == (PubAck(n) if qos == 1 else PubRec(n))
    await leave(device)


async def fence(device: Device) -> list[Packet]:
    """Return what comes before the answer to PINGREQ."""
    await device.send(PingReq())
    found: list[Packet] = []
    while (packet := await device.receive()) != PingResp():
        assert packet is not None, "closed"
        found.append(packet)
    return found


async def payloads(device: Device, count: int) -> list[bytes]:
    """Return the payloads of as many messages, and complete them."""
    found: list[bytes] = []
    open_ids: set[int] = set()
    while len(found) < count or open_ids:
        packet = await device.receive()
        if isinstance(packet, PubRel):
            open_ids.discard(packet.packet_identifier)
            await device.send(PubComp(packet.packet_identifier))
            continue
        assert isinstance(packet, Publish), packet
        found.append(packet.payload)
        if packet.qos == 1:
            await device.send(PubAck(packet.packet_identifier))
        elif packet.qos == 2:
            open_ids.add(packet.packet_identifier)
            await device.send(PubRec(packet.packet_identifier))
    return found


# --- sessions that stay, and sessions that don't -----------------------------------------------


@pytest.mark.spec("MQTT-3.1.2-4")
@pytest.mark.spec("MQTT-3.1.4-3")
@pytest.mark.spec("MQTT-3.2.2-2")
@pytest.mark.spec("MQTT-4.1.0-1")
async def test_a_session_is_made_once_and_then_goes_on(mesh: SessionMesh, me: str) -> None:
    device = await subscribed(mesh, me, 1)
    await leave(device)
    for edge in (1, 0, 1):
        device = await connect(mesh, me, present=True, edge=edge)
        await publish(mesh, f"{me}/a", b"x")
        assert await payloads(device, 1) == [b"x"], "the subscription is there without SUBSCRIBE"
        await leave(device)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.spec("MQTT-3.1.2-5")
@pytest.mark.spec("MQTT-4.5.0-1")
@pytest.mark.spec("MQTT-4.6.0-6")
async def test_messages_of_qos_1_and_2_are_kept_for_an_absent_client_in_order(
    mesh: SessionMesh, me: str, qos: int
) -> None:
    await leave(await subscribed(mesh, me, qos))
    other = f"{me}-other"
    device = await connect(mesh, other)
    await device.send(Subscribe(1, [(f"{me}/+", qos)]))
    assert await device.receive() == SubAck(1, [qos])
    await leave(device)
    sent = [b"%d" % n for n in range(50)]
    await publish(mesh, f"{me}/a", *sent, qos=qos)
    for client_id, edge in ((me, 1), (other, 0)):
        device = await connect(mesh, client_id, present=True, edge=edge)
        assert await payloads(device, 50) == sent
        assert await fence(device) == []
        await leave(device)


async def test_messages_of_qos_0_are_not_kept(mesh: SessionMesh, me: str) -> None:
    device = await subscribed(mesh, me, 1)
    publisher = await connect(mesh, f"{me}-publisher", clean=True)
    await publisher.send(Publish(f"{me}/a", b"there", 0, False, False, 0))
    assert await device.receive() == Publish(f"{me}/a", b"there", 0, False, False, 0)
    await leave(device)
    await publisher.send(Publish(f"{me}/a", b"gone", 0, False, False, 0))
    await publish(mesh, f"{me}/a", b"kept")
    device = await connect(mesh, me, present=True)
    assert await payloads(device, 1) == [b"kept"]


@pytest.mark.spec("MQTT-3.1.2-6")
@pytest.mark.spec("MQTT-3.2.2-1")
async def test_a_clean_session_discards_the_stored_one(mesh: SessionMesh, me: str) -> None:
    await leave(await subscribed(mesh, me, 1))
    await publish(mesh, f"{me}/a", b"for the old session")
    device = await connect(mesh, me, clean=True)
    assert await fence(device) == []
    await leave(device)
    await publish(mesh, f"{me}/a", b"for nobody")
    device = await connect(mesh, me)
    await publish(mesh, f"{me}/a", b"for nobody")
    assert await fence(device) == []
    await leave(device)


@pytest.mark.spec("MQTT-3.1.3-2")
async def test_sessions_are_told_apart_by_the_client_id(mesh: SessionMesh, me: str) -> None:
    await leave(await subscribed(mesh, me, 1))
    await publish(mesh, f"{me}/a", b"x")
    device = await connect(mesh, f"{me}2")
    assert await fence(device) == []
    await leave(device)
    device = await connect(mesh, me, present=True)
    assert await payloads(device, 1) == [b"x"]


@pytest.mark.spec("MQTT-3.10.4-1")
async def test_unsubscribe_is_for_good(mesh: SessionMesh, me: str) -> None:
    device = await subscribed(mesh, me, 1)
    await device.send(Unsubscribe(2, [f"{me}/#"]))
    assert await device.receive() == UnsubAck(2)
    await leave(device)
    await publish(mesh, f"{me}/a", b"x")
    device = await connect(mesh, me, present=True)
    await publish(mesh, f"{me}/a", b"y")
    assert await fence(device) == []


# --- what was under way -----------------------------------------------------------------------


@pytest.mark.spec("MQTT-4.4.0-1")
@pytest.mark.spec("MQTT-3.3.1-1")
@pytest.mark.spec("MQTT-4.6.0-1")
async def test_unacknowledged_messages_come_again_with_their_identifiers_and_dup_in_order(
    mesh: SessionMesh, me: str
) -> None:
    device = await subscribed(mesh, me, 2)
    await publish(mesh, f"{me}/a", b"0", b"1", b"2", qos=1)
    await publish(mesh, f"{me}/a", b"3", b"4", qos=2)
    first = [await device.receive() for _ in range(5)]
    assert all(isinstance(packet, Publish) and not packet.dup for packet in first)
    ids = [packet.packet_identifier for packet in first if isinstance(packet, Publish)]
    await device.send(PubAck(ids[1]), PubRec(ids[4]))
    assert await device.receive() == PubRel(ids[4])
    device.abort()
    for edge in (1, 0):
        device = await connect(mesh, me, present=True, edge=edge)
        assert await device.receive() == PubRel(ids[4])
        again = [await device.receive() for _ in range(3)]
        assert again == [
            Publish(f"{me}/a", b"0", 1, False, True, ids[0]),
            Publish(f"{me}/a", b"2", 1, False, True, ids[2]),
            Publish(f"{me}/a", b"3", 2, False, True, ids[3]),
        ]
        device.abort()
    device = await connect(mesh, me, present=True, edge=1)
    assert await device.receive() == PubRel(ids[4])
    await device.send(PubComp(ids[4]))
    assert await payloads(device, 3) == [b"0", b"2", b"3"]
    await leave(device)
    device = await connect(mesh, me, present=True)
    assert await fence(device) == []


@pytest.mark.spec("MQTT-4.4.0-1")
@pytest.mark.parametrize("edge", [0, 1])
async def test_a_connection_that_displaces_another_goes_on_where_that_was(
    mesh: SessionMesh, me: str, edge: int
) -> None:
    old = await subscribed(mesh, me, 2)
    await publish(mesh, f"{me}/a", b"0", qos=1)
    await publish(mesh, f"{me}/a", b"1", qos=2)
    first = [await old.receive() for _ in range(2)]
    ids = [packet.packet_identifier for packet in first if isinstance(packet, Publish)]
    await old.send(PubRec(ids[1]))
    assert await old.receive() == PubRel(ids[1])
    device = await connect(mesh, me, present=True, edge=edge)
    assert await old.receive() is None
    assert await device.receive() == PubRel(ids[1])
    assert await device.receive() == Publish(f"{me}/a", b"0", 1, False, True, ids[0])
    await device.send(PubAck(ids[0]), PubComp(ids[1]))
    await leave(device)
    device = await connect(mesh, me, present=True)
    assert await fence(device) == []


@pytest.mark.spec("MQTT-4.3.3-2")
async def test_a_publication_of_qos_2_that_is_repeated_on_another_edge_is_published_once(
    mesh: SessionMesh, me: str
) -> None:
    receiver = await subscribed(mesh, me, 2)
    sender = f"{me}-sender"
    device = await connect(mesh, sender)
    await device.send(Publish(f"{me}/a", b"once", 2, False, False, 9))
    assert await device.receive() == PubRec(9)
    device.abort()
    device = await connect(mesh, sender, present=True, edge=1)
    await device.send(Publish(f"{me}/a", b"once", 2, False, True, 9))
    assert await device.receive() == PubRec(9)
    await device.send(PubRel(9))
    assert await device.receive() == PubComp(9)
    await device.send(Publish(f"{me}/a", b"twice", 2, False, False, 9))
    assert await device.receive() == PubRec(9)
    assert await payloads(receiver, 2) == [b"once", b"twice"]
    assert await fence(receiver) == []


@pytest.mark.spec("MQTT-4.3.3-2")
async def test_a_publication_whose_answer_the_client_did_not_wait_for_is_published_once(
    mesh: SessionMesh, me: str
) -> None:
    receiver = await subscribed(mesh, me, 2)
    sender = f"{me}-sender"
    for n in range(5):
        device = await connect(mesh, sender, present=n > 0, edge=n % 2)
        await device.send(Publish(f"{me}/a", b"once", 2, False, n > 0, 9))
        device.abort()
    device = await connect(mesh, sender, present=True)
    await device.send(Publish(f"{me}/a", b"once", 2, False, True, 9))
    assert await device.receive() == PubRec(9)
    assert await payloads(receiver, 1) == [b"once"]
    assert await fence(receiver) == []
