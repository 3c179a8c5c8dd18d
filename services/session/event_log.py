"""Lifecycle events on their way into JetStream.

Events of an instance go to the stream `EVENTS_<instance>`, in order, retried for ever (`LogWriter`). The log knows for
each instance what was written and stored, which tells a checkpoint the sequence that it accounts for. A stream that
does not exist is created, also when it was deleted while events wait for it: an edge must not wait for ever.

Bounded by the links: an edge has at most its window of frames whose events are not stored. Ends of lost edges'
connections, which no link bounds, are produced only while `has_room`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Protocol

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api

from services.common import jetstream, log_health, subjects
from services.common.errors import UnavailableError
from services.common.log_writer import LogWriter
from services.common.readiness import Readiness
from services.session.domain.events import Event, group_of

logger = logging.getLogger(__name__)

ROOM_BYTES = 16 << 20
"""Backlog above which ends of lost edges' connections wait."""
LOOK_S = 2.0
"""How often instances whose events are not stored are looked at."""
RETENTION_S = 3 * 86_400.0
DUPLICATE_WINDOW_S = 600.0


class Waiter(Protocol):
    """What waits for events to be stored."""

    def on_stored(self) -> None:
        """Note that one more event is stored."""


class _Mark:
    """A point in the events of an instance."""

    __slots__ = ("reached", "sequence", "written")

    def __init__(self, written: int) -> None:
        self.written = written
        self.sequence = 0
        self.reached = asyncio.Event()


class InstanceLog:
    """How far the events of one instance are."""

    __slots__ = ("instance_id", "looked_at", "mark", "sequence", "stored", "written")

    def __init__(self, instance_id: str, sequence: int) -> None:
        self.instance_id = instance_id
        self.sequence = sequence  # in the stream, of the last event stored
        self.written = 0  # events, by this process
        self.stored = 0  # of those
        self.looked_at = 0  # `stored` when it was looked at last
        self.mark: _Mark | None = None

    def on_stored(self, sequence: int) -> None:
        """Note that the next event is stored."""
        self.stored += 1
        # The sequence of a repeat is that of the first time.
        self.sequence = max(self.sequence, sequence)
        mark = self.mark
        if mark is not None and mark.written == self.stored:
            mark.sequence = self.sequence
            mark.reached.set()

    async def accounted_sequence(self) -> int:
        """Wait until what is written now is stored, and return the sequence of the last of it; one caller at a time.

        Takes its mark before it waits for the first time.
        """
        if self.stored == self.written:
            return self.sequence
        mark = self.mark = _Mark(self.written)
        try:
            await mark.reached.wait()
        finally:
            self.mark = None
        return mark.sequence


class _Token:
    """What LogWriter hands back with the acknowledgement of an event."""

    __slots__ = ("log", "waiter")

    def __init__(self, log: InstanceLog, waiter: Waiter | None) -> None:
        self.log = log
        self.waiter = waiter


def stream_config(instance_id: str) -> api.StreamConfig:
    """Return the stream of an instance's events."""
    return api.StreamConfig(
        name=subjects.event_stream(instance_id),
        subjects=[subjects.event_filter(instance_id)],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        max_age=RETENTION_S,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


class EventLog:
    """Writes events to the streams of their instances. Owned by one event loop; `run` is its pump."""

    def __init__(self, client: Client, js: JetStreamContext) -> None:
        self._js = js
        self._writer = LogWriter(client, stored=self._stored, failed=self._failed)
        self._logs: dict[str, InstanceLog] = {}
        self._unsure: set[str] = set()  # instances whose stream may not exist
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def has_room(self) -> bool:
        """Whether events that no link bounds may be written."""
        return self._writer.backlog_bytes < ROOM_BYTES

    @property
    def instances(self) -> list[str]:
        """Instances with a stream."""
        return list(self._logs)

    def restore(self, instance_id: str, sequence: int) -> None:
        """Note that the stream of an instance exists, and how far it goes."""
        self._logs[instance_id] = InstanceLog(instance_id, sequence)

    def of(self, instance_id: str) -> InstanceLog:
        """Return how far the events of an instance are."""
        return self._logs[instance_id]

    def write(self, event: Event, waiter: Waiter | None) -> None:
        """Have an event stored; `waiter.on_stored` is called when it is."""
        log = self._logs.get(event.instance_id)
        if log is None:
            log = self._logs[event.instance_id] = InstanceLog(event.instance_id, 0)
            self._unsure.add(event.instance_id)
            self._wake.set()
        log.written += 1
        self._drained.clear()
        headers = {"Nats-Msg-Id": f"{event.channel_id}-{event.tag}", "Tag": event.tag, "Edge": event.edge}
        subject = subjects.event_subject(event.instance_id, group_of(event.client_id), event.tag)
        self._writer.write(subject, event.body(), headers, _Token(log, waiter))

    def watch(self, readiness: Readiness) -> Coroutine[object, object, None]:
        """Keep `readiness` informed whether events are stored, until cancelled."""
        return log_health.watch(self._writer, readiness)

    async def drained(self) -> None:
        """Wait until everything is stored."""
        await self._drained.wait()

    async def run(self) -> None:
        """Store what is written until cancelled."""
        await self._writer.run()

    async def keep_streams(self) -> None:
        """Create the streams that are missing, until cancelled."""
        while True:
            for instance_id in sorted(self._unsure):
                if await self._ensure(instance_id):
                    self._unsure.discard(instance_id)
            self._wake.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                for log in self._logs.values():
                    if log.stored != log.written and log.stored == log.looked_at:
                        self._unsure.add(log.instance_id)
                    log.looked_at = log.stored

    async def _ensure(self, instance_id: str) -> bool:
        config = stream_config(instance_id)
        try:
            await self._js.stream_info(subjects.event_stream(instance_id))
        except nats.js.errors.NotFoundError:
            try:
                await jetstream.ensure_stream(self._js, config)
            except UnavailableError as error:
                logger.warning(
                    "event stream not created, trying on", extra={"stream": config.name, "error": str(error)}
                )
                return False
            self._logs[instance_id].sequence = 0  # whatever went before, went with the stream
            logger.info("event stream created", extra={"stream": config.name})
        except (nats.errors.Error, TimeoutError):
            return False
        return True

    def _stored(self, token: object, sequence: int, _is_duplicate: bool) -> None:  # noqa: FBT001 - LogWriter's call
        if not isinstance(token, _Token):
            raise AssertionError("only `write` makes tokens")  # noqa: TRY004 - a fault of our own
        token.log.on_stored(sequence)
        if token.waiter is not None:
            token.waiter.on_stored()
        if self._writer.backlog_messages == 0:
            self._drained.set()

    def _failed(self, token: object, reason: str) -> None:
        # It can never be stored (LogWriter logged it); its frame must not wait for it.
        logger.error("event lost", extra={"reason": reason})
        self._stored(token, 0, False)  # noqa: FBT003 - LogWriter's call
