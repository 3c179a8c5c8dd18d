"""The backend queue as a backend application sees it: nats-py with the backend's user."""

from __future__ import annotations

import asyncio
from typing import Any

import nats
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import ServiceUnavailableError

from tests.support.mesh import Mesh
from tests.support.wait import WAIT_S


async def _read(url: str, stream: str, subject: str, count: int, seconds: float) -> list[Msg]:
    client = await nats.connect(url)
    try:
        js: JetStreamContext = client.jetstream()
        consumer = await js.pull_subscribe(
            subject,
            stream=stream,
            config=api.ConsumerConfig(
                ack_policy=api.AckPolicy.NONE, deliver_policy=api.DeliverPolicy.ALL, inactive_threshold=30
            ),
        )
        messages: list[Msg] = []
        deadline = asyncio.get_running_loop().time() + seconds
        while len(messages) < count and asyncio.get_running_loop().time() < deadline:
            try:
                messages += await consumer.fetch(count - len(messages), timeout=0.5)
            except TimeoutError:  # also that of nats-py, and the plain one that it lets through
                continue
            except ServiceUnavailableError:  # a new topic is in the backends' account within a second
                await asyncio.sleep(0.05)
        return messages
    finally:
        await client.close()


def read(mesh: Mesh, stream: str, subject: str, count: int, seconds: float = WAIT_S) -> list[Any]:
    """Return up to `count` messages of `subject`, from the first one on, waiting at most `seconds`."""
    return asyncio.run(_read(mesh.credentials["nats_url"], stream, subject, count, seconds))
