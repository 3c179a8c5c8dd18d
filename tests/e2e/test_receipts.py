"""`RouterService.Deliver` and `PublishStream` as another system calls them, with real devices."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.common.grpc_client import call_metadata, channel
from services.common.settings import Secret
from services.edge.mqtt import packets
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.raw import RawClient
from weimq.router.v1 import router_pb2, router_pb2_grpc

pytestmark = pytest.mark.e2e

DEADLINE_S = 25.0


def call(mesh: Mesh, work: Callable[[Any, Secret], Awaitable[Any]]) -> Any:
    """Return what `work` returns, given a stub of the router and the cluster token."""
    address = json.loads((mesh.data / "run.json").read_text())["endpoints"]["router"]
    token = Secret((mesh.data / "secrets" / "cluster.token").read_text().strip())

    async def run() -> Any:
        async with channel(address, token) as opened:
            return await work(router_pb2_grpc.RouterServiceStub(opened), token)

    return asyncio.run(run())


def message(mesh: Mesh, topic: str, payload: bytes, **fields: Any) -> router_pb2.PublishedMessage:
    return router_pb2.PublishedMessage(
        instance_id=mesh.instance,
        topic=topic,
        payload=payload,
        message_id=secrets.token_hex(8),
        **{"qos": 1, "clean_session": True, **fields},
    )


def deliver(mesh: Mesh, client_id: str, payload: bytes, **fields: Any) -> str:
    """Send to a client and return the outcome by name."""
    request = router_pb2.DeliverRequest(message=message(mesh, f"{mesh.topic}/p2p/{client_id}", payload, **fields))

    async def work(stub: Any, _token: Secret) -> Any:
        return await stub.Deliver(request, timeout=DEADLINE_S)

    name = router_pb2.DeliveryOutcome.Name(call(mesh, work).outcome)
    return name.removeprefix("DELIVERY_OUTCOME_")


@pytest.mark.parametrize("edge", [0, 1])
@pytest.mark.parametrize("qos", [1, 2])
def test_device_that_is_online_acknowledges(mesh: Mesh, qos: int, edge: int) -> None:
    with Client(mesh, edge=edge) as client:
        assert deliver(mesh, client.client_id, b"now", qos=qos) == "ACKNOWLEDGED"
        assert client.wait_messages(1) == [(f"{mesh.topic}/p2p/{client.client_id}", b"now", qos)]


@pytest.mark.parametrize("clean_session", [True, False])
def test_kept_message_is_acknowledged_by_a_device_that_is_online(mesh: Mesh, *, clean_session: bool) -> None:
    with Client(mesh, clean_session=clean_session) as client:
        assert deliver(mesh, client.client_id, b"kept", clean_session=False) == "ACKNOWLEDGED"
        assert client.wait_messages(1)[0][1] == b"kept"


def test_device_that_is_offline(mesh: Mesh) -> None:
    client_id = mesh.client_id(secrets.token_hex(4))
    assert deliver(mesh, client_id, b"lost") == "OFFLINE_NOT_KEPT"
    assert deliver(mesh, client_id, b"waits", clean_session=False) == "OFFLINE_KEPT"
    with Client(mesh, client_id=client_id) as client:
        assert client.wait_messages(1)[0][1] == b"waits"


def test_stream_of_batches_reaches_subscribers_in_order(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    batches = [[message(mesh, topic, b"%d" % (batch * 50 + n)) for n in range(50)] for batch in range(20)]

    async def work(stub: Any, token: Secret) -> Any:
        stream = stub.PublishStream(metadata=call_metadata(token))

        async def write() -> None:
            for batch in batches:
                await stream.write(router_pb2.PublishStreamRequest(messages=batch))
            await stream.done_writing()

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            return [answer async for answer in stream]

    with Client(mesh) as client:
        client.subscribe(topic, 1)
        answers = call(mesh, work)
        assert [len(answer.refusals) for answer in answers] == [0] * 20
        assert [int(payload) for _, payload, _ in client.wait_messages(1_000)] == list(range(1_000))


@pytest.mark.parametrize("kept", [False, True])
def test_process_that_is_killed_with_the_message_ends_the_call(mesh: Mesh, *, kept: bool) -> None:
    mesh.wait_healthy()
    with RawClient(mesh, edge=1) as device, ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        outcome = pool.submit(deliver, mesh, device.client_id, b"never acknowledged", clean_session=not kept)
        assert isinstance(device.receive(), packets.Publish)
        mesh.kill("session" if kept else "edge-1")
        assert outcome.result(30) == ("OFFLINE_KEPT" if kept else "OFFLINE_NOT_KEPT")
        assert time.monotonic() - began < DEADLINE_S - 2
    mesh.wait_healthy()
