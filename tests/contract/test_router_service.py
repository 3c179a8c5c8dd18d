"""The promises of `RouterService`, kept to fake edges over real gRPC, with real NATS behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any

import grpc
import pytest

from services.common.grpc_client import call_metadata, channel
from services.common.runtime import background
from services.router.app import serve
from tests.support.nats import NatsServer
from tests.support.router import (
    CLEAN_SESSION,
    LOGGED,
    P2P,
    RETAIN,
    TOKEN,
    FakeEdge,
    Mesh,
    batch,
    connected,
    end_of,
    has_violated,
    make_log,
    mesh,
    raw_call,
    read_log,
    target,
    until,
    until_not_serving,
)
from tests.support.wait import WAIT_S
from weimq.router.v1 import router_pb2, router_pb2_grpc

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("topic_flags", [0, LOGGED])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_message_goes_to_every_edge_with_a_matching_filter(
    mesh: Mesh, nats_server: NatsServer, qos: int, topic_flags: int
) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        one.subscribe(1, "p/+")
        two.subscribe(1, "p/#")
        two.subscribe(2, "p/a")
        two.subscribe(3, "q")
        two.subscribe(4, "p/a", instance_id="other")
        await one.settled()
        await two.settled()
        sequence = one.publish("p/a", b"payload", qos=qos, flags=RETAIN, topic_flags=topic_flags)
        await until(lambda: bool(one.deliveries and two.deliveries))
        for edge, targets in ((one, [1]), (two, [1, 2])):
            (delivery,) = edge.deliveries
            assert (delivery.topic, delivery.payload, sorted(delivery.targets)) == ("p/a", b"payload", targets)
            assert delivery.flags == qos  # the retain flag is cleared for those who subscribed before
            assert delivery.origin == ((one.incarnation, sequence) if qos == 2 else None)
        if qos:
            await one.all_acknowledged()
        assert one.acknowledged == ([sequence] if qos else [])
        assert len(await read_log(nats_server.url, "p")) == (1 if topic_flags else 0)


async def test_logged_message_carries_its_properties(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        one.publish("p/a/b", b"1", qos=1, flags=CLEAN_SESSION, topic_flags=LOGGED, client_id="GID_x@@@1")
        one.publish("p/p2p/GID_x@@@2", b"2", qos=2, topic_flags=LOGGED | P2P, client_id="evil\r\nqoslevel: 0")
        await one.all_acknowledged()
        first, second = await read_log(nats_server.url, "p")
        async with connected(nats_server.url) as client:
            bare = await client.subscribe("mq.out.i.p")
            await client.flush()
            one.publish("p", b"3", qos=0, topic_flags=LOGGED, client_id="c")
            third = await bare.next_msg(timeout=10)
    assert first.subject == "mq.out.i.p.a.b"
    assert first.headers == {
        "Nats-Msg-Id": f"{one.incarnation}-1",
        "qoslevel": "1",
        "cleansessionflag": "true",
        "clientId": "GID_x@@@1",
        "mqttSecondTopic": "/a/b",
    }
    # Nobody tells this router that the topic is not ordered.
    assert (second.headers or {}).pop("Nats-Expected-Last-Msg-Id") == f"{one.incarnation}-1"
    assert second.headers == {
        "Nats-Msg-Id": f"{one.incarnation}-2",
        "qoslevel": "2",
        "cleansessionflag": "false",
        "clientId": "evil%0D%0Aqoslevel: 0",
        "mqttSecondTopic": "/p2p/GID_x@@@2",
        "mqttP2p": "online",
    }
    assert third.headers is not None
    assert "mqttSecondTopic" not in third.headers
    assert third.headers["qoslevel"] == "0"


async def test_p2p_message_goes_to_the_edge_of_its_client_only(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        one.subscribe(1, "#")
        two.connect_client(9, "GID_x@@@1")
        await one.settled()
        await two.settled()
        one.publish("p/p2p/GID_x@@@1", b"1", topic_flags=P2P)
        one.publish("p/p2p/GID_x@@@2", b"nobody", topic_flags=P2P)
        await one.all_acknowledged()
        assert [(d.topic, d.targets, d.payload) for d in two.deliveries] == [("p/p2p/GID_x@@@1", [9], b"1")]
        assert not one.deliveries
        two.unsubscribe(9)
        await two.settled()
        one.publish("p/p2p/GID_x@@@1", b"2", topic_flags=P2P)
        await one.all_acknowledged()
        assert two.payloads == [b"1"]


async def test_messages_keep_their_order_in_the_log_and_to_subscribers(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        two.subscribe(1, "#")
        await two.settled()
        for number in range(3000):
            one.publish(f"p/{number % 3}", b"%d" % number, topic_flags=LOGGED, qos=1 + number % 2)
            one.publish(f"q/{number % 3}", b"%d" % number)
        await one.all_acknowledged()
        numbers = [b"%d" % number for number in range(3000)]
        assert [delivery.payload for delivery in two.deliveries if delivery.topic.startswith("p/")] == numbers
        assert [delivery.payload for delivery in two.deliveries if delivery.topic.startswith("q/")] == numbers
        assert [message.data for message in await read_log(nats_server.url, "p")] == numbers


async def test_acknowledged_only_when_every_target_edge_confirmed(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        one.subscribe(1, "a")
        two.subscribe(1, "a")
        await one.settled()
        await two.settled()
        two.is_confirming = False
        sequence = one.publish("a", b"")
        await until(lambda: bool(one.deliveries and two.deliveries))
        other = one.publish("nobody", b"")
        await until(lambda: other in one.acknowledged)
        assert sequence not in one.acknowledged
        two.confirm()
        await until(lambda: sequence in one.acknowledged)


@pytest.mark.parametrize("way", ["goodbye", "grace", "new process"])
async def test_acknowledged_when_the_target_edge_is_gone(mesh: Mesh, way: str) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, contextlib.AsyncExitStack() as stack:
        two_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        two = await two_stack.enter_async_context(FakeEdge(mesh, "two").running())
        two.subscribe(1, "a")
        await two.settled()
        two.is_confirming = False
        sequence = one.publish("a", b"")
        await until(lambda: bool(two.deliveries))
        assert sequence not in one.acknowledged
        if way == "goodbye":
            two.send(router_pb2.LinkRequest(goodbye=True))
        elif way == "grace":
            await two_stack.aclose()
        else:
            await stack.enter_async_context(FakeEdge(mesh, "two", "other").running())
        await until(lambda: sequence in one.acknowledged)
        one.publish("a", b"")
        await one.all_acknowledged()
        assert len(two.deliveries) == 1


async def test_goodbye_is_confirmed_and_ends_the_link(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        one.send(router_pb2.LinkRequest(goodbye=True))
        await one.settled()
        await until(lambda: one.links == 2)  # the fake comes again, and is a new one to the router
        assert one.link.received_through == 0


async def test_cut_streams_lose_and_repeat_nothing(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        two.subscribe(1, "#")
        await two.settled()
        numbers = [b"%d" % number for number in range(4000)]
        for number, payload in enumerate(numbers):
            one.publish("p/a", payload, topic_flags=LOGGED, qos=1 + number % 2)
            if number % 20 == 0:
                await asyncio.sleep(0)
            if number % 500 == 250:
                (one if number % 1000 == 250 else two).cut()
                await asyncio.sleep(0.03)
        await one.all_acknowledged()
        await until(lambda: len(two.deliveries) >= len(numbers))
        assert one.links > 3
        assert two.links > 3
        assert two.payloads == numbers
        assert sorted(one.acknowledged) == list(range(1, 4001))
        assert len({edge.router_incarnation for edge in (one, two)}) == 2
        assert len(await read_log(nats_server.url, "p")) == 4000


async def test_restarted_router_goes_on_where_the_old_one_was(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    one, two = FakeEdge(mesh, "one"), FakeEdge(mesh, "two")
    numbers = [b"%d" % number for number in range(2000)]
    async with contextlib.AsyncExitStack() as edges:
        async with mesh.router():
            await edges.enter_async_context(one.running())
            await edges.enter_async_context(two.running())
            two.subscribe(1, "p/#")
            await two.settled()
            for number, payload in enumerate(numbers):
                one.publish("p/a", payload, topic_flags=LOGGED)
                if number % 20 == 0:
                    await asyncio.sleep(0)
            await until(lambda: len(two.deliveries) > 200)
        before = len(one.acknowledged)
        async with mesh.router():
            await one.all_acknowledged()
            assert before < 2000  # else nothing was sent again
            assert set(two.payloads) == set(numbers)  # QoS 1 may repeat
            assert [message.data for message in await read_log(nats_server.url, "p")] == numbers


async def test_restarted_router_waits_for_the_edges_of_the_old_one(mesh: Mesh, nats_server: NatsServer) -> None:
    mesh = Mesh(mesh.address, nats_server.url, edge_grace_s=WAIT_S)  # however slow the machine is
    one, two = FakeEdge(mesh, "one"), FakeEdge(mesh, "two")
    async with contextlib.AsyncExitStack() as edges:
        async with mesh.router(), two.running():
            two.subscribe(1, "a")
            await two.settled()
            await mesh.serving()
        async with mesh.router():
            await edges.enter_async_context(one.running())
            sequence = one.publish("a", b"payload")
            assert not await mesh.is_serving()
            assert sequence not in one.acknowledged
            await edges.enter_async_context(two.running())
            await one.all_acknowledged()
            await mesh.serving()
            assert two.payloads == [b"payload"]


async def test_restarted_router_waits_no_longer_than_the_grace(mesh: Mesh) -> None:
    one, two = FakeEdge(mesh, "one"), FakeEdge(mesh, "two")
    async with mesh.router(), two.running():
        await two.settled()
        await mesh.serving()
    async with mesh.router(), one.running():
        one.publish("a", b"")
        await one.all_acknowledged()
        await mesh.serving()


async def test_edge_that_said_goodbye_is_not_waited_for(mesh: Mesh, nats_server: NatsServer) -> None:
    async with mesh.router():
        async with FakeEdge(mesh, "one").running() as one:
            await mesh.serving()
            one.send(router_pb2.LinkRequest(goodbye=True))
            await one.settled()
        async with connected(nats_server.url) as client, asyncio.timeout(30):
            bucket = await client.jetstream().key_value("router_edges")
            changes = await bucket.watchall()
            async for change in changes:
                if change is not None and change.operation == "DEL":
                    assert change.key == "0.one"
                    break


async def test_logged_messages_wait_while_nats_is_down(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        one.subscribe(1, "#")
        await one.settled()
        await mesh.serving()
        nats_server.kill()
        logged = one.publish("p/a", b"logged", topic_flags=LOGGED)
        at_most_once = one.publish("p/a", b"at most once", topic_flags=LOGGED, qos=0)
        unlogged = one.publish("q", b"unlogged")
        await until(lambda: unlogged in one.acknowledged)
        assert one.payloads == [b"at most once", b"unlogged"]
        assert logged not in one.acknowledged
        await until_not_serving(mesh)
        await asyncio.to_thread(nats_server.start)
        await until(lambda: logged in one.acknowledged)
        assert one.payloads == [b"at most once", b"unlogged", b"logged"]
        assert at_most_once not in one.acknowledged
        await mesh.serving()
        assert sorted(m.data for m in await read_log(nats_server.url, "p")) == [b"at most once", b"logged"]


async def test_router_started_without_nats_takes_links_and_waits(mesh: Mesh, nats_server: NatsServer) -> None:
    nats_server.kill()
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        sequence = one.publish("a", b"")
        await asyncio.to_thread(nats_server.start)
        await until(lambda: sequence in one.acknowledged)


async def test_second_stream_of_an_edge_ends_the_first(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as first:
        await mesh.serving()
        async with FakeEdge(mesh, "one").running():
            await until(lambda: first.code is not None)
        assert first.code == grpc.StatusCode.ABORTED


async def test_edge_that_starts_anew_replaces_its_interests(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        one.subscribe(1, "a")
        one.subscribe(2, "b")
        await one.settled()
        one.router_incarnation = "another router"
        del one.targets[1]
        one.targets[3] = router_pb2.Target(target_id=3, instance_id="i", topic_filter="c")
        one.cut()
        await until(lambda: one.links == 2)
        await one.settled()
        for topic in ("a", "b", "c"):
            one.publish(topic, topic.encode())
        await one.all_acknowledged()
        assert [(delivery.topic, delivery.targets) for delivery in one.deliveries] == [("b", [2]), ("c", [3])]


async def test_stopping_router_ends_links_with_unavailable(mesh: Mesh) -> None:
    stop = asyncio.Event()
    settings = dataclasses.replace(mesh._settings, drain_s=5)  # without, calls are cut off
    async with channel(mesh.address, TOKEN) as opened, background(serve(settings, stop)):
        await mesh.serving()
        call = await raw_call(opened)
        stop.set()
        async with asyncio.timeout(30):
            assert await end_of(call) == grpc.StatusCode.UNAVAILABLE


async def test_edge_that_was_given_up_is_told_that_it_may_have_missed_messages(mesh: Mesh) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        await mesh.serving()
        incarnations: list[str] = [""]
        missed: list[bool] = []
        async with asyncio.timeout(20):
            while not (missed and missed[-1]):
                call: Any = router_pb2_grpc.RouterServiceStub(opened).Link(metadata=call_metadata(TOKEN))
                opening = router_pb2.LinkOpen(edge_id="raw", edge_incarnation="1", router_incarnation=incarnations[-1])
                await call.write(router_pb2.LinkRequest(open=opening))
                first = (await call.read()).opened
                incarnations.append(first.router_incarnation)
                missed.append(first.missed)
                call.cancel()
                await asyncio.sleep(0.1 * 2 ** len(missed))  # at last longer than the grace of 1 s
        assert missed[0] is False, "an edge that was never linked has missed nothing"
        assert missed[1] is False, "within the grace nothing is missed"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(router_pb2.LinkRequest(frame=1, open=router_pb2.LinkOpen(edge_id="raw")), id="opened twice"),
        pytest.param(target(topic_filter="a"), id="target id 0"),
        pytest.param(target(target_id=1), id="no interest"),
        pytest.param(target(target_id=1, topic_filter="a/#/b"), id="wrong filter"),
        pytest.param(target(target_id=1, topic_filter=""), id="empty filter"),
        pytest.param(batch(topics=["a/+"]), id="wildcard in a topic name"),
        pytest.param(batch(topic_flags=b"\2"), id="P2P topic of another form"),
        pytest.param(batch(sequences=[]), id="sequences missing"),
        pytest.param(batch(flags=b""), id="flags missing"),
        pytest.param(batch(topic_flags=b""), id="topic flags missing"),
        pytest.param(batch(topic_indexes=[1]), id="topic index out of range"),
        pytest.param(batch(topic_instances=[1]), id="instance index out of range"),
        pytest.param(batch(publisher_indexes=[1]), id="publisher index out of range"),
        pytest.param(batch(flags=b"\3"), id="QoS 3"),
        pytest.param(batch(sequences=[0]), id="sequence 0"),
        pytest.param(
            router_pb2.LinkRequest(
                frame=1,
                added_targets=[
                    router_pb2.Target(target_id=1, instance_id="i", topic_filter="a"),
                    router_pb2.Target(target_id=1, instance_id="i", topic_filter="b"),
                ],
            ),
            id="target id used twice",
        ),
    ],
)
@pytest.mark.parametrize("is_settled", [True, False])
async def test_broken_contract_is_an_invalid_argument(
    mesh: Mesh, nats_server: NatsServer, request_: router_pb2.LinkRequest, is_settled: bool
) -> None:
    if not is_settled:
        nats_server.kill()
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        if is_settled:
            await mesh.serving()
        call = await raw_call(opened)
        await call.write(request_)
        await has_violated(call)
        await raw_call(opened)  # the router lives, and the edge starts anew


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(router_pb2.LinkRequest(frame=1), id="no open"),
        pytest.param(router_pb2.LinkRequest(open=router_pb2.LinkOpen(edge_incarnation="1")), id="no edge id"),
        pytest.param(router_pb2.LinkRequest(open=router_pb2.LinkOpen(edge_id="raw")), id="no incarnation"),
        pytest.param(
            router_pb2.LinkRequest(open=router_pb2.LinkOpen(edge_id="raw", edge_incarnation="1"), frame=1),
            id="more than open",
        ),
        pytest.param(
            router_pb2.LinkRequest(open=router_pb2.LinkOpen(edge_id="e" * 129, edge_incarnation="1")), id="long edge id"
        ),
    ],
)
async def test_wrong_opening_is_an_invalid_argument(mesh: Mesh, first: router_pb2.LinkRequest) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        await mesh.serving()
        call: Any = router_pb2_grpc.RouterServiceStub(opened).Link(metadata=call_metadata(TOKEN))
        await call.write(first)
        await has_violated(call)


async def test_confirmation_of_what_was_not_sent_is_an_invalid_argument(mesh: Mesh) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        await mesh.serving()
        call: Any = router_pb2_grpc.RouterServiceStub(opened).Link(metadata=call_metadata(TOKEN))
        await call.write(router_pb2.LinkRequest(open=router_pb2.LinkOpen(edge_id="raw", edge_incarnation="1")))
        incarnation = (await call.read()).opened.router_incarnation
        call.cancel()
        again: Any = router_pb2_grpc.RouterServiceStub(opened).Link(metadata=call_metadata(TOKEN))
        opening = router_pb2.LinkOpen(
            edge_id="raw", edge_incarnation="1", router_incarnation=incarnation, received_through=7
        )
        await again.write(router_pb2.LinkRequest(open=opening))
        await has_violated(again)
