"""Announces messages that sessions lost, in the stream `DROPPED_<instance>`: one event for up to 100 of them.

The body is JSON: `reason`, `time` (milliseconds since 1970) and `messages`, each with `clientId`, `topic`, `log` (the
stream) and `sequence`. The topic is the whole one when the log still has the message, else the parent topic.
Announcements wait within bounds; what finds no room is counted and not announced.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from itertools import groupby

from nats.js import JetStreamContext, api
from prometheus_client import Counter

from services.common import jetstream, subjects
from services.common.errors import UnavailableError
from services.common.log_writer import LogWriter
from services.session import stored
from services.session.clock import Clock
from services.session.domain.logs import Logs
from services.session.domain.positions import sequence_of
from services.session.domain.pump import Dropped
from services.session.log_reader import LogReader, StoredMessage

logger = logging.getLogger(__name__)

MAX_WAITING = 100_000
"""Losses that wait to be announced."""
BATCH = 100
"""Losses in one event."""
MAX_BACKLOG_BYTES = 4 << 20
"""Events on their way above which further ones wait."""
PAUSE_S = 1.0
"""How often is looked for losses; they gather meanwhile."""
TOPIC_S = 2.0
"""How long topics are waited for."""
RETENTION_S = 3 * 86_400.0

DROPPED = Counter("session_dropped_messages", "Messages that sessions lost.", ["reason"])
UNANNOUNCED = Counter("session_unannounced_messages", "Lost messages whose announcement found no room.")


class Announcer:
    """Writes what was dropped. Owned by one event loop; `run` is its pump."""

    def __init__(self, *, js: JetStreamContext, writer: LogWriter, reader: LogReader, logs: Logs, clock: Clock) -> None:
        self._js = js
        self._writer = writer
        self._reader = reader
        self._logs = logs
        self._clock = clock
        self._waiting: deque[Dropped] = deque()
        self._streams: set[str] = set()  # instances whose stream was there in this round

    def add(self, dropped: list[Dropped]) -> None:
        """Count losses, and have them announced."""
        for each in dropped:
            DROPPED.labels(each.reason).inc()
        room = max(0, MAX_WAITING - len(self._waiting))
        self._waiting.extend(dropped[:room])
        if len(dropped) > room:
            UNANNOUNCED.inc(len(dropped) - room)

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            await asyncio.sleep(PAUSE_S)
            self._streams.clear()  # one that was deleted with its instance would hold up the writer
            try:
                while self._waiting and self._writer.backlog_bytes < MAX_BACKLOG_BYTES:
                    await self._announce_next()
            except UnavailableError as error:
                logger.warning("losses can't be announced, trying on", extra={"error": str(error)})
                self._waiting.rotate(-BATCH)  # those of other instances have their turn

    async def _announce_next(self) -> None:
        """Announce the next losses.

        Raises:
            UnavailableError: NATS does not answer; they still wait.
        """
        first = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
        for instance_id in {each.instance_id for each in first} - self._streams:
            await jetstream.ensure_stream(self._js, stream_config(instance_id))
            self._streams.add(instance_id)
        for _ in first:
            self._waiting.popleft()
        topics = await self._topics(first)
        first.sort(key=lambda each: (each.instance_id, each.reason))
        for (instance_id, reason), group in groupby(first, lambda each: (each.instance_id, each.reason)):
            self._announce(instance_id, reason, list(group), topics)

    def _announce(self, instance_id: str, reason: str, group: list[Dropped], topics: dict[int, str]) -> None:
        messages = []
        for each in group:
            log = self._logs.of(each.delivery_id)
            messages.append(
                {
                    "clientId": each.client_id,
                    "topic": topics.get(each.delivery_id, ""),
                    "log": log.name if log is not None else "",
                    "sequence": sequence_of(each.delivery_id),
                }
            )
        body = {"reason": reason, "time": self._clock.now_ms(), "messages": messages}
        payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        self._writer.write(subjects.dropped_subject(instance_id), payload, {"Tag": reason}, None)

    async def _topics(self, dropped: list[Dropped]) -> dict[int, str]:
        """Return the topics of messages, as far as they are known."""
        topics: dict[int, str] = {}
        done = asyncio.Event()
        missing = {each.delivery_id for each in dropped}
        for delivery_id in list(missing):
            log = self._logs.of(delivery_id)
            if log is None:
                missing.discard(delivery_id)
                continue
            names = subjects.stream_names(log.name)
            topics[delivery_id] = names[1] if log.name.startswith(subjects.LOG_STREAM) else ""

            def take(message: StoredMessage | None, delivery_id: int = delivery_id) -> None:
                if message is not None:
                    topics[delivery_id] = stored.parse(message).topic
                missing.discard(delivery_id)
                if not missing:
                    done.set()

            self._reader.fetch(log.name, sequence_of(delivery_id), take)
        if missing:
            try:
                async with asyncio.timeout(TOPIC_S):
                    await done.wait()
            except TimeoutError:
                pass
        return topics


def stream_config(instance_id: str) -> api.StreamConfig:
    """Return the stream of the announcements of an instance."""
    return api.StreamConfig(
        name=subjects.dropped_stream(instance_id),
        subjects=[subjects.dropped_subject(instance_id)],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        max_age=RETENTION_S,
    )
