"""The JetStream streams of instances and parent topics."""

from __future__ import annotations

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api

from services.auth.domain.records import Instance, Topic
from services.common import jetstream, subjects
from services.common.errors import UnavailableError

EVENTS_MAX_AGE_S = 3 * 86_400
EVENTS_DUPLICATE_WINDOW_S = 600
LOG_DUPLICATE_WINDOW_S = 120
ORDERED_LOG_DUPLICATE_WINDOW_S = 600
"""How long a log knows its message ids: a message whose acknowledgement was lost in a failure of JetStream that took
longer is in the log twice. NATS keeps some 150 bytes of memory for each message of that time, so the time is long only
where repeats would break a promise."""


class Streams:
    """Makes and deletes streams. Owned by one event loop.

    Args:
        client: connected to NATS.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=2)

    @property
    def is_connected(self) -> bool:
        """Whether NATS is connected."""
        return self._client.is_connected

    async def ensure_events(self, instance: Instance) -> None:
        """Make the stream of an instance's lifecycle events. Idempotent.

        Raises:
            UnavailableError: NATS does not answer.
        """
        config = api.StreamConfig(
            name=subjects.event_stream(instance.instance_id),
            subjects=[subjects.event_filter(instance.instance_id)],
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_age=EVENTS_MAX_AGE_S,
            duplicate_window=EVENTS_DUPLICATE_WINDOW_S,
        )
        await self._ensure(config)

    async def ensure_log(self, topic: Topic) -> None:
        """Make the log of a parent topic, when it has one. Idempotent.

        Raises:
            UnavailableError: NATS does not answer.
        """
        if not topic.logged:
            return
        config = api.StreamConfig(
            name=subjects.log_stream(topic.instance_id, topic.topic),
            subjects=subjects.log_filter(topic.instance_id, topic.topic),
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_age=topic.retention_s,
            # JetStream refuses a window longer than the age.
            duplicate_window=min(
                ORDERED_LOG_DUPLICATE_WINDOW_S if topic.ordered else LOG_DUPLICATE_WINDOW_S, topic.retention_s
            ),
            allow_direct=True,
        )
        await self._ensure(config)

    async def delete_log(self, topic: Topic) -> None:
        """Delete the log of a parent topic with every message. Idempotent.

        Raises:
            UnavailableError: NATS does not answer.
        """
        await jetstream.delete_stream(self._js, subjects.log_stream(topic.instance_id, topic.topic))

    async def delete_of_instance(self, instance_id: str) -> None:
        """Delete the streams of an instance that belong to no topic, and its persistent sessions. Idempotent.

        Raises:
            UnavailableError: NATS does not answer.
        """
        await jetstream.delete_stream(self._js, subjects.event_stream(instance_id))
        await jetstream.delete_stream(self._js, subjects.retained_stream(instance_id))
        await jetstream.delete_stream(self._js, subjects.dropped_stream(instance_id))
        for name in await jetstream.stream_names(self._client, subjects.kept_filter(instance_id)):
            if name.startswith(subjects.KEPT_STREAM):
                await jetstream.delete_stream(self._js, name)
        await self._delete_sessions(instance_id)

    async def _delete_sessions(self, instance_id: str) -> None:
        """Delete the entries of the bucket, then leave the mark by which session shards forget what they hold."""
        try:
            await self._js.purge_stream(subjects.SESSIONS_STREAM, subject=subjects.sessions_filter(instance_id))
            await self._js.publish(subjects.sessions_mark(instance_id), b"", headers={"KV-Operation": "DEL"})
        except nats.js.errors.NotFoundError:
            pass  # no session service was ever there
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"sessions of {instance_id}: {error!r}", dependency=jetstream.DEPENDENCY) from error

    async def _ensure(self, config: api.StreamConfig) -> None:
        # nats-py would hold the request and send it after the reconnection, long after the caller was refused.
        if not self._client.is_connected:
            raise UnavailableError("NATS is not connected", dependency=jetstream.DEPENDENCY)
        await jetstream.ensure_stream(self._js, config)
