"""Logged messages that an edge gives to its own subscribers: what the router does with them, and the edge."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest

from services.common import subjects
from services.common.grpc_client import channel
from services.edge.mqtt import packets
from tests.support import edge_world
from tests.support.edge_world import Device, World, world
from tests.support.nats import NatsServer
from tests.support.router import (
    LOGGED,
    RETAIN,
    TOKEN,
    FakeEdge,
    Mesh,
    has_violated,
    make_log,
    mesh,
    raw_call,
    read_log,
    until,
)
from tests.support.router import batch as batch_of
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio

REPEATED = 8
DELIVERED = 64


# --- the router -----------------------------------------------------------------------------------


async def test_an_edge_may_serve_its_own_subscribers_wherever_others_are(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        await mesh.serving()
        one.subscribe(1, "p/+")
        one.subscribe(2, "p/a")
        one.subscribe(3, "p/a", share_name="s")
        one.subscribe(4, "p/b", skips_acknowledged=True)
        two.subscribe(1, "#")
        await two.settled()
        assert await one.ask_route("p/a", is_logged=True) == [1, 2]
        assert await one.ask_route("q", is_logged=True) == []
        assert await one.ask_route("p/b", is_logged=True) is None
        assert await two.ask_route("p/b", is_logged=True) == [1]
        two.subscribe(2, "p/a")
        await two.settled()
        assert not one.revoked  # there is nothing to take back


@pytest.mark.parametrize("qos", [0, 1])
async def test_the_router_logs_what_an_edge_has_delivered_and_sends_it_to_all_others(
    mesh: Mesh, nats_server: NatsServer, qos: int
) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        await mesh.serving()
        one.subscribe(1, "p/a")
        one.subscribe(2, "p/a", share_name="s")
        two.subscribe(1, "p/a")
        await two.settled()
        for n in range(20):
            one.publish("p/a", b"%d" % n, qos=qos, topic_flags=LOGGED, flags=DELIVERED)
        one.publish("p/a", b"last", topic_flags=LOGGED)
        await one.all_acknowledged()
        numbers = [b"%d" % n for n in range(20)]
        await until(lambda: len(two.payloads) == 21)
        assert sorted(two.payloads) == sorted([*numbers, b"last"])
        assert [each.payload for each in one.deliveries if each.targets == [1]] == [b"last"]
        # QoS 1 overtakes QoS 0.
        assert sorted(each.payload for each in one.deliveries if each.targets == [2]) == sorted([*numbers, b"last"])
        assert [message.data for message in await read_log(nats_server.url, "p")] == [*numbers, b"last"]


async def test_the_others_are_waited_for(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        await mesh.serving()
        one.subscribe(1, "p/a")
        one.publish("p/a", b"alone", topic_flags=LOGGED, flags=DELIVERED)
        await one.all_acknowledged()
        two.subscribe(1, "p/a")
        await two.settled()
        two.is_confirming = False
        one.publish("p/a", b"both", topic_flags=LOGGED, flags=DELIVERED)
        await until(lambda: two.payloads == [b"both"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await one.all_acknowledged()
        two.confirm()
        await one.all_acknowledged()
        assert one.payloads == []


async def test_a_session_shard_gets_it_with_its_position(nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    with tempfile.TemporaryDirectory(prefix="weimq-") as directory:
        sharded = Mesh(f"unix:{Path(directory, 'router')}", nats_server.url, edge_grace_s=1.0, shard_count=1)
        place = router_pb2.SessionShard(index=0, count=1)
        async with (
            sharded.router(),
            FakeEdge(sharded, "one").running() as one,
            FakeEdge(sharded, "shard-0", shard=place).running() as shard,
        ):
            await sharded.serving()
            one.subscribe(1, "p/a")
            shard.subscribe(1, "p/#", skips_qos0=True)
            await shard.settled()
            one.publish("p/a", b"x", topic_flags=LOGGED, flags=DELIVERED)
            await one.all_acknowledged()
            assert [each.position for each in shard.deliveries] == [(subjects.log_stream("i", "p"), 1)]
            assert one.payloads == []


async def test_what_is_sent_again_to_a_new_router_does_not_come_back_either(
    mesh: Mesh, nats_server: NatsServer
) -> None:
    await make_log(nats_server.url, "p")
    async with FakeEdge(mesh, "one").unlinked() as one, FakeEdge(mesh, "two").unlinked() as two:
        one.subscribe(1, "p/a")
        two.subscribe(1, "p/a")
        async with mesh.router():
            await mesh.serving()
            await two.settled()
            two.is_confirming = False
            one.publish("p/a", b"x", topic_flags=LOGGED, flags=DELIVERED | REPEATED)
            await until(lambda: two.payloads == [b"x"])
        two.is_confirming = True
        async with mesh.router():
            await one.all_acknowledged()
            assert one.payloads == []
            assert set(two.payloads) == {b"x"}
        assert len(await read_log(nats_server.url, "p")) == 1


@pytest.mark.parametrize("flags", [2, RETAIN, 1 | RETAIN])
async def test_retained_messages_and_those_of_qos_2_are_not_delivered_by_edges(mesh: Mesh, flags: int) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        call = await raw_call(opened, edge_id="one", edge_incarnation="x")
        await call.write(batch_of(flags=bytes([flags | DELIVERED])))
        await has_violated(call)


# --- the edge -------------------------------------------------------------------------------------


async def _publish(device: Device, numbers: range, **fields: Any) -> None:
    for n in numbers:
        await device.send(packets.Publish("demo/a", b"%d" % n, 1, False, False, n, **fields))


async def _received(device: Device, count: int) -> list[bytes]:
    """Return the payloads of so many messages, which are acknowledged."""
    payloads = []
    for _ in range(count):
        packet = await device.receive()
        assert isinstance(packet, packets.Publish)
        payloads.append(packet.payload)
        if packet.qos:
            await device.send(packets.PubAck(packet.packet_identifier))
    return payloads


def _numbers(numbers: range) -> list[bytes]:
    return [b"%d" % n for n in numbers]


async def _serving_itself(w: World) -> tuple[Device, Device]:
    """Return a publisher with 20 messages acknowledged, and a subscriber, of a topic that the edge serves."""
    subscriber = await w.connected("GID_demo@@@2")
    await subscriber.send(packets.Subscribe(1, [("demo/a", 1)]))
    assert await subscriber.receive() == packets.SubAck(1, [1])
    w.router.local_topics["demo/a"] = [w.router.target_of("demo/a")]
    publisher = await w.connected()
    await _publish(publisher, range(1, 21))
    for n in range(1, 21):
        assert await publisher.receive() == packets.PubAck(n)
    # The fake router delivers nothing: what comes is what the edge gave.
    payloads = await _received(subscriber, 13)
    assert payloads == _numbers(range(8, 21))
    flags = {payload: flags for _, payload, flags, _, _ in w.router.published}
    assert [bool(flags[payload] & DELIVERED) for payload in _numbers(range(1, 21))] == [False] * 7 + [True] * 13
    return publisher, subscriber


async def test_an_edge_delivers_at_once_and_answers_when_the_router_has_the_message() -> None:
    async with world() as w:
        publisher, subscriber = await _serving_itself(w)
        w.router.acknowledges = False
        await _publish(publisher, range(21, 31))
        assert await _received(subscriber, 10) == _numbers(range(21, 31))
        await edge_world.until(lambda: len(w.router.published) == 30)
        await publisher.send(packets.PingReq())
        assert await publisher.receive() == packets.PingResp()  # no PUBACK before it
        w.router.to_send.acknowledged_sequences.extend(sequence for *_, sequence, _ in w.router.published[20:])
        w.router.link.wake()
        for n in range(21, 31):
            assert await publisher.receive() == packets.PubAck(n)


async def test_an_edge_goes_on_without_a_router_and_delivers_nothing_twice() -> None:
    async with world() as w:
        publisher, subscriber = await _serving_itself(w)
        w.router.acknowledges = False
        await _publish(publisher, range(21, 26))
        assert await _received(subscriber, 5) == _numbers(range(21, 26))
        await edge_world.until(lambda: len(w.router.published) == 25)
        before = len(w.router.published)
        w.router.acknowledges = True
        w.router.cut.set()  # the next link is one with a router that knows nothing
        await _publish(publisher, range(26, 31))
        answers = [await publisher.receive() for _ in range(21, 31)]  # the old link may have taken the later ones
        assert all(packets.PubAck(n) in answers for n in range(21, 31))
        again = w.router.published[before:]
        assert {payload for _, payload, *_ in again} == set(_numbers(range(21, 31)))
        assert all(flags & DELIVERED for _, _, flags, *_ in again)
        repeated = [payload for _, payload, flags, *_ in again if flags & REPEATED]
        assert repeated[:5] == _numbers(range(21, 26))
        assert await _received(subscriber, 5) == _numbers(range(26, 31))
        await subscriber.send(packets.PingReq())
        assert await subscriber.receive() == packets.PingResp()


async def test_a_subscriber_that_comes_later_gets_what_follows() -> None:
    async with world() as w:
        publisher, subscriber = await _serving_itself(w)
        late = await w.connected("GID_demo@@@3")
        await late.send(packets.Subscribe(1, [("demo/#", 0)]))
        assert await late.receive() == packets.SubAck(1, [0])
        await _publish(publisher, range(21, 26))
        assert await _received(late, 5) == _numbers(range(21, 26))
        assert await _received(subscriber, 5) == _numbers(range(21, 26))


async def test_messages_of_qos_2_are_left_to_the_router_and_those_after() -> None:
    async with world() as w:
        publisher, _ = await _serving_itself(w)
        await publisher.send(packets.Publish("demo/a", b"twice", 2, False, False, 21))
        assert await publisher.receive() == packets.PubRec(21)
        await _publish(publisher, range(22, 23))
        assert await publisher.receive() == packets.PubAck(22)
        assert [flags & DELIVERED for _, _, flags, *_ in w.router.published[20:]] == [0, 0]


async def test_wills_of_many_that_are_closed_by_one_message_go_on_one_after_another() -> None:
    async with world(max_inflight=1, max_queued=50) as w:
        publisher, _ = await _serving_itself(w)
        will = packets.Will("demo/a", b"gone", 1, False)
        slow = [await w.connected(f"GID_demo@@@slow{n}", will=will) for n in range(200)]
        for device in slow:  # none of them ever acknowledges
            await device.send(packets.Subscribe(1, [("demo/a", 1)]))
            assert await device.receive() == packets.SubAck(1, [1])
        await _publish(publisher, range(21, 73))
        for n in range(21, 73):
            assert await publisher.receive() == packets.PubAck(n)
        await edge_world.until(lambda: [payload for _, payload, *_ in w.router.published].count(b"gone") == len(slow))
