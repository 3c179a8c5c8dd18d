"""Persistent sessions at the edge, against a fake session shard and a fake router."""

from __future__ import annotations

import pytest

from services.edge.mqtt import packets
from services.edge.mqtt.packets import ConnAck, Disconnect, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe
from tests.support.edge_world import Device, World, until, world
from weimq.auth.v1 import auth_pb2
from weimq.session.v1 import session_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

ME = "GID_demo@@@1"
STANDARD = auth_pb2.PROFILE_STANDARD


def session_of(*subscriptions: tuple[str, int], **fields: object) -> session_pb2.Decision:
    """Return what the shard says of a session that is there."""
    return session_pb2.Decision(
        session_present=True,
        subscriptions=[session_pb2.Subscription(topic_filter=name, qos=qos) for name, qos in subscriptions],
        **fields,  # type: ignore[arg-type]  # fields of the message
    )


def interests(w: World) -> list[tuple[str, bool]]:
    """Return the topic filters that the router knows, with `skips_acknowledged`."""
    return [
        (target.topic_filter, target.skips_acknowledged) for target in w.router.targets.values() if target.topic_filter
    ]


async def persistent(w: World, *, session_present: bool = False) -> Device:
    return await w.connected(ME, clean_session=False, session_present=session_present)


async def fence(device: Device) -> list[packets.Packet]:
    """Return what comes before the answer to PINGREQ."""
    await device.send(packets.PingReq())
    found: list[packets.Packet] = []
    while (packet := await device.receive()) != packets.PingResp():
        assert packet is not None, "closed"
        found.append(packet)
    return found


# --- the session ------------------------------------------------------------------------------


async def test_an_opening_with_clean_session_0_says_how_the_session_is_kept() -> None:
    async with world() as w:
        await persistent(w)
        await w.connected("GID_demo@@@2")
        kept, clean = w.session.openings
        assert not kept.clean_session
        assert kept.rules == session_pb2.SessionRules(
            strict_order=True,
            batch_messages=30,
            batch_interval_ms=5000,
            acknowledgement_timeout_ms=5001,
            offline_retention_ms=1 << 40,
            max_offline_messages=1_000_000,
            session_expiry_ms=7,
        )
        assert clean.clean_session
        assert not clean.HasField("rules")
    async with world(STANDARD) as w:
        await persistent(w)
        assert w.session.openings[0].rules.keeps_qos2


async def test_a_session_that_is_there_comes_back_with_its_subscriptions() -> None:
    async with world() as w:
        w.session.decisions[ME] = session_of(("demo/0", 0), ("demo/1", 1), ("demo/2", 2))
        device = await persistent(w, session_present=True)
        assert interests(w) == [("demo/0", False), ("demo/1", True), ("demo/2", False)]
        assert w.router.queries == [], "retained messages are for new subscriptions"
        w.router.deliver("demo/0", b"x", 1, "demo/0")
        assert await device.receive() == Publish("demo/0", b"x", 0, False, False, 0)
        device.abort()
        await until(lambda: not interests(w))


async def test_the_standard_profile_keeps_qos_2() -> None:
    async with world(STANDARD) as w:
        w.session.decisions[ME] = session_of(("a", 2))
        await persistent(w, session_present=True)
        assert interests(w) == [("a", True)]


async def test_subscriptions_that_are_not_allowed_any_more_leave_the_session() -> None:
    async with world() as w:
        w.session.decisions[ME] = session_of(("gone/#", 1), ("demo/#", 1))
        await persistent(w, session_present=True)
        await until(lambda: w.session.changes)
        assert [list(change.removed_topic_filters) for change in w.session.changes] == [["gone/#"]]
        assert interests(w) == [("demo/#", True)]


# --- SUBSCRIBE and UNSUBSCRIBE ----------------------------------------------------------------


async def test_suback_comes_when_the_shard_has_stored_the_subscriptions_and_the_router_knows_them() -> None:
    async with world() as w:
        w.session.stores = False
        device = await persistent(w)
        await device.send(Subscribe(1, [("demo/0", 0), ("demo/1", 1), ("demo/2", 2)]))
        await until(lambda: w.session.changes and len(interests(w)) == 3)
        assert interests(w) == [("demo/0", False), ("demo/1", True), ("demo/2", False)]
        assert await fence(device) == []
        (change,) = w.session.changes
        assert (change.channel_id, change.number) == (w.session.channel_of(ME), 1)
        assert [(one.topic_filter, one.qos) for one in change.added] == [("demo/0", 0), ("demo/1", 1), ("demo/2", 2)]
        w.session.store(change)
        assert await device.receive() == SubAck(1, [0, 1, 2])
        assert [query.topic_filter for query in w.router.queries] == ["demo/0", "demo/1", "demo/2"]


async def test_suback_waits_for_the_router_too() -> None:
    async with world() as w:
        device = await persistent(w)
        w.router.confirms = False
        await device.send(Subscribe(1, [("demo/1", 1)]))
        await until(lambda: w.session.changes)
        assert await fence(device) == []
        w.router.link.confirm(w.router.link.received_through)
        assert await device.receive() == SubAck(1, [1])


async def test_unsuback_comes_when_the_shard_has_stored_it() -> None:
    async with world() as w:
        w.session.decisions[ME] = session_of(("demo/0", 0), ("demo/1", 1))
        device = await persistent(w, session_present=True)
        w.session.stores = False
        await device.send(packets.Unsubscribe(7, ["demo/0", "demo/1", "demo/none"]))
        await until(lambda: w.session.changes)
        assert list(w.session.changes[0].removed_topic_filters) == ["demo/0", "demo/1"]
        assert await fence(device) == []
        assert len(interests(w)) == 2
        w.session.store(w.session.changes[0])
        assert await device.receive() == packets.UnsubAck(7)
        await until(lambda: not interests(w))


async def test_a_filter_subscribed_again_before_its_unsuback_stays() -> None:
    async with world() as w:
        w.session.decisions[ME] = session_of(("demo/1", 1))
        device = await persistent(w, session_present=True)
        await device.send(packets.Unsubscribe(7, ["demo/1"]), Subscribe(8, [("demo/1", 1)]))
        assert await device.receive() == packets.UnsubAck(7)
        assert await device.receive() == SubAck(8, [1])
        assert [change.number for change in w.session.changes] == [1, 2]
        assert interests(w) == [("demo/1", True)]


@pytest.mark.spec("MQTT-3.8.4-3")
async def test_a_subscription_that_becomes_one_of_the_other_kind_has_no_gap() -> None:
    async with world() as w:
        w.session.decisions[ME] = session_of(("demo/a", 1))
        device = await persistent(w, session_present=True)
        w.session.stores = False
        await device.send(Subscribe(1, [("demo/a", 0)]))
        await until(lambda: w.session.changes and len(interests(w)) == 2)
        w.session.store(w.session.changes[0])
        assert await device.receive() == SubAck(1, [0])
        await until(lambda: interests(w) == [("demo/a", False)])
        await device.send(Subscribe(2, [("demo/a", 1)]))
        await until(lambda: len(w.session.changes) == 2 and len(interests(w)) == 2)
        w.session.store(w.session.changes[1])
        assert await device.receive() == SubAck(2, [1])
        await until(lambda: interests(w) == [("demo/a", True)])


async def test_what_was_asked_before_disconnect_is_stored() -> None:
    async with world() as w:
        w.session.stores = False
        device = await persistent(w)
        await device.send(Subscribe(1, [("demo/a", 1)]), packets.Unsubscribe(2, ["demo/a"]), Disconnect())
        await until(lambda: w.session.closings)
        assert [change.number for change in w.session.changes] == [1, 2]


# --- deliveries -------------------------------------------------------------------------------


@pytest.mark.parametrize("clean_session", [False, True])
async def test_the_shard_hears_what_the_client_has_completed(clean_session: bool) -> None:
    async with world(STANDARD) as w:
        device = await w.connected(ME, clean_session=clean_session)
        channel = w.session.channel_of(ME)
        w.session.deliver(ME, 11, b"one")
        w.session.deliver(ME, 12, b"two", 2)
        assert await device.receive() == Publish("demo/a", b"one", 1, False, False, 12)
        assert await device.receive() == Publish("demo/a", b"two", 2, False, False, 13)
        await device.send(PubRec(13), PubAck(12))
        assert await device.receive() == PubRel(13)
        await until(lambda: w.session.acknowledged)
        assert w.session.acknowledged == [(channel, 11, 0)]
        await device.send(PubComp(13))
        await until(lambda: len(w.session.acknowledged) == 2)
        assert w.session.acknowledged[1] == (channel, 12, 0)


async def test_a_message_that_the_client_may_not_have_any_more_is_reported() -> None:
    async with world() as w:
        device = await persistent(w)
        w.session.deliver(ME, 5, b"x", topic="gone/a")
        await until(lambda: w.session.acknowledged)
        assert w.session.acknowledged == [(w.session.channel_of(ME), 5, 1)]
        assert await fence(device) == []


async def test_what_comes_before_connack_is_sent_after_it() -> None:
    async with world() as w:
        w.router.confirms = False
        device = await w.connect(ME, clean_session=False)
        await until(lambda: w.session.openings)
        w.session.deliver(ME, 1, b"early")
        await until(lambda: not w.session.link.has_unconfirmed and not w.session.to_send.ByteSize())
        w.router.link.confirm(w.router.link.received_through)
        assert await device.receive() == ConnAck(False, 0)
        assert await device.receive() == Publish("demo/a", b"early", 1, False, False, 2)


async def test_deliveries_for_a_connection_that_is_gone_are_left_out() -> None:
    async with world() as w:
        device = await persistent(w)
        device.abort()
        await until(lambda: w.session.closings)
        w.session.deliver(ME, 1, b"x")
        await until(lambda: not w.session.link.has_unconfirmed and not w.session.to_send.ByteSize())
        assert w.session.acknowledged == []


# --- identifiers over connections -------------------------------------------------------------


@pytest.mark.spec("MQTT-4.4.0-1")
@pytest.mark.spec("MQTT-3.3.1-1")
@pytest.mark.spec("MQTT-4.6.0-1")
async def test_identifiers_in_use_go_to_the_shard_and_come_back_on_the_next_connection() -> None:
    async with world(STANDARD) as w:
        device = await persistent(w)
        for delivery_id, qos in ((1, 1), (2, 2), (3, 2), (4, 1)):
            w.session.deliver(ME, delivery_id, bytes((delivery_id,)), qos)
        assert [(await device.receive()) for _ in range(4)] == [
            Publish("demo/a", bytes((n,)), qos, False, False, n + 1) for n, qos in ((1, 1), (2, 2), (3, 2), (4, 1))
        ]
        await device.send(PubRec(4), PubAck(5), Publish("demo/up", b"", 2, False, False, 9))
        assert [(await device.receive()) for _ in range(2)] == [PubRel(4), PubRec(9)]
        device.abort()
        await until(lambda: w.session.closings)
        inflight = w.session.closings[0].inflight
        assert list(inflight.delivery_ids) == [1, 2, 3]
        assert list(inflight.packet_identifiers) == [2, 3, 4]
        assert inflight.stages == b"\0\0\1"
        assert list(inflight.received_packet_identifiers) == [9]

        w.session.decisions[ME] = session_of(inflight=inflight)
        device = await persistent(w, session_present=True)
        assert await device.receive() == PubRel(4), "what has its PUBREC is not sent again"
        w.session.deliver(ME, 5, b"new")
        w.session.deliver(ME, 1, b"\1", 1, identifier=2)
        w.session.deliver(ME, 2, b"\2", 2, identifier=3)
        assert [(await device.receive()) for _ in range(3)] == [
            Publish("demo/a", b"new", 1, False, False, 6),
            Publish("demo/a", b"\1", 1, False, True, 2),
            Publish("demo/a", b"\2", 2, False, True, 3),
        ]
        published = len(w.router.published)
        await device.send(Publish("demo/up", b"", 2, False, True, 9), PubRel(9), PubComp(4), PubAck(2), PubRec(3))
        assert [(await device.receive()) for _ in range(3)] == [PubRec(9), PubComp(9), PubRel(3)]
        await device.send(PubComp(3))
        await until(lambda: len(w.session.acknowledged) == 4)
        assert [delivery_id for _, delivery_id, _ in w.session.acknowledged] == [4, 3, 1, 2]
        assert len(w.router.published) == published, "the publication had its PUBREC"


async def test_a_connection_that_ends_before_connack_leaves_the_identifiers_as_they_were() -> None:
    async with world(STANDARD) as w:
        inflight = session_pb2.InflightState(
            delivery_ids=[7, 8], packet_identifiers=[1, 2], stages=b"\0\1", received_packet_identifiers=[9]
        )
        w.session.decisions[ME] = session_of(("a", 1), inflight=inflight)
        w.router.confirms = False
        device = await w.connect(ME, clean_session=False)
        await until(lambda: interests(w))  # the decision has come
        device.abort()
        await until(lambda: w.session.closings)
        assert w.session.closings[0].inflight == inflight


async def test_a_client_may_complete_a_delivery_before_it_comes_again() -> None:
    async with world(STANDARD) as w:
        inflight = session_pb2.InflightState(delivery_ids=[7, 8], packet_identifiers=[1, 2], stages=b"\0\0")
        w.session.decisions[ME] = session_of(inflight=inflight)
        device = await persistent(w, session_present=True)
        await device.send(PubAck(1), PubRec(2))
        assert await device.receive() == PubRel(2)
        w.session.deliver(ME, 7, b"", 1, identifier=1)
        w.session.deliver(ME, 8, b"", 2, identifier=2)
        await device.send(PubComp(2))
        await until(lambda: len(w.session.acknowledged) == 2)
        assert await fence(device) == []
        assert [delivery_id for _, delivery_id, _ in w.session.acknowledged] == [7, 8]


async def test_a_shard_that_does_not_know_the_identifiers_any_more_gets_them_used_all_the_same() -> None:
    """It was restarted between the decision and the first delivery."""
    async with world(STANDARD) as w:
        inflight = session_pb2.InflightState(delivery_ids=[7, 8, 9], packet_identifiers=[1, 2, 3], stages=b"\0\0\1")
        w.session.decisions[ME] = session_of(inflight=inflight)
        device = await persistent(w, session_present=True)
        assert await device.receive() == PubRel(3)
        for delivery_id, qos in ((7, 1), (8, 2), (9, 2)):
            w.session.deliver(ME, delivery_id, b"", qos)
        assert [await device.receive() for _ in range(2)] == [
            Publish("demo/a", b"", 1, False, True, 1),
            Publish("demo/a", b"", 2, False, True, 2),
        ]
        assert await fence(device) == [], "the client has had the third"


async def test_identifiers_of_messages_that_are_gone_are_free_at_qos_2_after_pubrel() -> None:
    async with world(STANDARD) as w:
        inflight = session_pb2.InflightState(delivery_ids=[7, 8], packet_identifiers=[1, 2], stages=b"\0\0")
        w.session.decisions[ME] = session_of(inflight=inflight)
        device = await persistent(w, session_present=True)
        w.session.deliver(ME, 7, b"", 1, topic="", identifier=1)
        w.session.deliver(ME, 8, b"", 2, topic="", identifier=2)
        assert await device.receive() == PubRel(2)
        device.abort()
        await until(lambda: w.session.closings)
        left = w.session.closings[0].inflight
        assert (list(left.delivery_ids), list(left.packet_identifiers), left.stages) == ([8], [2], b"\1")


async def test_a_retained_message_without_its_acknowledgement_is_asked_for_on_the_next_connection() -> None:
    async with world(STANDARD) as w:
        device = await persistent(w)
        await device.send(Subscribe(1, [("demo/#", 2)]))
        assert await device.receive() == SubAck(1, [2])
        query = w.router.queries[-1]
        batch = w.router.to_send.deliveries
        for index, (topic, qos) in enumerate((("demo/a", 1), ("demo/b", 2), ("demo/c", 1))):
            batch.topics.append(topic)
            batch.target_counts.append(1)
            batch.target_ids.append(query.query_id)
            batch.topic_indexes.append(index)
            batch.payloads.append(b"kept")
            batch.flags += bytes((qos | 4,))
        batch.origins.append("other")
        batch.origin_indexes.append(0)
        batch.sequences.append(1)
        w.router.to_send.answered_query_ids.append(query.query_id)
        w.router.link.wake()
        received = [await device.receive() for _ in range(3)]
        assert received == [
            Publish(f"demo/{name}", b"kept", qos, True, False, n)
            for name, qos, n in (("a", 1, 1), ("b", 2, 2), ("c", 1, 3))
        ]
        await device.send(PubAck(3), Subscribe(2, [("demo/later", 1)]))
        assert await device.receive() == SubAck(2, [1])
        device.abort()
        await until(lambda: w.session.closings)
        inflight = w.session.closings[0].inflight
        assert [(each.topic_filter, each.qos) for each in inflight.retained] == [
            ("demo/a", 1),
            ("demo/b", 2),
            ("demo/later", 1),  # it has no answer yet
        ]
        assert (list(inflight.delivery_ids), list(inflight.packet_identifiers), inflight.stages) == ([0], [2], b"\1")

        w.router.queries.clear()
        w.session.decisions[ME] = session_of(("demo/#", 2), inflight=inflight)
        device = await persistent(w, session_present=True)
        assert await device.receive() == PubRel(2), "else the next message under it would be taken for a repeat"
        assert [each.topic_filter for each in w.router.queries] == ["demo/a", "demo/b", "demo/later"]
        await device.send(PubComp(2))
        assert await fence(device) == []
        assert not w.session.acknowledged
        device.abort()
        await until(lambda: len(w.session.closings) == 2)
        assert len(w.session.closings[1].inflight.retained) == 3, "nothing was answered"
        assert not w.session.closings[1].inflight.packet_identifiers


async def test_of_too_many_retained_messages_without_acknowledgement_the_subscriptions_are_left() -> None:
    async with world(STANDARD) as w:
        device = await persistent(w)
        await device.send(Subscribe(1, [("demo/#", 2), ("other", 0), ("$share/s/demo/#", 1)]))
        assert await device.receive() == SubAck(1, [2, 0, 1])
        query = next(each for each in w.router.queries if each.topic_filter == "demo/#")
        batch = w.router.to_send.deliveries
        for index in range(3):
            batch.topics.append(f"demo/{index}/{'x' * 30_000}")
            batch.target_counts.append(1)
            batch.target_ids.append(query.query_id)
            batch.topic_indexes.append(index)
            batch.payloads.append(b"kept")
            batch.flags += bytes((1 | 4,))
        w.router.to_send.answered_query_ids.append(query.query_id)
        w.router.link.wake()
        for _ in range(3):
            assert isinstance(await device.receive(), Publish)
        device.abort()
        await until(lambda: w.session.closings)
        inflight = w.session.closings[0].inflight
        assert [(each.topic_filter, each.qos) for each in inflight.retained] == [("demo/#", 2)]


async def test_retained_messages_that_come_for_a_connection_that_has_ended_are_left_to_the_next_one() -> None:
    async with world(STANDARD) as w:
        w.router.acknowledges = False
        device = await persistent(w)
        await device.send(Subscribe(1, [("demo/#", 1)]), Publish("demo/x", b"", 2, False, False, 1))
        assert await device.receive() == SubAck(1, [1])
        await until(lambda: w.router.published)
        device.abort()
        await until(lambda: not interests(w))
        assert not w.session.closings
        w.router.to_send.answered_query_ids.append(w.router.queries[0].query_id)
        w.router.link.wake()
        await until(lambda: w.session.closings)  # it waits a second for PUBREC
        inflight = w.session.closings[0].inflight
        assert [(each.topic_filter, each.qos) for each in inflight.retained] == [("demo/#", 1)]


async def test_a_clean_session_leaves_no_identifiers() -> None:
    async with world(STANDARD) as w:
        device = await w.connected(ME)
        w.session.deliver(ME, 1, b"p2p")
        await device.receive()
        device.abort()
        await until(lambda: w.session.closings)
        assert not w.session.closings[0].HasField("inflight")


async def test_the_end_is_told_when_the_routers_have_answered_publications_of_qos_2() -> None:
    async with world() as w:
        w.router.acknowledges = False
        device = await persistent(w)
        await device.send(Publish("demo/up", b"x", 2, False, False, 3), Disconnect())
        await until(lambda: w.router.published)
        assert await device.receive() is None
        assert not w.session.closings
        w.router.to_send.acknowledged_sequences.append(w.router.published[0][3])
        w.router.link.wake()
        await until(lambda: w.session.closings)
        assert list(w.session.closings[0].inflight.received_packet_identifiers) == [3]


async def test_whoever_asks_about_a_connection_that_ended_hears_of_its_end_first() -> None:
    async with world() as w:
        w.router.acknowledges = False
        device = await persistent(w)
        await device.send(Publish("demo/up", b"x", 2, False, False, 3), Disconnect())
        await until(lambda: w.router.published)
        assert await device.receive() is None
        w.session.to_send.probe_channel_ids.append(w.session.channel_of(ME))
        w.session.link.wake()
        await until(lambda: w.session.probe_results, seconds=0.5)
        assert not w.session.probe_results[0].alive
        assert w.session.closings


async def test_a_change_that_is_stored_after_the_end_of_its_connection_is_no_fault() -> None:
    async with world() as w:
        w.session.decisions[ME] = session_of(("demo/0", 0))
        w.router.acknowledges = False  # so that the end is told later
        w.session.stores = False
        device = await persistent(w, session_present=True)
        await device.send(packets.Unsubscribe(7, ["demo/0"]), Publish("demo/up", b"x", 2, False, False, 3))
        await until(lambda: w.session.changes and w.router.published)
        device.abort()
        await until(lambda: not interests(w))
        w.session.store(w.session.changes[0])
        await until(lambda: w.session.closings)
        await w.connected("GID_demo@@@2")


async def test_the_end_does_not_wait_for_ever() -> None:
    async with world() as w:
        w.router.acknowledges = False
        device = await persistent(w)
        await device.send(Publish("demo/up", b"x", 2, False, False, 3), Disconnect())
        await until(lambda: w.session.closings, seconds=3)
        assert not w.session.closings[0].HasField("inflight")


# --- a shard that was restarted ---------------------------------------------------------------


async def test_a_restarted_shard_hears_again_what_it_had_not_stored() -> None:
    async with world() as w:
        w.session.stores = False
        device = await persistent(w)
        await device.send(Subscribe(1, [("demo/a", 1)]))
        w.session.deliver(ME, 1, b"x")
        assert isinstance(await device.receive(), Publish)
        await until(lambda: w.session.changes)
        w.session.confirms = False
        await device.send(PubAck(2))
        await until(lambda: w.session.acknowledged)
        snapshots = w.session.snapshots
        w.session.cut.set()
        await until(lambda: w.session.snapshots > snapshots)
        assert w.session.openings[-1].established
        assert [change.number for change in w.session.changes] == [1, 1]
        assert w.session.acknowledged == [(w.session.channel_of(ME), 1, 0)] * 2
        w.session.store(w.session.changes[1])
        assert await device.receive() == SubAck(1, [1])


async def test_what_a_client_has_is_not_sent_to_it_again() -> None:
    async with world() as w:
        device = await persistent(w)
        for delivery_id in (1, 2):
            w.session.deliver(ME, delivery_id, b"")
            assert isinstance(await device.receive(), Publish)
        w.session.confirms = False
        await device.send(PubAck(2))
        await until(lambda: w.session.acknowledged)
        for delivery_id in (1, 2):
            w.session.deliver(ME, delivery_id, b"again")
        w.session.deliver(ME, 3, b"new")
        assert await device.receive() == Publish("demo/a", b"new", 1, False, False, 4)
        assert await fence(device) == []


# --- $SYS/getOfflineMsg -----------------------------------------------------------------------


async def test_a_pull_is_passed_on_and_answered() -> None:
    async with world() as w:
        device = await persistent(w)
        for n, body in enumerate((b'{"maxPushNum":7,"pushOrder":"DESC"}', b'{"maxPushNum":31,"pushOrder":"ASC"}'), 1):
            await device.send(Publish("$SYS/getOfflineMsg", body, 1, False, False, n))
            assert await device.receive() == PubAck(n)
        await until(lambda: len(w.session.pulls) == 2)
        channel = w.session.channel_of(ME)
        assert w.session.pulls == [
            session_pb2.OfflinePull(channel_id=channel, max_messages=7, descending=True),
            session_pb2.OfflinePull(channel_id=channel, max_messages=30),
        ]
        assert not w.router.published


async def test_only_five_pulls_within_a_second_are_carried_out() -> None:
    async with world() as w:
        device = await persistent(w)
        body = b'{"maxPushNum":1,"pushOrder":"ASC"}'
        await device.send(*(Publish("$SYS/getOfflineMsg", body, 1, False, False, n) for n in range(1, 9)))
        assert [await device.receive() for _ in range(8)] == [PubAck(n) for n in range(1, 9)]
        await until(lambda: len(w.session.pulls) == 5)
        assert await fence(device) == []
        assert len(w.session.pulls) == 5


@pytest.mark.parametrize(
    "body", [b'{"maxPushNum":0}', b'{"maxPushNum":true}', b'{"maxPushNum":"5"}', b'{"pushOrder":"UP"}', b"[]", b"x"]
)
async def test_a_pull_that_is_none_closes_the_connection(body: bytes) -> None:
    async with world() as w:
        device = await persistent(w)
        await device.send(Publish("$SYS/getOfflineMsg", body, 1, False, False, 1))
        assert await device.receive() is None
