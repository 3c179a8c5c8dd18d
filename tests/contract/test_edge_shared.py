"""Shared subscriptions of an edge against a fake router: what is registered, and what is returned."""

from __future__ import annotations

import pytest

from services.edge.mqtt import packets
from tests.support.edge_world import Device, World, until, world
from weimq.session.v1 import session_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

SHARE = "$share/g/fast/#"


async def _member(w: World, client_id: str = "GID_demo@@@1", share: str = SHARE, qos: int = 2) -> Device:
    device = await w.connected(client_id)
    await device.send(packets.Subscribe(1, [(share, qos)]))
    assert await device.receive() == packets.SubAck(1, [qos])
    return device


async def _payload(device: Device) -> tuple[bytes, int, int]:
    packet = await device.receive()
    assert isinstance(packet, packets.Publish)
    return packet.payload, packet.qos, packet.packet_identifier


async def test_each_member_is_a_target_of_its_own_and_gets_no_retained_messages() -> None:
    async with world() as w:
        await _member(w)
        await _member(w, "GID_demo@@@2")
        shared = [target for target in w.router.targets.values() if target.share_name]
        assert [(target.share_name, target.topic_filter, target.instance_id) for target in shared] == [
            ("g", "fast/#", "i")
        ] * 2
        assert not w.router.queries


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
async def test_a_delivery_has_the_lower_qos_and_is_over_when_it_is_completed(published: int, granted: int) -> None:
    async with world() as w:
        device = await _member(w, qos=granted)
        w.router.deliver("fast/a", b"x", published, SHARE, sequence=1)
        payload, qos, identifier = await _payload(device)
        assert (payload, qos) == (b"x", min(published, granted))
        if qos == 1:
            await device.send(packets.PubAck(identifier))
        elif qos == 2:
            await device.send(packets.PubRec(identifier))
            assert await device.receive() == packets.PubRel(identifier)
        await device.send(packets.PingReq())
        assert await device.receive() == packets.PingResp()
        device.abort()
        await until(lambda: w.session.closings and not w.router.targets)
        assert not w.router.returned


@pytest.mark.parametrize("published", [1, 2])
@pytest.mark.parametrize("granted", [1, 2])
async def test_what_a_gone_member_did_not_complete_is_returned_in_order(published: int, granted: int) -> None:
    async with world() as w:
        device = await _member(w, qos=granted)
        for n in range(100):  # more than the window: the rest is queued
            w.router.deliver(f"fast/{n % 3}", b"%d" % n, published, SHARE, sequence=n)
        for n in range(64):
            assert (await _payload(device))[0] == b"%d" % n
        device.abort()
        await until(lambda: len(w.router.returned) == 100)
        assert w.router.returned == [(SHARE, f"fast/{n % 3}", b"%d" % n, published) for n in range(100)]


async def test_what_comes_for_a_target_that_was_removed_is_returned() -> None:
    async with world() as w:
        device = await _member(w)
        target_id = w.router.target_of(SHARE)
        target = w.router.targets[target_id]
        await device.send(packets.Unsubscribe(2, [SHARE]))
        assert await device.receive() == packets.UnsubAck(2)
        await until(lambda: target_id not in w.router.targets)
        w.router.targets[target_id] = target
        w.router.deliver("fast/a", b"late", 1, SHARE)
        await until(lambda: w.router.returned)
        assert w.router.returned == [(SHARE, "fast/a", b"late", 1)]


async def test_after_unsubscribe_a_member_may_complete_what_it_has() -> None:
    async with world() as w:
        device = await _member(w)
        w.router.deliver("fast/a", b"1", 1, SHARE)
        w.router.deliver("fast/a", b"2", 1, SHARE)
        first, second = await _payload(device), await _payload(device)
        await device.send(packets.Unsubscribe(2, [SHARE]), packets.PubAck(first[2]))
        assert await device.receive() == packets.UnsubAck(2)
        assert not w.router.returned
        device.abort()
        await until(lambda: w.router.returned)
        assert w.router.returned == [(SHARE, "fast/a", second[0], 1)]


async def test_returned_messages_survive_a_restart_of_the_router() -> None:
    async with world() as w:
        device = await _member(w)
        await _member(w, "GID_demo@@@2")
        w.router.deliver("fast/a", b"x", 1, SHARE)
        await _payload(device)
        w.router.confirms = False
        device.abort()
        await until(lambda: len(w.router.returned) == 1)
        w.router.cut.set()  # it confirms nothing before: the frame that follows would confirm the messages, too
        await until(lambda: len(w.router.returned) == 2)
        w.router.confirms = True
        assert w.router.target_of(SHARE)


async def test_a_share_and_a_subscription_are_two() -> None:
    async with world() as w:
        device = await _member(w)
        await device.send(packets.Subscribe(2, [("fast/+", 1)]))
        assert await device.receive() == packets.SubAck(2, [1])
        w.router.deliver("fast/a", b"x", 2, SHARE, "fast/+", sequence=1)
        assert {(await _payload(device))[1] for _ in range(2)} == {1, 2}


async def test_subscribing_again_changes_the_qos_only() -> None:
    async with world() as w:
        device = await _member(w, qos=2)
        target_id = w.router.target_of(SHARE)
        await device.send(packets.Subscribe(2, [(SHARE, 0)]))
        assert await device.receive() == packets.SubAck(2, [0])
        assert w.router.target_of(SHARE) == target_id
        w.router.deliver("fast/a", b"x", 1, SHARE)
        assert (await _payload(device))[1] == 0


async def test_shares_count_as_subscriptions() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [(f"$share/{name}/fast/#", 1) for name in "abcd"]))
        assert await device.receive() == packets.SubAck(1, [1, 1, 1, 0x80])


@pytest.mark.parametrize("share", ["$share/g", "$share/g/", "$share//fast", "$share/g/unknown/a", "$share/g/fast#"])
async def test_what_is_not_allowed_closes_the_connection(share: str) -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [(share, 1)]))
        assert await device.receive() is None


@pytest.mark.parametrize("stays", [True, False])
async def test_what_comes_for_a_restored_member_before_connack_is_sent_after_it_or_returned(*, stays: bool) -> None:
    async with world() as w:
        me = "GID_demo@@@1"
        stored = session_pb2.Subscription(topic_filter=SHARE, qos=1)
        w.session.decisions[me] = session_pb2.Decision(session_present=True, subscriptions=[stored])
        w.router.confirms = False
        device = await w.connect(me, clean_session=False)
        await until(lambda: any(target.share_name for target in w.router.targets.values()))
        w.router.deliver("fast/a", b"early", 1, SHARE, sequence=1)
        await until(lambda: not w.router.link.has_unconfirmed)
        if stays:
            w.router.link.confirm(w.router.link.received_through)
            assert await device.receive() == packets.ConnAck(True, 0)
            assert await device.receive() == packets.Publish("fast/a", b"early", 1, False, False, 1)
        else:
            device.abort()
            await until(lambda: w.router.returned == [(SHARE, "fast/a", b"early", 1)])
