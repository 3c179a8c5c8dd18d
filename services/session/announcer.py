"""Announces messages that sessions lost, in the stream `DROPPED_<instance>`: one event for up to 100 of them.

The body is JSON: `reason`, `time` (milliseconds since 1970) and `messages`, each with `clientId`, `topic`, `log` (the
stream) and `sequence`. The topic is the whole one when the log still has the message, else the parent topic.
Of very many that wait, those of a client, log and reason are one entry with their `count`, the first `sequence` and the
`lastSequence`. An event has an id that outlives the process (`domain/losses.py`), so that repeats are dropped.
"""

from __future__ import annotations

import asyncio
import json
import logging

from nats.js import JetStreamContext, api

from services.common import jetstream, subjects, ticks
from services.common.errors import UnavailableError
from services.common.log_reader import LogReader, StoredMessage
from services.common.log_wire import MESSAGE_ID
from services.common.log_writer import LogWriter
from services.session import stored
from services.session.clock import Clock
from services.session.domain.losses import Loss, Losses

logger = logging.getLogger(__name__)

MAX_BACKLOG_BYTES = 4 << 20
"""Events on their way above which further ones wait."""
PAUSE_S = 1.0
"""How often is looked for losses; they gather meanwhile."""
TOPIC_S = 2.0
"""How long topics are waited for."""
FINISH_S = 3.0
"""How long the end of the service waits for announcements."""
RETENTION_S = 3 * 86_400.0
DUPLICATE_WINDOW_S = 3_600.0
"""How long after an announcement the start of a shard that was killed right then may come, and does not repeat it."""


class Announcer:
    """Writes events of losses. Owned by one event loop; `run` is its pump.

    Args:
        js: of NATS.
        writer: tells when an event is stored, with the event as token.
        reader: finds topics.
        losses: to be announced.
        clock: tells the time.
    """

    def __init__(
        self, *, js: JetStreamContext, writer: LogWriter, reader: LogReader, losses: Losses, clock: Clock
    ) -> None:
        self._js = js
        self._writer = writer
        self._reader = reader
        self._losses = losses
        self._clock = clock
        self._streams: set[str] = set()  # instances whose stream was there in this round

    async def run(self) -> None:
        """Announce until cancelled."""
        ready = self._losses.ready
        while True:
            await ticks.tick(PAUSE_S)
            self._streams.clear()  # one that was deleted with its instance would hold up the writer
            try:
                while ready and self._writer.backlog_bytes < MAX_BACKLOG_BYTES:
                    await self._announce_next()
            except UnavailableError as error:
                logger.warning("losses can't be announced, trying on", extra={"error": str(error)})
                ready.rotate(-1)  # those of other instances have their turn

    async def finish(self) -> None:
        """Announce what may be announced, and have all that was written stored, as far as `FINISH_S` goes."""
        try:
            async with asyncio.timeout(FINISH_S):
                while self._losses.ready:
                    await self._announce_next()
                while self._writer.backlog_messages:  # noqa: ASYNC110 - polled only when stopping
                    await asyncio.sleep(0.01)
        except (TimeoutError, UnavailableError) as error:
            extra = {"waiting": self._losses.count, "error": repr(error)}
            logger.warning("not every loss is announced, the next start does it", extra=extra)

    async def _announce_next(self) -> None:
        """Announce the next event.

        Raises:
            UnavailableError: NATS does not answer; it still waits.
        """
        event = self._losses.ready[0]
        instance_id, reason = event.losses[0].instance_id, event.losses[0].reason
        if instance_id not in self._streams:
            await jetstream.ensure_stream(self._js, stream_config(instance_id))
            self._streams.add(instance_id)
        topics = await self._topics(event.losses)
        self._losses.ready.remove(event)
        messages = [each.entry(topics.get(each.place, "")) for each in event.losses]
        body = {"reason": reason, "time": self._clock.now_ms(), "messages": messages}
        payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {MESSAGE_ID: event.event_id, "Tag": reason}
        self._writer.write(subjects.dropped_subject(instance_id), payload, headers, event)

    async def _topics(self, losses: list[Loss]) -> dict[tuple[str, int], str]:
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
        duplicate_window=DUPLICATE_WINDOW_S,
    )
