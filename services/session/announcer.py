"""Announces messages that sessions lost, in the stream `DROPPED_<instance>`: one event for up to 100 of them.

The body is JSON: `reason`, `time` (milliseconds since 1970) and `messages`, each with `clientId`, `topic`, `log` (the
stream) and `sequence`. The topic is the whole one when the log still has the message, else the parent topic.
When very many wait, further ones of a client, log and reason become one entry with their `count`, the first `sequence`
and the `lastSequence`, so that what waits is bounded by the sessions and nothing goes unannounced.
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
from services.session.domain.losses import Dropped
from services.session.domain.positions import sequence_of
from services.session.log_reader import LogReader, StoredMessage

logger = logging.getLogger(__name__)

MAX_WAITING = 100_000
"""Losses that wait to be announced one by one."""
BATCH = 100
"""Losses in one event."""
MAX_BACKLOG_BYTES = 4 << 20
"""Events on their way above which further ones wait."""
PAUSE_S = 1.0
"""How often is looked for losses; they gather meanwhile."""
TOPIC_S = 2.0
"""How long topics are waited for."""
FINISH_S = 3.0
"""How long the end of the service waits for announcements."""
RETENTION_S = 3 * 86_400.0

DROPPED = Counter("session_dropped_messages", "Messages that sessions lost.", ["reason"])


class Lost:
    """Losses of one client in one log, for one reason."""

    __slots__ = ("client_id", "count", "instance_id", "last", "log", "reason", "sequence", "topic")

    def __init__(self, dropped: Dropped, log: str) -> None:
        self.instance_id = dropped.instance_id
        self.client_id = dropped.client_id
        self.reason = dropped.reason
        self.log = log
        self.topic = dropped.topic  # empty: to be looked up
        self.count = 1
        self.sequence = self.last = sequence_of(dropped.delivery_id)

    @property
    def place(self) -> tuple[str, int]:
        """Log and sequence of the first."""
        return self.log, self.sequence

    def entry(self, topic: str) -> dict[str, str | int]:
        """Return what the announcement says."""
        entry: dict[str, str | int] = {
            "clientId": self.client_id,
            "topic": self.topic or topic,
            "log": self.log,
            "sequence": self.sequence,
        }
        if self.count > 1:
            entry |= {"count": self.count, "lastSequence": self.last}
        return entry


class Announcer:
    """Writes what was dropped. Owned by one event loop; `run` is its pump."""

    def __init__(self, *, js: JetStreamContext, writer: LogWriter, reader: LogReader, logs: Logs, clock: Clock) -> None:
        self._js = js
        self._writer = writer
        self._reader = reader
        self._logs = logs
        self._clock = clock
        self._waiting: deque[Lost] = deque()
        self._gathered: dict[tuple[str, str, str, str], Lost] = {}  # behind them; by instance, client, log and reason
        self._streams: set[str] = set()  # instances whose stream was there in this round

    def add(self, dropped: list[Dropped]) -> None:
        """Count losses, and have them announced."""
        for each in dropped:
            DROPPED.labels(each.reason).inc()
            log = self._logs.of(each.delivery_id)
            lost = Lost(each, log.name if log is not None else "")  # now: a log that is made anew gets another index
            if len(self._waiting) < MAX_WAITING and not self._gathered:
                self._waiting.append(lost)
                continue
            known = self._gathered.setdefault((lost.instance_id, lost.client_id, lost.log, lost.reason), lost)
            if known is not lost:
                known.count += 1
                known.last = lost.sequence

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            await asyncio.sleep(PAUSE_S)
            self._streams.clear()  # one that was deleted with its instance would hold up the writer
            try:
                while (self._waiting or self._gathered) and self._writer.backlog_bytes < MAX_BACKLOG_BYTES:
                    await self._announce_next()
            except UnavailableError as error:
                logger.warning("losses can't be announced, trying on", extra={"error": str(error)})
                self._waiting.rotate(-BATCH)  # those of other instances have their turn

    async def finish(self) -> None:
        """Announce what waits, and have it stored, as far as `FINISH_S` goes."""
        try:
            async with asyncio.timeout(FINISH_S):
                while self._waiting or self._gathered:
                    await self._announce_next()
                while self._writer.backlog_messages:  # noqa: ASYNC110 - polled only when stopping
                    await asyncio.sleep(0.01)
        except (TimeoutError, UnavailableError) as error:
            count = len(self._waiting) + len(self._gathered)
            logger.warning("not every loss is announced", extra={"waiting": count, "error": repr(error)})

    async def _announce_next(self) -> None:
        """Announce the next losses.

        Raises:
            UnavailableError: NATS does not answer; they still wait.
        """
        if not self._waiting:
            self._waiting.extend(self._gathered.values())
            self._gathered.clear()
        first = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
        for instance_id in {each.instance_id for each in first} - self._streams:
            await jetstream.ensure_stream(self._js, stream_config(instance_id))
            self._streams.add(instance_id)
        topics = await self._topics(first)
        for _ in first:
            self._waiting.popleft()
        first.sort(key=lambda each: (each.instance_id, each.reason))
        for (instance_id, reason), group in groupby(first, lambda each: (each.instance_id, each.reason)):
            self._announce(instance_id, reason, list(group), topics)

    def _announce(self, instance_id: str, reason: str, group: list[Lost], topics: dict[tuple[str, int], str]) -> None:
        messages = [each.entry(topics.get(each.place, "")) for each in group]
        body = {"reason": reason, "time": self._clock.now_ms(), "messages": messages}
        payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        self._writer.write(subjects.dropped_subject(instance_id), payload, {"Tag": reason}, None)

    async def _topics(self, losses: list[Lost]) -> dict[tuple[str, int], str]:
        """Return the topics of messages by log and sequence, as far as they are known."""
        topics: dict[tuple[str, int], str] = {}
        done = asyncio.Event()
        missing = {each.place for each in losses if each.log and not each.topic}
        for place in list(missing):
            log, sequence = place
            topics[place] = subjects.stream_names(log)[1] if log.startswith(subjects.LOG_STREAM) else ""

            def take(message: StoredMessage | None, place: tuple[str, int] = place) -> None:
                if message is not None:
                    topics[place] = stored.parse(message).topic
                missing.discard(place)
                if not missing:
                    done.set()

            self._reader.fetch(log, sequence, take)
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
