"""Topics that an edge may serve by itself, and how that ends before a subscriber elsewhere counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.grpc_client import channel
from tests.support.router import TOKEN, FakeEdge, Mesh, has_violated, mesh, raw_call, until
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio


async def test_an_edge_that_has_every_subscriber_may_serve_a_topic(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        await mesh.serving()
        one.subscribe(1, "p/+")
        one.subscribe(2, "p/a")
        two.subscribe(1, "p/b")
        two.subscribe(2, "p/a", instance_id="other")
        await two.settled()
        assert await one.ask_route("p/a") == [1, 2]
        assert await one.ask_route("p/b") is None
        assert await one.ask_route("q") == []
        assert await two.ask_route("p/a") is None


@pytest.mark.parametrize("fields", [{"share_name": "s"}, {"skips_acknowledged": True}])
async def test_targets_that_do_not_get_every_message_need_the_router(mesh: Mesh, fields: dict[str, Any]) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        await mesh.serving()
        one.subscribe(1, "p/a", **fields)
        assert await one.ask_route("p/a") is None


async def test_the_answer_comes_after_deliveries_of_what_was_sent_before(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        await mesh.serving()
        one.subscribe(1, "p/a")
        for n in range(500):
            one.publish("p/a", b"%d" % n, qos=0)
        assert await one.ask_route("p/a") == [1]
        assert one.payloads == [b"%d" % n for n in range(500)]


@pytest.mark.parametrize("topic_filter", ["p/a", "p/#", "+/a", "#"])
async def test_a_subscriber_elsewhere_counts_once_the_route_is_revoked(mesh: Mesh, topic_filter: str) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        await mesh.serving()
        one.subscribe(1, "p/a")
        assert await one.ask_route("p/a") == [1]
        two.subscribe(1, "p/b")
        await two.settled()  # nobody waits for another topic
        assert not one.revoked
        one.is_confirming = False
        two.subscribe(2, topic_filter)
        await until(lambda: one.revoked == ["p/a"])
        two.subscribe(3, "p/c")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await two.settled()
        one.confirm()
        await two.settled()
        one.publish("p/a", b"x")
        await until(lambda: two.payloads == [b"x"] and one.payloads == [b"x"])
        assert await one.ask_route("p/a") is None
        two.unsubscribe(2)
        await two.settled()
        assert await one.ask_route("p/a") == [1]


async def test_nobody_waits_for_an_edge_that_is_gone(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "two").running() as two:
        await mesh.serving()
        async with FakeEdge(mesh, "one").running() as one:
            assert await one.ask_route("p/a") == []
            one.is_confirming = False
            two.subscribe(1, "p/a")
            await until(lambda: one.revoked == ["p/a"])
            assert two.link.has_unconfirmed
        await two.settled()  # its grace is over


async def test_a_revocation_survives_a_broken_stream(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, FakeEdge(mesh, "two").running() as two:
        await mesh.serving()
        assert await one.ask_route("p/a") == []
        one.is_confirming = False
        two.subscribe(1, "p/a")
        await until(lambda: one.revoked == ["p/a"])
        assert two.link.has_unconfirmed
        one.is_confirming = True
        one.cut()
        await until(lambda: one.links == 2)
        one.confirm()
        await two.settled()


async def test_an_edge_does_not_wait_for_itself(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        await mesh.serving()
        assert await one.ask_route("p/a") == []
        one.subscribe(1, "p/a")
        await one.settled()
        assert not one.revoked
        assert await one.ask_route("p/a") == [1]


async def test_a_question_about_no_topic_name_breaks_the_contract(mesh: Mesh) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        call = await raw_call(opened, edge_id="one", edge_incarnation="x")
        question = router_pb2.RouteQuestion(instance_id="i", topic="p/#")
        await call.write(router_pb2.LinkRequest(frame=1, route_questions=[question]))
        await has_violated(call)
