"""The promises of `RouterService.PublishStream` and `RouterService.Deliver`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from grpc import aio

from services.common.grpc_client import call_metadata, channel
from tests.contract.test_router_inbound import auth
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer
from tests.support.router import TOKEN, FakeEdge, Mesh, make_log, mesh, read_log, until, until_not_serving
from weimq.router.v1 import router_pb2, router_pb2_grpc

__all__ = ["auth", "mesh"]  # fixtures

pytestmark = pytest.mark.asyncio

ACKNOWLEDGED = router_pb2.DELIVERY_OUTCOME_ACKNOWLEDGED
KEPT = router_pb2.DELIVERY_OUTCOME_OFFLINE_KEPT
NOT_KEPT = router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT
PENDING = router_pb2.DELIVERY_OUTCOME_PENDING


def message(n: int, **changes: Any) -> router_pb2.PublishedMessage:
    fields: dict[str, Any] = {
        "instance_id": "i",
        "topic": "p/a",
        "payload": b"%d" % n,
        "qos": 1,
        "message_id": f"m-{n}",
        "clean_session": True,
    }
    return router_pb2.PublishedMessage(**{**fields, **changes})


def p2p(**changes: Any) -> router_pb2.PublishedMessage:
    return message(1, **{"topic": "p/p2p/GID_x@@@1", **changes})


@contextlib.asynccontextmanager
async def running(mesh: Mesh) -> AsyncGenerator[tuple[FakeEdge, Any]]:
    async with (
        mesh.router(),
        FakeEdge(mesh, "one").running() as edge,
        channel(mesh.address, TOKEN) as opened,
    ):
        edge.subscribe(1, "#")
        edge.connect_client(9, "GID_x@@@1")
        await edge.settled()
        await mesh.serving()
        stub: Any = router_pb2_grpc.RouterServiceStub(opened)
        async with asyncio.timeout(30):
            while True:  # until the router knows what exists
                with contextlib.suppress(aio.AioRpcError):
                    call = stub.PublishStream(metadata=call_metadata(TOKEN))
                    await call.done_writing()
                    assert await call.read() is aio.EOF
                    break
                await asyncio.sleep(0.01)
        yield edge, stub


async def test_stream_answers_batches_in_order_and_names_what_it_refused(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh) as (edge, stub):
        call = stub.PublishStream(metadata=call_metadata(TOKEN))
        for batch in range(40):
            good = [message(batch * 10 + n) for n in range(10)]
            bad = [message(1000, topic="nothing/x", message_id="b1"), message(1001, topic="p/#", message_id="b2")]
            await call.write(router_pb2.PublishStreamRequest(messages=[bad[0], *good, bad[1]] if batch == 7 else good))
        await call.done_writing()
        answers = [answer async for answer in call]
        assert [len(answer.refusals) for answer in answers] == [2 if batch == 7 else 0 for batch in range(40)]
        assert [refusal.index for refusal in answers[7].refusals] == [0, 11]
        assert answers[7].refusals[0].reason == "unknown parent topic"
        expected = [b"%d" % n for n in range(400)]
        assert edge.payloads == expected
        # The router knew that the topic is logged.
        assert [each.data for each in await read_log(nats_server.url, "p")] == expected


async def test_stream_reads_no_more_while_too_many_batches_are_unanswered(mesh: Mesh, auth: FakeAuth) -> None:
    async with running(mesh) as (edge, stub):
        edge.is_confirming = False
        call = stub.PublishStream(metadata=call_metadata(TOKEN))
        async with asyncio.TaskGroup() as group:

            async def write() -> None:
                for n in range(200):
                    await call.write(router_pb2.PublishStreamRequest(messages=[message(n, topic="q/a")]))
                await call.done_writing()

            group.create_task(write())
            await until(lambda: len(edge.deliveries) >= 16)
            await asyncio.sleep(0.2)
            assert len(edge.deliveries) <= 18
            edge.confirm()
            assert len([answer async for answer in call]) == 200
        assert len(edge.deliveries) == 200


async def test_stream_ends_when_nats_is_away(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh) as (_, stub):
        await asyncio.to_thread(nats_server.kill)
        await until_not_serving(mesh)
        call = stub.PublishStream(metadata=call_metadata(TOKEN))
        await call.write(router_pb2.PublishStreamRequest(messages=[message(1)]))
        with pytest.raises(aio.AioRpcError) as error:
            await call.read()
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(nats_server.start)


async def test_batch_that_is_not_acceptable_ends_the_stream(mesh: Mesh, auth: FakeAuth) -> None:
    async with running(mesh) as (edge, stub):
        for messages in ([], [message(1), message(1)]):
            call = stub.PublishStream(metadata=call_metadata(TOKEN))
            await call.write(router_pb2.PublishStreamRequest(messages=messages))
            with pytest.raises(aio.AioRpcError) as error:
                await call.read()
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert not edge.deliveries


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("outcome", [ACKNOWLEDGED, NOT_KEPT])
async def test_receipt_is_what_the_edge_reports(mesh: Mesh, auth: FakeAuth, qos: int, outcome: Any) -> None:
    async with running(mesh) as (edge, stub), asyncio.TaskGroup() as group:
        request = router_pb2.DeliverRequest(message=p2p(topic="q/p2p/GID_x@@@1", qos=qos))
        call = group.create_task(collect(stub.Deliver(request, timeout=10)))
        await until(lambda: bool(edge.receipt_ids))
        assert [(each.topic, each.targets, each.flags) for each in edge.deliveries] == [
            ("q/p2p/GID_x@@@1", [9], qos | 16)
        ]
        assert not call.done()
        edge.send(router_pb2.LinkRequest(receipt_ids=edge.receipt_ids, receipt_outcomes=[outcome]))
        assert (await call).outcome == outcome


async def collect(call: Any) -> router_pb2.DeliverResponse:
    response: router_pb2.DeliverResponse = await call
    return response


async def test_receiver_that_is_offline(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh) as (edge, stub):
        request = router_pb2.DeliverRequest(message=p2p(topic="p/p2p/GID_x@@@2"))
        assert (await stub.Deliver(request, timeout=10)).outcome == NOT_KEPT
        assert not edge.deliveries
        (logged,) = await read_log(nats_server.url, "p")
        assert logged.data == b"1"


async def test_kept_message_is_reported_by_its_shard(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    mesh._settings = dataclasses.replace(mesh._settings, shard_count=1)
    await make_log(nats_server.url, "p")
    async with running(mesh) as (_, stub):
        shard = FakeEdge(mesh, "session-0", shard=router_pb2.SessionShard(index=0, count=1))
        request = router_pb2.DeliverRequest(message=p2p(clean_session=False))
        async with shard.running():
            await shard.settled()
            for outcome in (KEPT, ACKNOWLEDGED):
                async with asyncio.TaskGroup() as group:
                    call = group.create_task(collect(stub.Deliver(request, timeout=10)))
                    await until(lambda: bool(shard.receipt_ids))
                    assert shard.deliveries[-1].flags == 1 | 8 | 16
                    shard.send(router_pb2.LinkRequest(receipt_ids=shard.receipt_ids, receipt_outcomes=[outcome]))
                    assert (await call).outcome == outcome
                shard.receipt_ids.clear()
        # Without the shard the message waits in the log, where it finds it.
        assert (await stub.Deliver(request, timeout=10)).outcome == KEPT


async def test_deadline_without_a_receipt_is_pending(mesh: Mesh, auth: FakeAuth) -> None:
    async with running(mesh) as (_, stub):
        request = router_pb2.DeliverRequest(message=p2p(topic="q/p2p/GID_x@@@1"))
        assert (await stub.Deliver(request, timeout=0.5)).outcome == PENDING


@pytest.mark.parametrize("way", ["goodbye", "grace over", "restarted"])
async def test_edge_that_dies_with_the_message_ends_the_call(mesh: Mesh, auth: FakeAuth, way: str) -> None:
    async with running(mesh) as (_, stub), contextlib.AsyncExitStack() as stack:
        edge = await stack.enter_async_context(FakeEdge(mesh, "two").running())
        edge.connect_client(7, "GID_x@@@2")
        await edge.settled()
        request = router_pb2.DeliverRequest(message=p2p(topic="q/p2p/GID_x@@@2"))
        async with asyncio.TaskGroup() as group:
            call = group.create_task(collect(stub.Deliver(request, timeout=30)))
            await until(lambda: bool(edge.receipt_ids))
            await edge.settled()
            assert not call.done()
            if way == "goodbye":
                edge.send(router_pb2.LinkRequest(goodbye=True))
            else:
                await stack.aclose()
            if way == "restarted":
                async with FakeEdge(mesh, "two", "another process").running():
                    assert (await call).outcome == NOT_KEPT
            assert (await call).outcome == NOT_KEPT


async def test_shard_that_dies_with_the_message_ends_the_call(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    mesh._settings = dataclasses.replace(mesh._settings, shard_count=1)
    await make_log(nats_server.url, "p")
    async with running(mesh) as (_, stub):
        shard = FakeEdge(mesh, "session-0", shard=router_pb2.SessionShard(index=0, count=1))
        request = router_pb2.DeliverRequest(message=p2p(clean_session=False))
        async with asyncio.TaskGroup() as group:
            async with shard.running():
                await shard.settled()
                call = group.create_task(collect(stub.Deliver(request, timeout=30)))
                await until(lambda: bool(shard.receipt_ids))
                await shard.settled()
                assert not call.done()
            assert (await call).outcome == KEPT


@pytest.mark.parametrize(
    "changes",
    [
        {"topic": "p/a"},
        {"qos": 0},
        {"qos": 3},
        {"retain": True},
        {"instance_id": "nowhere"},
        {"topic": "nothing/p2p/GID_x@@@1"},
        {"payload": bytes(65_537)},
        {"message_id": ""},
    ],
)
async def test_deliver_refuses_what_is_no_p2p_message(mesh: Mesh, auth: FakeAuth, changes: dict[str, Any]) -> None:
    async with running(mesh) as (edge, stub):
        with pytest.raises(aio.AioRpcError) as error:
            await stub.Deliver(router_pb2.DeliverRequest(message=p2p(**changes)), timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert not edge.deliveries
