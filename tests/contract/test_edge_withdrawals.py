"""What clients lose when auth takes it away, within a second, and what they keep (issue 4)."""

from __future__ import annotations

import pytest

from services.edge.mqtt import packets
from tests.support.auth_for_edges import INSTANCE, KEY
from tests.support.edge_world import Device, World, until, world
from weimq.auth.v1 import auth_pb2
from weimq.session.v1 import session_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

SIGNED = f"Signature|{KEY}|{INSTANCE}"
KEY_POLICY = auth_pb2.AccessKeyPolicy(
    instance_id=INSTANCE, access_key_id=KEY, account_id="default", publish=True, subscribe=True
)


def change(**fields: object) -> auth_pb2.WatchResourcesResponse:
    """Return a change of the watch."""
    return auth_pb2.WatchResourcesResponse(**fields)  # type: ignore[arg-type]  # fields of the test


GROUP_GONE = change(removed_groups=[auth_pb2.GroupPolicy(instance_id=INSTANCE, group_id="GID_demo")])
KEY_GONE = change(removed_access_keys=[auth_pb2.AccessKeyPolicy(instance_id=INSTANCE, access_key_id=KEY)])
TOPIC_GONE = change(removed_topics=[auth_pb2.TopicPolicy(instance_id=INSTANCE, topic="demo")])
INSTANCE_GONE = change(removed_instance_ids=[INSTANCE])
CREDENTIAL_GONE = change(removed_device_credential_ids=["d"])


async def lives(device: Device) -> bool:
    """Return whether a connection is open."""
    await device.send(packets.PingReq())
    return await device.receive() == packets.PingResp()


async def settled(w: World) -> None:
    """Wait until the edge has taken over all that the router sent."""
    await until(lambda: not w.router.to_send.ByteSize() and not w.router.link.has_unconfirmed)


def filters(w: World) -> set[str]:
    """Return the topic filters that the router knows."""
    return {target.topic_filter for target in w.router.targets.values() if target.topic_filter}


@pytest.mark.parametrize(
    ("told", "closed"),
    [
        (KEY_GONE, {"signed", "tokens"}),
        (CREDENTIAL_GONE, {"device"}),
        (GROUP_GONE, {"signed", "tokens", "device"}),
        (INSTANCE_GONE, {"signed", "tokens", "device", "other"}),
        (change(removed_device_credential_ids=["another"]), set()),
    ],
    ids=["key", "device credential", "group", "instance", "another credential"],
)
async def test_exactly_the_affected_are_closed(told: auth_pb2.WatchResourcesResponse, closed: set[str]) -> None:
    async with world() as w:
        w.auth.snapshot.groups.add(instance_id=INSTANCE, group_id="GID_other", account_id="default")
        w.auth.cut()
        await until(lambda: not w.auth.is_watched)
        await until(lambda: w.auth.is_watched)
        w.auth.issue("t", "RW", "demo/#")
        devices = {
            "signed": await w.connected("GID_demo@@@1", user=SIGNED),
            "tokens": await w.connected("GID_demo@@@2", user=f"Token|{KEY}|{INSTANCE}", password=b"RW|t"),
            "device": await w.connected("GID_demo@@@3", user=f"DeviceCredential|d|{INSTANCE}"),
            "other": await w.connected("GID_other@@@4"),
        }
        w.auth.tell(told)
        for name in closed:
            packet = await devices[name].receive()
            if name == "tokens":
                assert isinstance(packet, packets.Publish)
                assert (packet.topic, packet.payload) == ("$SYS/tokenInvalidNotice", b'{"code":-1,"type":"RW"}')
                packet = await devices[name].receive()
            assert packet is None
        for name in devices.keys() - closed:
            assert await lives(devices[name]), name
        await until(lambda: len(w.session.closings) == len(closed))
        assert {closing.reason for closing in w.session.closings} <= {session_pb2.CLOSE_REASON_NOT_AUTHORIZED}


async def test_who_lost_its_key_may_not_come_back() -> None:
    async with world() as w:
        device = await w.connected(user=SIGNED)
        w.auth.tell(KEY_GONE)
        assert await device.receive() is None
        late = await w.connect(user=SIGNED)
        assert await late.receive() == packets.ConnAck(False, packets.ConnectReturnCode.SERVER_UNAVAILABLE)


async def test_a_deleted_topic_is_lost_and_the_connection_stays() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("demo/#", 1), ("fast/#", 1), ("$share/g/demo/a", 1)]))
        assert await device.receive() == packets.SubAck(1, [1, 1, 1])
        w.auth.tell(TOPIC_GONE)
        await until(lambda: filters(w) == {"fast/#"})
        w.router.deliver("demo/p2p/GID_demo@@@1", b"lost", 1, "GID_demo@@@1")
        w.router.deliver("fast/p2p/GID_demo@@@1", b"kept", 0, "GID_demo@@@1")
        assert await device.receive() == packets.Publish("fast/p2p/GID_demo@@@1", b"kept", 0, False, False, 0)
        await device.send(packets.Publish("demo/a", b"", 1, False, False, 1))
        assert await device.receive() is None


async def test_a_narrowed_key_loses_subscriptions_and_the_right_to_publish() -> None:
    async with world() as w:
        device = await w.connected(user=SIGNED)
        other = await w.connected("GID_demo@@@2")
        for connected in (device, other):
            await connected.send(packets.Subscribe(1, [("demo/a", 1), ("demo/#", 1), ("$share/g/fast/#", 1)]))
            assert await connected.receive() == packets.SubAck(1, [1, 1, 1])
        narrowed = auth_pb2.AccessKeyPolicy()
        narrowed.CopyFrom(KEY_POLICY)
        narrowed.publish = False
        narrowed.topic_filters.append("demo/a")
        w.auth.tell(change(access_keys=[narrowed]))
        shared = [target for target in w.router.targets.values() if target.share_name]
        assert len(shared) == 2
        await until(lambda: len([target for target in w.router.targets.values() if target.share_name]) == 1)
        w.router.deliver("demo/b", b"b", 0, "demo/#")
        w.router.deliver("demo/a", b"a", 0, "demo/a")
        assert await device.receive() == packets.Publish("demo/a", b"a", 0, False, False, 0)
        assert await other.receive() == packets.Publish("demo/b", b"b", 0, False, False, 0)
        await device.send(packets.Publish("demo/a", b"", 1, False, False, 1))
        assert await device.receive() is None


async def test_retained_messages_that_come_after_the_permission_went_are_dropped() -> None:
    async with world() as w:
        device = await w.connected(user=SIGNED)
        await device.send(packets.Subscribe(1, [("demo/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        (query,) = w.router.queries
        narrowed = auth_pb2.AccessKeyPolicy()
        narrowed.CopyFrom(KEY_POLICY)
        narrowed.topic_filters.append("demo/a")
        w.auth.tell(change(access_keys=[narrowed]))
        await until(lambda: not filters(w))
        batch = w.router.to_send.deliveries
        for n, topic in enumerate(("demo/b", "demo/a")):
            batch.topics.append(topic)
            batch.target_counts.append(1)
            batch.target_ids.append(query.query_id)
            batch.topic_indexes.append(n)
            batch.payloads.append(b"kept")
            batch.flags += bytes((4,))
        w.router.link.wake()
        assert await device.receive() == packets.Publish("demo/a", b"kept", 0, True, False, 0)


@pytest.mark.parametrize(
    ("user", "told"),
    [(SIGNED, KEY_GONE), (SIGNED, GROUP_GONE), (f"DeviceCredential|d|{INSTANCE}", CREDENTIAL_GONE)],
    ids=["key", "group", "device credential"],
)
async def test_a_will_is_not_sent_when_its_right_was_withdrawn(
    user: str, told: auth_pb2.WatchResourcesResponse
) -> None:
    async with world() as w:
        device = await w.connected(user=user, will=packets.Will("demo/will", b"gone", 1, False))
        w.auth.tell(told)
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        assert not w.router.published


async def test_a_new_watch_finds_what_was_missed() -> None:
    async with world() as w:
        signed = await w.connected("GID_demo@@@1", user=SIGNED)
        gone = await w.connected("GID_demo@@@2", user=f"DeviceCredential|gone|{INSTANCE}")
        kept = await w.connected("GID_demo@@@3", user=f"DeviceCredential|kept|{INSTANCE}")
        await kept.send(packets.Subscribe(1, [("demo/#", 1), ("fast/#", 1)]))
        assert await kept.receive() == packets.SubAck(1, [1, 1])
        w.auth.is_away = True
        w.auth.cut()
        await until(lambda: not w.auth.is_watched)
        del w.auth.snapshot.access_keys[:]
        del w.auth.snapshot.topics[0]
        w.auth.removed_credentials.add("gone")
        assert await lives(signed)  # clients go on while auth is away
        w.auth.is_away = False
        assert await signed.receive() is None
        assert await gone.receive() is None
        await until(lambda: filters(w) == {"fast/#"})
        assert await lives(kept)


async def test_clients_are_closed_when_auth_is_away_for_too_long() -> None:
    async with world(policy_max_age_s=1.5) as w:
        device = await w.connected()
        assert await lives(device)
        w.auth.cut()
        w.auth.is_silent = True
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_NOT_AUTHORIZED
        late = await w.connect()
        assert await late.receive() == packets.ConnAck(False, packets.ConnectReturnCode.SERVER_UNAVAILABLE)
        w.auth.is_silent = False
        await until(lambda: w.auth.is_watched)
        again = await w.connect()
        while await again.receive() != packets.ConnAck(False, 0):  # the snapshot is on its way
            again = await w.connect()


async def test_clients_are_closed_when_the_view_of_auth_is_too_old() -> None:
    async with world(policy_max_age_s=3) as w:
        device = await w.connected()
        w.auth.view_age_ms = 60_000  # it goes on sending, but NATS tells it nothing
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_NOT_AUTHORIZED


async def test_what_waits_for_a_slow_client_is_taken_back() -> None:
    async with world(max_inflight=1) as w:
        device = await w.connected(user=SIGNED)
        await device.send(packets.Subscribe(1, [("demo/#", 1), ("$share/g/demo/a", 1), ("fast/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1, 1, 1])
        w.router.deliver("demo/a", b"under way", 1, "demo/#")
        w.router.deliver("demo/a", b"waiting", 1, "demo/#")
        w.router.deliver("demo/a", b"shared", 1, "$share/g/demo/a")
        w.router.deliver("fast/a", b"allowed", 1, "fast/#")
        first = await device.receive()
        assert isinstance(first, packets.Publish)
        await settled(w)
        w.auth.tell(TOPIC_GONE)
        await until(lambda: w.router.returned)
        assert [payload for *_, payload, _ in w.router.returned] == [b"shared"]
        await device.send(packets.PubAck(first.packet_identifier))
        last = await device.receive()
        assert isinstance(last, packets.Publish)
        assert (first.payload, last.payload) == (b"under way", b"allowed")
