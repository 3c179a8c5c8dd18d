"""The streams of retained messages: their configuration, and reading them at start."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api

from services.common import subjects
from services.common.errors import UnavailableError
from services.common.jetstream import DEPENDENCY as NATS

FETCH_S = 5.0
FETCH_BYTES = 16 << 20
MAX_FETCH_MESSAGES = 1_024
"""What is read at a time: so many messages, fewer when they are large."""
PENDING_BYTES = 512 << 20
"""Bound of what nats-py holds, for a stream whose large messages come all in one batch."""

_GONE = ("404", "408")


def stream_config(instance_id: str) -> api.StreamConfig:
    """Return the configuration of the stream of an instance."""
    return api.StreamConfig(
        name=subjects.retained_stream(instance_id),
        subjects=[subjects.retained_filter(instance_id)],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_msgs_per_subject=1,
        allow_rollup_hdrs=True,
        allow_msg_ttl=True,
        allow_direct=True,
    )


async def read_stream(client: Client, name: str, take: Callable[[Msg], None]) -> None:
    """Read all messages of a stream.

    `PullSubscription.fetch` takes some 60 us for each message, three times as long, and edges wait for it.

    Args:
        client: connected to NATS.
        name: of the stream.
        take: called with each message, in order; from the beginning when this is called again.

    Raises:
        UnavailableError: JetStream does not answer as it should.
        TimeoutError: it does not answer.
        nats.errors.Error: likewise.
    """
    js = client.jetstream()
    state = (await js.stream_info(name)).state
    if not state.messages:
        return
    config = api.ConsumerConfig(
        name=client._nuid.next().decode(),  # noqa: SLF001 - as nats-py names its consumers
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=60.0,
        mem_storage=True,
        num_replicas=1,
    )
    consumer = await js.add_consumer(name, config)
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{name}.{consumer.name}"
    most = min(max(FETCH_BYTES // (state.bytes // state.messages + 1), 1), MAX_FETCH_MESSAGES)
    fetch = _Fetch(take)
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=fetch.on_message, pending_bytes_limit=PENDING_BYTES)
    try:
        pending = consumer.num_pending or 0
        while pending:
            count = fetch.begin(min(most, pending))
            await client.publish(subject, json.dumps({"batch": count, "no_wait": True}).encode(), reply=inbox)
            async with asyncio.timeout(FETCH_S):
                await fetch.ended.wait()
            pending = fetch.pending()
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()


class _Fetch:
    """One batch after the other."""

    def __init__(self, take: Callable[[Msg], None]) -> None:
        self._take = take
        self._missing = 0
        self._last: Msg | None = None
        self._fault = ""
        self.ended = asyncio.Event()

    def begin(self, count: int) -> int:
        self._missing = count
        self._last = None
        self.ended.clear()
        return count

    def pending(self) -> int:
        """Return how many messages follow the batch."""
        if self._fault:
            raise UnavailableError(f"retained messages: {self._fault}", dependency=NATS)
        if self._last is None:  # deletions that were counted are gone by now, and nothing follows
            return 0
        return self._last.metadata.num_pending

    async def on_message(self, message: Msg) -> None:
        status = message.headers.get("Status") if message.headers else None
        if status is not None:
            if status not in _GONE:
                self._fault = f"status {status}"
            self.ended.set()
            return
        self._take(message)
        self._last = message
        self._missing -= 1
        if self._missing == 0:
            self.ended.set()
