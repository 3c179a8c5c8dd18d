"""What `weimq backend follow` knows of the topics, next to a real auth service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from services.cli.backend_topics import TopicWatch
from services.common.runtime import background
from tests.support.auth import AuthService, running_auth
from tests.support.nats import NatsServer
from tests.support.wait import eventually
from weimq.auth.v1 import resource_pb2

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def auth(nats_server: NatsServer) -> AsyncGenerator[AuthService]:
    async with running_auth(nats_server.url) as running:
        yield running


async def test_logged_topics_come_and_go(auth: AuthService) -> None:
    instance = "instance"
    await auth.create_instance(instance)

    async def make(topic: str, *, logged: bool) -> None:
        made = resource_pb2.Topic(instance_id=instance, topic=topic, logged=logged)
        await auth.resources.CreateTopic(resource_pb2.CreateTopicRequest(topic=made))

    await make("before", logged=True)
    watch = TopicWatch()
    async with background(watch.run(auth.channel)):
        async with asyncio.timeout(20):
            await watch.changed.wait()
        assert watch.logged[instance] == {"before"}
        await make("unlogged", logged=False)
        watch.changed.clear()
        await make("after", logged=True)
        await eventually(lambda: watch.logged[instance] == {"before", "after"})
        assert watch.changed.is_set()
        await auth.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id=instance, topic="before"))
        await eventually(lambda: watch.logged[instance] == {"after"})
        await auth.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=instance, force=True))
        await eventually(lambda: instance not in watch.logged)


async def test_a_silent_auth_ends_the_watch(auth: AuthService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.backend_topics.SILENCE_S", 0.0)
    async with asyncio.timeout(20):
        await TopicWatch().run(auth.channel)
