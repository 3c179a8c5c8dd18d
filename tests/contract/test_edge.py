"""The edge between a client's bytes and the services, which are fakes behind real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from services.common.healthcheck import is_serving
from services.edge.connection import Connection
from services.edge.mqtt import packets
from services.edge.server import listening
from tests.support.edge_world import until, world
from weimq.router.v1 import router_pb2
from weimq.session.v1 import session_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


async def test_a_client_gets_in_and_out() -> None:
    async with world() as w:
        device = await w.connected()
        assert w.router.target_of("GID_demo@@@1")
        await device.send(packets.Disconnect())
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        (closing,) = w.session.closings
        assert closing.reason == session_pb2.CLOSE_REASON_CLIENT_DISCONNECT
        assert closing.connection.channel_id == w.session.openings[0].connection.channel_id
        assert closing.connection.connect_time_ms
        await until(lambda: not w.router.targets)


async def test_healthy_means_that_it_answers_on_its_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"unix:{tmp_path}/edge.sock"
    before: list[bool] = []

    @contextlib.asynccontextmanager
    async def late(*args: Any) -> AsyncGenerator[object]:
        before.extend([await is_serving(address) for _ in range(5)])
        async with listening(*args) as ports:
            yield ports

    monkeypatch.setattr("services.edge.app.listening", late)
    async with world(grpc_listen=(address,)):
        assert before == [False] * 5
        async with asyncio.timeout(20):
            while not await is_serving(address):
                pass


@pytest.mark.spec("MQTT-3.2.2-5")
async def test_wrong_credentials_get_their_connack_and_the_end() -> None:
    async with world() as w:
        device = await w.connect(password=b"wrong")
        assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD)
        assert await device.receive() is None
        assert not w.session.openings


async def test_a_duplicate_client_id_is_refused_without_closing() -> None:
    async with world() as w:
        w.session.taken.add("GID_demo@@@1")
        device = await w.connect()
        assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.IDENTIFIER_REJECTED)
        assert await device.receive() is None
        assert not w.session.closings


@pytest.mark.spec("MQTT-3.1.3-8")
async def test_an_empty_client_id_needs_a_clean_session() -> None:
    async with world() as w:
        device = await w.connect(client_id="", clean_session=False)
        assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.IDENTIFIER_REJECTED)


async def test_connects_are_checked_in_batches() -> None:
    async with world(connect_timeout_s=20) as w:
        async with asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(w.connected(f"GID_demo@@@{n}"))
        assert sum(w.auth.batches) == 100
        assert len(w.auth.batches) < 50


async def test_without_auth_nobody_gets_in_until_it_is_back() -> None:
    async with world() as w:
        await w.connected("GID_demo@@@1")
        w.auth.is_away = True
        for _ in range(2):
            device = await w.connect("GID_demo@@@2")
            assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.SERVER_UNAVAILABLE)
        w.auth.is_away = False
        await w.connected("GID_demo@@@2")


async def test_auth_that_does_not_answer_in_time_is_asked_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.edge.auth_client.TIMEOUT_S", 0.1)
    async with world(connect_timeout_s=20) as w:
        w.auth.goes_on.clear()
        device = await w.connect()
        assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.SERVER_UNAVAILABLE)
        assert "auth did not answer" in caplog.messages
        w.auth.goes_on.set()
        monkeypatch.setattr("services.edge.auth_client.TIMEOUT_S", 10.0)
        await w.connected()


async def test_what_comes_before_connack_waits_for_it() -> None:
    async with world(connect_timeout_s=20) as w:
        w.auth.goes_on.clear()
        device = await w.connect()
        await until(lambda: w.auth.batches)
        for _ in range(3):  # the second read finds a connection that is not read from any more
            await device.send(packets.PingReq())
            await asyncio.sleep(0)
        w.auth.goes_on.set()
        answers = [await device.receive() for _ in range(4)]
        assert answers == [packets.ConnAck(False, 0), *[packets.PingResp()] * 3]


async def test_a_connection_that_is_not_let_in_in_time_gets_connack_3() -> None:
    async with world() as w:
        w.router.confirms = False
        device = await w.connect()
        assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.SERVER_UNAVAILABLE)
        assert await device.receive() is None
        await until(lambda: w.session.closings)


@pytest.mark.parametrize("qos", [1, 2])
async def test_an_acknowledgement_waits_for_the_router(qos: int) -> None:
    async with world() as w:
        device = await w.connected()
        w.router.acknowledges = False
        await device.send(packets.Publish("demo/x", b"1", qos, False, False, 5), packets.PingReq())
        assert await device.receive() == packets.PingResp()
        await until(lambda: w.router.published)
        topic, payload, flags, sequence, publisher = w.router.published[0]
        assert (topic, payload, flags, publisher) == ("demo/x", b"1", qos | 16, "GID_demo@@@1")
        w.router.to_send.acknowledged_sequences.append(sequence)
        w.router.link.wake()
        assert await device.receive() == (packets.PubAck(5) if qos == 1 else packets.PubRec(5))


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_publications_arrive_at_the_router_in_order(qos: int) -> None:
    async with world() as w:
        device = await w.connected()
        for start in range(0, 1000, 100):
            await device.send(
                *(
                    packets.Publish("fast/x", b"%d" % n, qos, False, False, n + 1 if qos else 0)
                    for n in range(start, start + 100)
                )
            )
        await until(lambda: len(w.router.published) == 1000)
        assert [payload for _, payload, _, _, _ in w.router.published] == [b"%d" % n for n in range(1000)]


async def test_publishers_of_a_full_log_wait_for_their_answers_and_others_do_not() -> None:
    async with world() as w:
        w.router.acknowledges = False
        device, other = await w.connected(), await w.connected("GID_demo@@@2")
        for n, is_full in ((1, True), (2, False)):
            await device.send(packets.Publish("demo/x", b"", 1, False, False, n))
            await until(lambda n=n: len(w.router.published) == 4 * n - 3)  # type: ignore[misc]  # bound at once
            w.router.to_send.acknowledged_sequences.append(w.router.published[-1][3])
            w.router.to_send.log_states.add(instance_id="i", parent_topic="demo", is_full=is_full)
            w.router.link.wake()
            assert await device.receive() == packets.PubAck(n)
            await device.send(packets.Publish("demo/x", b"", 0, False, False, 0), packets.PingReq())
            assert await device.receive() == packets.PingResp()  # QoS 0 does not wait
            await device.send(packets.Publish("demo/x", b"", 1, False, False, 9))
            await until(lambda n=n: len(w.router.published) == 4 * n - 1)  # type: ignore[misc]
            held = max(
                sequence for _, _, flags, sequence, _ in w.router.published if flags & 3
            )  # it may overtake QoS 0
            await device.send(packets.PingReq())
            if not is_full:
                assert await device.receive() == packets.PingResp()
            await other.send(packets.Publish("fast/x", b"", 1, False, False, n), packets.PingReq())
            assert await other.receive() == packets.PingResp()
            await until(lambda n=n: len(w.router.published) == 4 * n)  # type: ignore[misc]
            w.router.to_send.acknowledged_sequences.append(held)
            w.router.link.wake()
            assert await device.receive() == packets.PubAck(9)
            if is_full:
                assert await device.receive() == packets.PingResp()


async def test_unacknowledged_publications_are_sent_again_to_a_new_router() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        w.router.acknowledges = False
        await device.send(*(packets.Publish("fast/x", b"%d" % n, 1, False, False, n + 1) for n in range(10)))
        await until(lambda: len(w.router.published) == 10)
        sequences = [sequence for _, _, _, sequence, _ in w.router.published]
        w.router.published.clear()
        w.router.targets.clear()
        w.router.acknowledges = True
        w.router.cut.set()
        await until(lambda: len(w.router.published) == 10)
        assert [sequence for _, _, _, sequence, _ in w.router.published] == sequences
        assert all(flags & 8 for _, _, flags, _, _ in w.router.published)
        assert {target.topic_filter or target.client_id for target in w.router.targets.values()} == {
            "fast/#", "GID_demo@@@1",
        }  # fmt: skip
        assert [await device.receive() for _ in range(10)] == [packets.PubAck(n + 1) for n in range(10)]


async def test_suback_waits_for_the_router_and_survives_its_restart() -> None:
    async with world() as w:
        device = await w.connected()
        w.router.confirms = False
        await device.send(packets.Subscribe(9, [("fast/#", 2), ("demo/+", 0)]), packets.PingReq())
        assert await device.receive() == packets.PingResp()
        w.router.confirms = True
        w.router.cut.set()
        assert await device.receive() == packets.SubAck(9, [2, 0])


async def test_filters_beyond_the_limit_are_refused_one_by_one() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(9, [(f"fast/{n}", 1) for n in range(5)]))
        assert await device.receive() == packets.SubAck(9, [1, 1, 1, 0x80, 0x80])


@pytest.mark.parametrize(
    "packet",
    [
        packets.Subscribe(9, [("other/#", 1)]),
        packets.Subscribe(9, [("$SYS/#", 1)]),
        packets.Publish("other", b"", 1, False, False, 1),
        packets.Publish("$SYS/unknown", b"{}", 1, False, False, 1),
    ],
)
async def test_what_is_not_allowed_closes_the_connection(packet: packets.Packet) -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packet)
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_NOT_AUTHORIZED


async def test_too_large_a_payload_is_acknowledged_and_dropped() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Publish("fast/x", b"x" * 65_537, 1, False, False, 3))
        assert await device.receive() == packets.PubAck(3)
        assert not w.router.published


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_deliveries_reach_subscribers_and_p2p_receivers(qos: int) -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        w.router.deliver("fast/a", b"x", qos, "fast/#", sequence=1)
        expected = min(qos, 1)
        assert await device.receive() == packets.Publish("fast/a", b"x", expected, False, False, expected)
        w.router.deliver("fast/p2p/GID_demo@@@1", b"y", qos, "GID_demo@@@1", sequence=2)
        received = await device.receive()
        assert isinstance(received, packets.Publish)
        assert (received.topic, received.payload, received.qos) == ("fast/p2p/GID_demo@@@1", b"y", qos)


@pytest.mark.parametrize("qos", [1, 2])
async def test_receipts_are_reported_when_the_client_acknowledged_or_is_gone(qos: int) -> None:
    topic = "fast/p2p/GID_demo@@@1"
    async with world() as w:
        device = await w.connected()
        for number in (1, 2):
            w.router.deliver(topic, b"%d" % number, qos, "GID_demo@@@1", sequence=number, receipt_id=70 + number)
            assert isinstance(await device.receive(), packets.Publish)
        assert not w.router.receipts
        await device.send(packets.PubAck(1) if qos == 1 else packets.PubRec(1))
        if qos == 2:
            assert await device.receive() == packets.PubRel(1)
            await device.send(packets.PubComp(1))
        await until(lambda: w.router.receipts == {71: router_pb2.DELIVERY_OUTCOME_ACKNOWLEDGED})
        target = w.router.target_of("GID_demo@@@1")
        device.abort()
        await until(lambda: w.router.receipts.get(72) == router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT)
        # One that comes too late for its connection.
        w.router.targets[target] = router_pb2.Target(target_id=target, client_id="late")
        w.router.deliver(topic, b"3", qos, "late", sequence=3, receipt_id=73)
        await until(lambda: w.router.receipts.get(73) == router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT)


async def test_a_repeated_delivery_of_qos_2_is_dropped() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 2)]))
        assert await device.receive() == packets.SubAck(1, [2])
        for sequence in (7, 7, 8):
            w.router.deliver("fast/a", b"%d" % sequence, 2, "fast/#", sequence=sequence)
        payloads = []
        for _ in range(2):
            received = await device.receive()
            assert isinstance(received, packets.Publish)
            payloads.append(received.payload)
        assert payloads == [b"7", b"8"]


async def test_probes_and_evictions() -> None:
    async with world() as w:
        device = await w.connected()
        channel_id = w.session.openings[0].connection.channel_id
        w.session.to_send.probe_channel_ids.extend((channel_id, "gone"))
        w.session.link.wake()
        await until(lambda: len(w.session.probe_results) == 2)
        assert {result.channel_id: result.alive for result in w.session.probe_results} == {
            channel_id: True,
            "gone": False,
        }
        w.session.to_send.evicted_channel_ids.append(channel_id)
        w.session.link.wake()
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_EVICTED


async def test_a_subscriber_that_does_not_read_is_closed_when_its_queue_is_full() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        other = await w.connected("GID_demo@@@2")
        for _ in range(3000):
            w.router.deliver("fast/a", b"x" * 1000, 1, "fast/#")
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_SLOW_CONSUMER
        await other.send(packets.PingReq())
        assert await other.receive() == packets.PingResp()


async def test_a_burst_for_a_subscriber_that_reads_closes_nothing() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        for n in range(1900):
            w.router.deliver("fast/a", b"%d" % n, 1, "fast/#")
        for n in range(1900):
            packet = await device.receive()
            assert isinstance(packet, packets.Publish)
            assert packet.payload == b"%d" % n
            await device.send(packets.PubAck(packet.packet_identifier))
        assert not w.session.closings


async def test_a_subscriber_that_acknowledges_nothing_is_closed_in_time() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        for _ in range(1500):
            w.router.deliver("fast/a", b"x", 1, "fast/#")
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_SLOW_CONSUMER


async def test_clients_are_closed_when_they_may_have_missed_messages() -> None:
    async with world() as w:
        device = await w.connected()
        w.router.missed = True
        w.router.cut.set()
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_EVICTED


async def test_interests_and_messages_travel_in_frames_of_bounded_size() -> None:
    async with world() as w:
        device = await w.connected()
        w.router.confirms = False  # what follows gathers
        topics = [f"fast/{n:055d}" for n in range(1000)]  # QoS 1: what is on the stream when it is cut comes again
        await device.send(*(packets.Publish(t, b"x" * 4000, 1, False, False, n) for n, t in enumerate(topics, 1)))
        w.router.confirms = True
        w.router.cut.set()
        await until(lambda: w.router.published)
        assert w.router.largest_frame < 4 << 20


async def test_a_subscriber_that_does_not_read_loses_qos_0_only() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 0)]))
        assert await device.receive() == packets.SubAck(1, [0])
        for _ in range(20):
            for _ in range(50):
                w.router.deliver("fast/a", b"x" * 60_000, 0, "fast/#")
            await until(lambda: not w.router.to_send.ByteSize() and not w.router.link.has_unconfirmed)
        await device.send(packets.PingReq())
        count = 0
        while (packet := await device.receive()) != packets.PingResp():
            assert isinstance(packet, packets.Publish)
            count += 1
        assert 10 < count < 1000


async def test_stop_closes_clients_and_says_goodbye() -> None:
    async with world() as w:
        device = await w.connected()
        w.stop.set()
        assert await device.receive() is None
        await until(lambda: w.ended)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_SHUTDOWN
        assert (w.session.goodbyes, w.router.goodbyes) == (1, 1)


async def test_a_lost_connection_is_reported() -> None:
    async with world() as w:
        device = await w.connected()
        device.abort()
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_CONNECTION_LOST


WILL = packets.Will("fast/will", b"gone", 1, True)


@pytest.mark.spec("MQTT-3.1.2-8")
async def test_a_will_is_published_when_the_connection_is_lost() -> None:
    async with world() as w:
        device = await w.connect(will=WILL)
        assert await device.receive() == packets.ConnAck(False, 0)
        opening = w.session.openings[0]
        assert (opening.will.topic, opening.will.payload, opening.will.qos) == ("fast/will", b"gone", 1)
        device.abort()
        await until(lambda: w.router.published)
        topic, payload, flags, _, publisher = w.router.published[0]
        assert (topic, payload, flags & 7, publisher) == ("fast/will", b"gone", 1 | 4, "GID_demo@@@1")


@pytest.mark.spec("MQTT-3.1.2-10")
async def test_a_will_is_forgotten_with_disconnect() -> None:
    async with world() as w:
        device = await w.connect(will=WILL)
        assert await device.receive() == packets.ConnAck(False, 0)
        await device.send(packets.Disconnect())
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        witness = await w.connected("GID_demo@@@2")
        await witness.send(packets.Publish("fast/x", b"", 1, False, False, 1))
        assert await witness.receive() == packets.PubAck(1)
        assert [topic for topic, *_ in w.router.published] == ["fast/x"]


async def test_a_will_is_published_when_the_client_breaks_the_protocol() -> None:
    async with world() as w:
        device = await w.connect(will=WILL)
        assert await device.receive() == packets.ConnAck(False, 0)
        await device.send(packets.ConnAck(False, 0))
        assert await device.receive() is None
        await until(lambda: w.router.published)


async def test_a_will_that_may_not_be_published_refuses_the_connection() -> None:
    async with world() as w:
        device = await w.connect(will=packets.Will("other/x", b"", 0, False))
        assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.NOT_AUTHORIZED)
        assert not w.session.openings


@pytest.mark.spec("MQTT-3.3.1-8")
async def test_a_new_subscription_gets_the_retained_messages_alone() -> None:
    async with world() as w:
        first = await w.connected()
        await first.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await first.receive() == packets.SubAck(1, [1])
        second = await w.connected("GID_demo@@@2")
        await second.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await second.receive() == packets.SubAck(1, [1])
        query = w.router.queries[-1]
        assert (query.instance_id, query.topic_filter) == ("i", "fast/#")
        batch = w.router.to_send.deliveries
        batch.topics.append("fast/a")
        batch.target_counts.append(1)
        batch.target_ids.append(query.query_id)
        batch.topic_indexes.append(0)
        batch.payloads.append(b"kept")
        batch.flags += bytes((1 | 4,))
        w.router.to_send.answered_query_ids.append(query.query_id)
        w.router.deliver("fast/a", b"live", 1, "fast/#")
        assert await second.receive() == packets.Publish("fast/a", b"kept", 1, True, False, 1)
        assert await second.receive() == packets.Publish("fast/a", b"live", 1, False, False, 2)
        assert await first.receive() == packets.Publish("fast/a", b"live", 1, False, False, 1)


async def test_an_unanswered_query_is_asked_again_of_a_new_router() -> None:
    async with world() as w:
        device = await w.connected()
        await device.send(packets.Subscribe(1, [("fast/#", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        asked = list(w.router.queries)
        w.router.queries.clear()
        w.router.cut.set()
        await until(lambda: w.router.queries)
        assert w.router.queries == asked
        w.router.to_send.answered_query_ids.append(asked[0].query_id)
        w.router.link.wake()
        await until(lambda: not w.router.link.has_unconfirmed and not w.router.to_send.ByteSize())
        w.router.queries.clear()
        w.router.targets.clear()
        w.router.cut.set()
        await until(lambda: len(w.router.targets) == 2)
        assert not w.router.queries


async def test_what_a_connection_was_is_freed_at_once() -> None:
    # Collections of garbage took a quarter of the time of an edge whose clients come and go.
    async with world() as w:
        await w.connected("GID_demo@@@0")  # what the first one makes, stays
        gc.collect()
        gc.disable()
        try:
            before = connections()
            for client_id, is_clean in (("GID_demo@@@1", True), ("GID_demo@@@2", False)):
                device = await w.connected(client_id, clean_session=is_clean)
                await device.send(packets.Disconnect())
                assert await device.receive() is None
            w.session.taken.add("GID_demo@@@3")
            device = await w.connect("GID_demo@@@3")
            assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.IDENTIFIER_REJECTED)
            await until(lambda: connections() == before)
        finally:
            gc.enable()


def connections() -> int:
    """Return how many connections the edge has not freed."""
    return sum(isinstance(each, Connection) for each in gc.get_objects())
