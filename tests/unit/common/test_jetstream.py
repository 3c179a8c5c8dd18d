"""Set-up of streams and buckets, against a cluster of real NATS servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.js import api

from services.common import jetstream
from services.common.errors import UnavailableError
from services.common.readiness import Readiness
from services.common.settings import Secret
from tests.support.nats import unique
from tests.support.nats_cluster import NatsCluster, running_cluster

pytestmark = pytest.mark.timeout(180)  # a cluster may take long to elect its leaders on a busy machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[NatsCluster]:
    """A cluster for these tests; streams and buckets have names of their own."""
    with running_cluster() as running:
        yield running


def config() -> api.StreamConfig:
    name = unique("S")
    return api.StreamConfig(name=name, subjects=[name])


def connected(cluster: NatsCluster, replicas: int) -> AbstractAsyncContextManager[Client]:
    return jetstream.connected(Secret(cluster.url), name="test", readiness=Readiness("nats"), replicas=replicas)


async def replicas_of(client: Client, stream: str) -> int | None:
    return (await client.jetstream().stream_info(stream)).config.num_replicas


@pytest.mark.asyncio
async def test_streams_and_buckets_get_the_replicas_of_the_client_and_keep_what_they_have(
    cluster: NatsCluster,
) -> None:
    made, stream, bucket = config(), config(), unique("b")
    async with connected(cluster, 1) as single, connected(cluster, 3) as safe:
        await jetstream.ensure_stream(single.jetstream(), made)
        await (await jetstream.ensure_bucket(single.jetstream(), bucket)).put("key", b"value")
        await single.jetstream().publish(str(made.name), b"first")
        names = str(made.name), f"KV_{bucket}"
        assert [await replicas_of(single, name) for name in names] == [1, 1]

        await jetstream.ensure_stream(safe.jetstream(), made)
        kv = await jetstream.ensure_bucket(safe.jetstream(), bucket)
        assert [await replicas_of(safe, name) for name in names] == [3, 3]
        assert (await kv.get("key")).value == b"value"
        assert (await safe.jetstream().stream_info(f"KV_{bucket}")).config.max_msgs_per_subject == 1

        await jetstream.ensure_stream(single.jetstream(), made.evolve(max_age=60))
        await jetstream.ensure_bucket(single.jetstream(), bucket)
        assert [await replicas_of(single, name) for name in names] == [3, 3]
        assert (await single.jetstream().stream_info(names[0])).config.max_age == 60

        await jetstream.ensure_stream(safe.jetstream(), stream)
        other = unique("b")
        await jetstream.ensure_bucket(safe.jetstream(), other)
        assert [await replicas_of(safe, name) for name in (str(stream.name), f"KV_{other}")] == [3, 3]


@pytest.mark.asyncio
async def test_a_stream_that_comes_late_gets_what_was_written_before(cluster: NatsCluster) -> None:
    late = config()
    async with connected(cluster, 1) as client, asyncio.TaskGroup() as group:
        is_taken = group.create_task(client.jetstream().publish(str(late.name), b"early", timeout=20))
        with pytest.raises(nats.errors.NoRespondersError):
            await Client.request(client, str(late.name), b"", timeout=20)  # as nats-py does it: nobody is there
        await jetstream.ensure_stream(client.jetstream(), late)
        assert (await is_taken).stream == late.name


@pytest.mark.asyncio
async def test_a_stream_that_never_comes_is_told(cluster: NatsCluster) -> None:
    async with connected(cluster, 1) as client:
        with pytest.raises(nats.js.errors.NoStreamResponseError):
            await client.jetstream().publish(unique("S"), b"", timeout=20)


@pytest.mark.asyncio
async def test_more_replicas_than_servers_leave_an_existing_stream_as_it_is(cluster: NatsCluster) -> None:
    made = config()
    async with connected(cluster, 1) as single, connected(cluster, 5) as too_many:
        await jetstream.ensure_stream(single.jetstream(), made)
        await jetstream.ensure_stream(too_many.jetstream(), made.evolve(max_age=60))
        info = await single.jetstream().stream_info(str(made.name))
        assert (info.config.num_replicas, info.config.max_age) == (1, 60)
        with pytest.raises(UnavailableError):
            await jetstream.ensure_stream(too_many.jetstream(), config())


@pytest.mark.asyncio
async def test_a_stream_of_three_replicas_goes_on_without_its_leader(cluster: NatsCluster) -> None:
    made = config()
    name = str(made.name)
    async with connected(cluster, 3) as client:
        js = client.jetstream()
        await jetstream.ensure_stream(js, made)
        first = await js.publish(name, b"first")
        await cluster.step_down(name)
        leader = await cluster.leader(name)
        await asyncio.to_thread(leader.kill)
        async with asyncio.timeout(60):
            while True:
                try:
                    second = await js.publish(name, b"second", timeout=1)
                except (nats.errors.Error, TimeoutError):
                    await asyncio.sleep(0.1)
                else:
                    assert second.seq > first.seq
                    break
        await asyncio.to_thread(leader.start)
        await cluster.wait_current(name)
