"""What `RouterService` promises to session shards: positions in logs, and nothing lost while they are away."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import grpc
import nats.js.errors
import pytest
from nats.aio.msg import Msg

from services.common import subjects
from services.common.grpc_client import channel
from services.common.sharding import shard_of
from tests.support.nats import NatsServer
from tests.support.router import (
    CLEAN_SESSION,
    LOGGED,
    P2P,
    TOKEN,
    FakeEdge,
    Mesh,
    batch,
    connected,
    has_violated,
    make_log,
    raw_call,
    target,
    until,
)
from weimq.router.v1 import router_pb2

pytestmark = pytest.mark.asyncio

KEEPS = 4
KEPT_P2P = 8
SHARDS = 2
KEPT = "KEPT_i_0"


@pytest.fixture
def mesh(nats_server: NatsServer) -> Iterator[Mesh]:
    with tempfile.TemporaryDirectory(prefix="weimq-") as directory:
        address = f"unix:{Path(directory, 'router')}"
        yield Mesh(address, nats_server.url, edge_grace_s=1.0, shard_count=SHARDS)


def shard(mesh: Mesh, index: int, incarnation: str = "inc") -> FakeEdge:
    place = router_pb2.SessionShard(index=index, count=SHARDS)
    return FakeEdge(mesh, f"shard-{index}", incarnation, shard=place)


@contextlib.asynccontextmanager
async def both_shards(mesh: Mesh) -> AsyncGenerator[tuple[FakeEdge, FakeEdge]]:
    async with shard(mesh, 0).running() as first, shard(mesh, 1).running() as second:
        await first.settled()
        await second.settled()
        yield first, second


async def read_kept(nats_url: str) -> list[Msg]:
    """Return what the router keeps of instance `i`."""
    async with connected(nats_url) as client:
        js = client.jetstream()
        try:
            count = (await js.stream_info(KEPT)).state.messages
        except nats.js.errors.NotFoundError:
            return []
        consumer = await js.subscribe("mq.kept.i.0", stream=KEPT, ordered_consumer=True)
        return [await consumer.next_msg(timeout=10) for _ in range(count)]


@pytest.mark.parametrize("qos", [1, 2])
async def test_shard_gets_logged_messages_with_their_positions(mesh: Mesh, nats_server: NatsServer, qos: int) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, both_shards(mesh) as (first, second):
        first.subscribe(1, "p/#", skips_qos0=True)
        first.subscribe(2, "p/a", skips_qos0=True)
        await first.settled()
        one.publish("p/a", b"0", qos=0, topic_flags=LOGGED)
        numbers = [one.publish("p/a", b"%d" % number, qos=qos, topic_flags=LOGGED) for number in range(1, 100)]
        await one.all_acknowledged()
        assert [d.payload for d in first.deliveries] == [b"%d" % number for number in range(1, 100)]
        assert [d.position for d in first.deliveries] == [("MQ_i_p", sequence) for sequence in range(2, 101)]
        assert all((sorted(d.targets), d.flags) == ([1, 2], qos) for d in first.deliveries)
        if qos == 2:
            assert [d.origin for d in first.deliveries] == [(one.incarnation, number) for number in numbers]
        assert not second.deliveries
        assert not await read_kept(nats_server.url)


async def test_message_without_a_log_is_kept_when_a_shard_wants_it(mesh: Mesh, nats_server: NatsServer) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, both_shards(mesh) as (first, second):
        first.subscribe(1, "a/#", skips_qos0=True)
        second.subscribe(7, "a/ b", skips_qos0=True)
        one.subscribe(1, "#", skips_acknowledged=True)
        await first.settled()
        await second.settled()
        await one.settled()
        one.publish("a/ b", b"0", qos=0)
        one.publish("nobody", b"1")
        one.publish("a/ b", b"2", flags=CLEAN_SESSION, client_id="c")
        one.publish("a/" + "long" * 2_000, b"3", qos=2)
        await one.all_acknowledged()
        assert [(d.topic, d.payload) for d in one.deliveries] == [("a/ b", b"0")]
        assert [(d.payload, d.targets, d.position) for d in first.deliveries] == [
            (b"2", [1], (KEPT, 1)),
            (b"3", [1], (KEPT, 2)),
        ]
        assert [(d.payload, d.targets, d.position) for d in second.deliveries] == [(b"2", [7], (KEPT, 1))]
        kept, long = await read_kept(nats_server.url)
        assert kept.data == b"2"
        assert kept.headers == {
            "Nats-Msg-Id": f"{one.incarnation}-3",
            "qoslevel": "1",
            "cleansessionflag": "true",
            "clientId": "c",
            "mqttSecondTopic": "/ b",
            "mqttTopic": "a.=20b",
        }
        assert subjects.message_topic(long.subject, (long.headers or {})["mqttTopic"]) == ("i", "a/" + "long" * 2_000)


async def test_topic_too_long_for_a_subject_is_in_its_log_by_header(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    topic = "p/" + "é/" * 3_000
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, both_shards(mesh) as (first, _):
        first.subscribe(1, "p/#", skips_qos0=True)
        await first.settled()
        one.publish(topic, b"1", topic_flags=LOGGED)
        one.publish("p/a", b"2", topic_flags=LOGGED)
        await one.all_acknowledged()
        assert [(d.topic, d.position) for d in first.deliveries] == [(topic, ("MQ_i_p", 1)), ("p/a", ("MQ_i_p", 2))]
        async with connected(nats_server.url) as client:
            stored = await client.jetstream().get_msg("MQ_i_p", 1)
            following = await client.jetstream().get_msg("MQ_i_p", 2)
        assert stored.subject == "mq.out.i.p"
        assert stored.headers is not None
        assert subjects.message_topic(stored.subject, stored.headers["mqttTopic"]) == ("i", topic)
        assert following.subject == "mq.out.i.p.a"


@pytest.mark.parametrize("topic_flags", [P2P | KEEPS, P2P | KEEPS | LOGGED])
async def test_kept_p2p_message_goes_to_the_shard_of_its_receiver_alone(
    mesh: Mesh, nats_server: NatsServer, topic_flags: int
) -> None:
    await make_log(nats_server.url, "p")
    receiver = "GID_x@@@1"
    index = shard_of("i", receiver, SHARDS)
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, both_shards(mesh) as shards:
        one.connect_client(9, receiver)
        await one.settled()
        topic = f"p/p2p/{receiver}"
        one.publish(topic, b"kept", topic_flags=topic_flags)
        one.publish(topic, b"qos 0", qos=0, topic_flags=topic_flags)
        one.publish(topic, b"qos 2", qos=2, topic_flags=topic_flags)
        one.publish(topic, b"clean", flags=CLEAN_SESSION, topic_flags=topic_flags)
        one.publish(topic, b"no group", topic_flags=topic_flags & ~KEEPS)
        await one.all_acknowledged()
        assert sorted(one.payloads) == [b"clean", b"no group", b"qos 0", b"qos 2"]
        (delivery,) = shards[index].deliveries
        log = "MQ_i_p" if topic_flags & LOGGED else KEPT
        assert (delivery.topic, delivery.targets, delivery.payload) == (topic, [], b"kept")
        assert (delivery.flags, delivery.position) == (1 | KEPT_P2P, (log, 1))
        assert not shards[1 - index].deliveries
        kept = await read_kept(nats_server.url)
        if not topic_flags & LOGGED:
            assert [each.headers and each.headers["mqttP2p"] for each in kept] == ["kept"]
            return
        assert not kept
        async with connected(nats_server.url) as client:
            js = client.jetstream()
            stored = [await js.get_msg("MQ_i_p", sequence) for sequence in range(1, 6)]
        assert {each.data: each.headers and each.headers["mqttP2p"] for each in stored} == {
            b"kept": "kept", **dict.fromkeys((b"qos 0", b"qos 2", b"clean", b"no group"), "online")
        }  # fmt: skip


async def test_nobody_waits_for_a_shard_that_is_away_and_its_messages_are_kept(
    mesh: Mesh, nats_server: NatsServer
) -> None:
    receiver = next(name for name in map(str, range(99)) if shard_of("i", name, SHARDS) == 0)
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, shard(mesh, 1).running() as second:
        await second.settled()
        async with shard(mesh, 0).running() as first:
            first.subscribe(1, "a", skips_qos0=True)
            await first.settled()
            first.is_confirming = False
            owed = one.publish("a", b"1")
            await until(lambda: bool(first.deliveries))
            assert owed not in one.acknowledged
        await until(lambda: owed in one.acknowledged)
        one.publish("a", b"2")
        one.publish("b", b"not kept")
        one.publish(f"p/p2p/{receiver}", b"3", topic_flags=P2P | KEEPS)
        await one.all_acknowledged()
        assert [message.data for message in await read_kept(nats_server.url)] == [b"1", b"2", b"3"]
        async with shard(mesh, 0, "another process").running() as first:
            first.subscribe(1, "b", skips_qos0=True)
            await first.settled()
            one.publish("a", b"its filter is gone")
            one.publish("b", b"4")
            await one.all_acknowledged()
            assert [(d.payload, d.position) for d in first.deliveries] == [(b"4", (KEPT, 4))]


async def test_filters_stay_until_the_next_link_has_sent_all_of_its_own(mesh: Mesh, nats_server: NatsServer) -> None:
    async with (
        mesh.router(),
        FakeEdge(mesh, "one").running() as one,
        shard(mesh, 1).running(),
        channel(mesh.address, TOKEN) as opened,
    ):
        async with shard(mesh, 0).running() as first:
            first.subscribe(1, "a", skips_qos0=True)
            await first.settled()
        call = await raw_call(
            opened, edge_id="shard-0", edge_incarnation="2", shard=router_pb2.SessionShard(index=0, count=SHARDS)
        )
        one.publish("a", b"1")
        await one.all_acknowledged()
        call.cancel()
        one.publish("a", b"2")
        await one.all_acknowledged()
        assert [message.data for message in await read_kept(nats_server.url)] == [b"1", b"2"]


async def test_all_is_kept_until_every_shard_was_there_since_the_start(mesh: Mesh, nats_server: NatsServer) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, shard(mesh, 1).running() as second:
        await second.settled()
        one.publish("a", b"1")
        one.publish("p/p2p/x", b"not kept", topic_flags=P2P)
        await one.all_acknowledged()
        await mesh.serving()  # shards are not waited for
        async with shard(mesh, 0).running() as first:
            await first.settled()
            one.publish("a", b"2")
            await one.all_acknowledged()
        assert [message.data for message in await read_kept(nats_server.url)] == [b"1"]


async def test_message_that_no_log_can_store_goes_to_edges_too_and_has_no_position(
    mesh: Mesh, nats_server: NatsServer
) -> None:
    await make_log(nats_server.url, "p", max_msg_size=2_000)
    receiver = "GID_x@@@1"
    index = shard_of("i", receiver, SHARDS)
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, both_shards(mesh) as shards:
        shards[index].subscribe(1, "p/#", skips_qos0=True)
        one.subscribe(1, "p/#", skips_acknowledged=True)
        one.connect_client(9, receiver)
        await shards[index].settled()
        await one.settled()
        one.publish("p/a", bytes(3_000), topic_flags=LOGGED)
        one.publish(f"p/p2p/{receiver}", bytes(3_000), topic_flags=P2P | KEEPS | LOGGED)
        await one.all_acknowledged()
        assert [(d.topic, d.targets) for d in one.deliveries] == [("p/a", [1]), (f"p/p2p/{receiver}", [9])]
        assert [(d.topic, d.targets, d.flags, d.position) for d in shards[index].deliveries] == [
            ("p/a", [1], 1, ("MQ_i_p", 0)),
            (f"p/p2p/{receiver}", [], 1 | KEPT_P2P, ("MQ_i_p", 0)),
        ]


async def test_shard_that_links_again_starts_anew(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, both_shards(mesh) as (first, _):
        first.subscribe(1, "a", skips_qos0=True)
        await first.settled()
        first.is_confirming = False
        one.publish("a", b"dropped with the stream")
        await until(lambda: bool(first.deliveries))
        before = first.router_incarnation
        first.cut()
        await until(lambda: first.links == 2)
        await first.settled()
        assert first.router_incarnation != before
        first.confirm()
        one.publish("a", b"2")
        await one.all_acknowledged()
        assert first.payloads == [b"dropped with the stream", b"2"]


async def test_kept_messages_survive_the_router_that_wrote_them(mesh: Mesh, nats_server: NatsServer) -> None:
    one = FakeEdge(mesh, "one")
    first = shard(mesh, 0)
    numbers = [b"%d" % number for number in range(1_000)]
    async with contextlib.AsyncExitStack() as stack:
        async with mesh.router():
            await stack.enter_async_context(one.running())
            await stack.enter_async_context(first.running())
            await stack.enter_async_context(shard(mesh, 1).running())
            first.subscribe(1, "a", skips_qos0=True)
            await first.settled()
            for number, payload in enumerate(numbers):
                one.publish("a", payload)
                if number % 20 == 0:
                    await asyncio.sleep(0)
            await until(lambda: len(one.acknowledged) > 100)
        async with mesh.router():
            await one.all_acknowledged()
        assert [message.data for message in await read_kept(nats_server.url)] == numbers
        positions = {d.payload: d.position for d in first.deliveries}  # those of repeats are the same
        assert all(positions[d.payload] == d.position for d in first.deliveries)


async def test_second_stream_of_a_place_ends_the_first(mesh: Mesh) -> None:
    async with mesh.router(), shard(mesh, 0).running() as first:
        await first.settled()
        async with shard(mesh, 0, "other").running() as other:
            await other.settled()
            await until(lambda: first.code is not None)
        assert first.code == grpc.StatusCode.ABORTED


@pytest.mark.parametrize(("index", "count"), [(2, 2), (0, 3)])
async def test_shard_of_another_number_is_refused(mesh: Mesh, index: int, count: int) -> None:
    async with mesh.router():
        await mesh.serving()
        fake = FakeEdge(mesh, "x", shard=router_pb2.SessionShard(index=index, count=count))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), fake.running():
                pass
        assert fake.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(target(target_id=1, topic_filter="a"), id="QoS 0"),
        pytest.param(target(target_id=1, client_id="a", skips_qos0=True), id="client"),
        pytest.param(target(target_id=1, topic_filter="a", share_name="x", skips_qos0=True), id="shared"),
        pytest.param(target(target_id=1, topic_filter="a", skips_qos0=True, skips_acknowledged=True), id="nothing"),
        pytest.param(batch(), id="publishes"),
    ],
)
async def test_broken_contract_is_an_invalid_argument(mesh: Mesh, request_: router_pb2.LinkRequest) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        await mesh.serving()
        call = await raw_call(opened, shard=router_pb2.SessionShard(index=0, count=SHARDS))
        await call.write(request_)
        await has_violated(call)
