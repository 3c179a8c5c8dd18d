"""Several routers: each has the parent topics that the hash gives it, with their logs and retained messages."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from services.common.errors import InvalidFieldError
from services.common.grpc_client import channel
from services.common.sharding import router_of
from tests.contract.test_router_publish import caller_of, message
from tests.contract.test_router_retained import AskingEdge
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer
from tests.support.router import (
    LOGGED,
    RETAIN,
    TOKEN,
    Mesh,
    batch,
    connected,
    has_violated,
    make_log,
    raw_call,
    read_log,
    until,
)

pytestmark = pytest.mark.asyncio

COUNT = 2
TOPICS = [next(name for name in "abcdefgh" if router_of("i", name, COUNT) == index) for index in range(COUNT)]
"""A parent topic of each router."""


@pytest.fixture
def meshes(nats_server: NatsServer) -> Iterator[list[Mesh]]:
    with tempfile.TemporaryDirectory(prefix="weimq-") as directory:
        yield [
            Mesh(
                f"unix:{Path(directory, str(index))}",
                nats_server.url,
                edge_grace_s=1.0,
                index=index,
                count=COUNT,
                auth=f"unix:{Path(directory, 'auth')}",
            )
            for index in range(COUNT)
        ]


@contextlib.asynccontextmanager
async def routers(meshes: list[Mesh]) -> AsyncGenerator[list[AskingEdge]]:
    """Run all routers, and yield the links of one edge to them."""
    async with contextlib.AsyncExitStack() as stack:
        edges = []
        for mesh in meshes:
            await stack.enter_async_context(mesh.router())
            edges.append(AskingEdge(mesh, "one"))
            await stack.enter_async_context(edges[-1].running())
        yield edges


async def test_each_router_has_the_logs_and_retained_messages_of_its_topics(
    meshes: list[Mesh], nats_server: NatsServer
) -> None:
    for topic in TOPICS:
        await make_log(nats_server.url, topic)
    async with routers(meshes) as edges:
        for edge, topic in zip(edges, TOPICS, strict=True):
            edge.subscribe(1, "#")
            await edge.settled()
            edge.publish(f"{topic}/1", topic.encode(), topic_flags=LOGGED, flags=RETAIN)
            await edge.all_acknowledged()
            assert edge.payloads == [topic.encode()]
            assert [each.data for each in await read_log(nats_server.url, topic)] == [topic.encode()]
    async with routers(meshes) as edges:
        for edge, topic in zip(edges, TOPICS, strict=True):
            assert await edge.retained("+/#") == [(f"{topic}/1", topic.encode(), 1)]


async def test_message_of_another_router_is_refused(meshes: list[Mesh]) -> None:
    auth = FakeAuth()  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
    auth.put_instance("i")
    for topic in TOPICS:
        auth.put_topic("i", topic, logged=False)
    async with (
        auth.serving(meshes[0]._settings.auth),
        meshes[0].router(),
        channel(meshes[0].address, TOKEN) as opened,
        caller_of(meshes[0]) as caller,
    ):
        await meshes[0].serving()
        await caller.knows()
        call = await raw_call(opened)
        await call.write(batch(topics=[TOPICS[1]]))
        await has_violated(call)
        await caller.publish(message(topic=TOPICS[0]))
        with pytest.raises(InvalidFieldError, match="another router"):
            await caller.publish(message(topic=TOPICS[1]))


async def test_each_router_waits_for_the_edges_that_it_knew(meshes: list[Mesh], nats_server: NatsServer) -> None:
    async with routers(meshes) as edges:
        for mesh, edge in zip(meshes, edges, strict=True):
            await mesh.serving()
            await edge.settled()
        async with connected(nats_server.url) as client:
            bucket = await client.jetstream().key_value("router_edges")
            keys: set[str] = set()
            watcher = await bucket.watchall()
            async for change in watcher:
                if change is not None:
                    keys.add(change.key)
                if keys == {"0.one", "1.one"}:
                    break
    async with meshes[0].router():
        assert not await meshes[0].is_serving()
        async with AskingEdge(meshes[0], "one").running() as again:
            await again.settled()
            await meshes[0].serving()
            again.publish(TOPICS[0], b"")
            await until(lambda: again.acknowledged == [1])
