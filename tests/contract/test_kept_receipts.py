"""Receipts of kept P2P messages: a real router, a real session shard, an edge made of the stub."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.contract.test_persistent_sessions import CLIENT, INSTANCE, Mesh, connected, mesh, until
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio


async def deliver(mesh: Mesh, number: int, client_id: str = CLIENT, topic: str = "demo") -> str:
    """Send a message that is kept, and return the outcome by name."""
    message = router_pb2.PublishedMessage(
        instance_id=INSTANCE,
        topic=f"{topic}/p2p/{client_id}",
        payload=b"%d" % number,
        qos=1,
        message_id=f"r-{number}",
    )
    stub: Any = mesh.router
    answer = await stub.Deliver(router_pb2.DeliverRequest(message=message), timeout=20)
    return router_pb2.DeliveryOutcome.Name(answer.outcome).removeprefix("DELIVERY_OUTCOME_")


@pytest.mark.parametrize("clean_session", [True, False])
async def test_receipt_follows_the_receiver(mesh: Mesh, *, clean_session: bool) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        assert await deliver(mesh, 1) == "OFFLINE_KEPT"
        channel_id = await connected(edge, clean_session=clean_session)
        await until(lambda: edge.payloads(channel_id) == [b"1"])
        assert await deliver(mesh, 2) == "ACKNOWLEDGED"
        edge.acknowledges = False
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(deliver(mesh, 3))
            await until(lambda: edge.payloads(channel_id) == [b"1", b"2", b"3"])
            assert not waiting.done()
            edge.disconnect(channel_id)
            assert await waiting == "OFFLINE_KEPT"
        edge.acknowledges = True
        again = await connected(edge, clean_session=clean_session)
        await until(lambda: edge.payloads(again) == [b"3"])


async def test_first_message_of_a_new_log_gets_a_receipt(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        await connected(edge)
        await mesh.create_log("demo2")  # the shard reads it first, since it has to know which stream it is
        assert await deliver(mesh, 1, topic="demo2") == "ACKNOWLEDGED"
        assert await deliver(mesh, 2, topic="demo2") == "ACKNOWLEDGED"
