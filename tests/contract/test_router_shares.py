"""Shared subscriptions: what `RouterService` promises to the edges of their members."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter

import pytest

from services.common.grpc_client import channel
from tests.support.nats import NatsServer
from tests.support.router import (
    LOGGED,
    P2P,
    RETAIN,
    TOKEN,
    FakeEdge,
    Mesh,
    has_violated,
    make_log,
    mesh,
    raw_call,
    target,
    until,
)
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio

FILTER = "a/+"


def share(edge: FakeEdge, *target_ids: int, name: str = "x") -> None:
    for target_id in target_ids:
        edge.subscribe(target_id, FILTER, share_name=name)


@pytest.mark.parametrize("topic_flags", [0, LOGGED])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_members_take_turns_and_others_get_everything(
    mesh: Mesh, nats_server: NatsServer, qos: int, topic_flags: int
) -> None:
    await make_log(nats_server.url, "a")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        share(one, 1)
        share(two, 1, 2)
        share(two, 3, name="alone")
        two.subscribe(4, "#")
        await one.settled()
        await two.settled()
        for number in range(30):
            one.publish(f"a/{number % 3}", b"%d" % number, qos=qos, topic_flags=topic_flags)
        await until(lambda: len(one.deliveries) + len(two.deliveries) == 90)
        await one.all_acknowledged()
        numbers = {b"%d" % number for number in range(30)}
        had: Counter[tuple[str, int]] = Counter()
        shared: Counter[bytes] = Counter()
        for edge in (one, two):
            for delivery in edge.deliveries:
                (target_id,) = delivery.targets
                had[edge.edge_id, target_id] += 1
                if (edge is one and target_id == 1) or target_id in (1, 2):
                    shared[delivery.payload] += 1
        assert had == {("one", 1): 10, ("two", 1): 10, ("two", 2): 10, ("two", 3): 30, ("two", 4): 30}
        assert shared == dict.fromkeys(numbers, 1)
        # an edge drops a message of QoS 2 that it had, so two ways to one edge are two origins
        origins = [delivery.origin for delivery in two.deliveries if delivery.origin]
        assert len(set(origins)) == len(origins) == (80 if qos == 2 else 0)


async def test_member_that_leaves_gets_nothing_more(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        share(one, 1, 2)
        one.unsubscribe(1)
        await one.settled()
        for _ in range(4):
            one.publish("a/b", b"")
        await one.all_acknowledged()
        assert [delivery.targets for delivery in one.deliveries] == [[2]] * 4
        one.unsubscribe(2)
        one.publish("a/b", b"nobody")
        await one.all_acknowledged()
        assert len(one.deliveries) == 4


async def test_shared_subscriptions_get_no_p2p_messages(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        share(one, 1)
        one.subscribe(2, "a/#", share_name="x")
        one.publish("a/p2p/c", b"", topic_flags=P2P)
        one.publish("a/b", b"", flags=RETAIN)
        await one.all_acknowledged()
        assert sorted(delivery.targets for delivery in one.deliveries) == [[1], [2]]
        assert {delivery.flags for delivery in one.deliveries} == {1}  # live, not as a retained one


async def test_edge_without_a_stream_is_passed_over(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        share(one, 1)
        async with FakeEdge(mesh, "two").running() as two:
            share(two, 1)
            await two.settled()
        await one.settled()
        await until(lambda: "edge link broke" in caplog.messages)  # the router has noticed
        for number in range(6):  # within the grace of the other edge
            one.publish("a/b", b"%d" % number)
        await one.all_acknowledged()
        assert one.payloads == [b"%d" % number for number in range(6)]


@pytest.mark.parametrize("way", ["goodbye", "grace", "new process"])
async def test_messages_that_a_gone_edge_owed_go_to_other_members(mesh: Mesh, way: str) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, contextlib.AsyncExitStack() as stack:
        two_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        two = await two_stack.enter_async_context(FakeEdge(mesh, "two").running())
        share(two, 1)
        await two.settled()
        two.is_confirming = False
        first = one.publish("a/b", b"first")
        await until(lambda: bool(two.deliveries))
        share(one, 1)
        await one.settled()
        for number in range(9):
            one.publish("a/b", b"%d" % number, qos=number % 3)
        owed = set(range(1, one.publish("a/b", b"last") + 1))
        await until(lambda: len(two.deliveries) + len(one.deliveries) == 11)
        assert first not in one.acknowledged
        one.is_confirming = False
        before = len(one.deliveries)
        if way == "goodbye":
            two.send(router_pb2.LinkRequest(goodbye=True))
        elif way == "grace":
            await two_stack.aclose()
        else:
            await stack.enter_async_context(FakeEdge(mesh, "two", "other").running())
        at_most_once = {d.payload for d in two.deliveries if d.flags & 3 == 0}
        await until(lambda: len(one.deliveries) == 11 - len(at_most_once))
        moved = one.deliveries[before:]
        assert moved[0].payload == b"first"
        assert first not in one.acknowledged, "its publisher waits for the member that has it now"
        one.confirm()
        await one.all_acknowledged()
        assert set(one.acknowledged) <= owed
        assert sorted({*one.payloads, *at_most_once}) == sorted(
            [b"first", b"last", *(b"%d" % number for number in range(9))]
        )


async def test_without_another_member_the_publisher_is_answered(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        async with FakeEdge(mesh, "two").running() as two:
            share(two, 1)
            await two.settled()
            two.is_confirming = False
            one.publish("a/b", b"")
            await until(lambda: bool(two.deliveries))
        await one.all_acknowledged()
        assert not one.deliveries


def returned(**changes: object) -> router_pb2.LinkRequest:
    columns: dict[str, object] = {
        "topics": ["a/b"],
        "topic_indexes": [0, 0],
        "targets": [router_pb2.Target(target_id=1, instance_id="i", topic_filter=FILTER, share_name="x")],
        "target_indexes": [0, 0],
        "payloads": [b"1", b"2"],
        "flags": b"\1\2",
    }
    message = router_pb2.ReturnedMessages(**{**columns, **changes})  # type: ignore[arg-type]
    return router_pb2.LinkRequest(frame=1, returned=message)


async def test_returned_messages_go_to_another_member(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        share(one, 1)
        share(two, 1)
        await two.settled()
        await one.settled()
        one.publish("a/b", b"1", qos=1)
        one.publish("a/b", b"2", qos=2)
        await one.all_acknowledged()
        await until(lambda: len(one.deliveries) == len(two.deliveries) == 1)
        request = returned()
        del one.targets[1]
        request.removed_target_ids.append(1)
        one.send(request)
        await until(lambda: len(two.deliveries) == 3)
        assert [(d.topic, d.targets, d.payload, d.flags) for d in two.deliveries[1:]] == [
            ("a/b", [1], b"1", 1),
            ("a/b", [1], b"2", 2),
        ]
        two.unsubscribe(1)
        await two.settled()
        one.send(returned())  # nobody is left
        await one.settled()
        assert len(two.deliveries) == 3


async def test_returned_messages_find_a_member_after_the_router_was_restarted(mesh: Mesh) -> None:
    one, two = FakeEdge(mesh, "one"), FakeEdge(mesh, "two")
    async with contextlib.AsyncExitStack() as edges:
        async with mesh.router():
            await edges.enter_async_context(one.running())
            await edges.enter_async_context(two.running())
            share(two, 1)
            await two.settled()
        async with mesh.router():
            await until(lambda: one.links == two.links == 2)
            await one.settled()
            await two.settled()
            one.send(returned())  # of a target that this router never heard of
            await until(lambda: len(two.deliveries) == 2)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(returned(topic_indexes=[0]), id="topic index missing"),
        pytest.param(returned(target_indexes=[0]), id="target index missing"),
        pytest.param(returned(flags=b"\1"), id="flags missing"),
        pytest.param(returned(topic_indexes=[0, 1]), id="topic index out of range"),
        pytest.param(returned(target_indexes=[0, 1]), id="target index out of range"),
        pytest.param(returned(flags=b"\0\1"), id="QoS 0"),
        pytest.param(returned(flags=b"\3\1"), id="QoS 3"),
        pytest.param(returned(topics=["a/#"]), id="wildcard in a topic name"),
        pytest.param(
            returned(targets=[router_pb2.Target(target_id=1, instance_id="i", topic_filter="a")]), id="not shared"
        ),
        pytest.param(target(target_id=1, client_id="c", share_name="x"), id="client"),
        pytest.param(target(target_id=1, topic_filter="a", share_name="x", skips_qos0=True), id="skips QoS 0"),
        pytest.param(target(target_id=1, client_id="c", skips_acknowledged=True), id="client that skips"),
    ],
)
async def test_broken_contract_is_an_invalid_argument(mesh: Mesh, request_: router_pb2.LinkRequest) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        await mesh.serving()
        call = await raw_call(opened)
        await call.write(request_)
        await has_violated(call)
