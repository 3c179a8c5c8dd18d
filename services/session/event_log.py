"""Lifecycle events on their way into JetStream.

Events of an instance go to the stream `EVENTS_<instance>`, in order, retried for ever (`LogWriter`). The log knows for
each instance what was written and stored, which tells a checkpoint the sequence that it accounts for. Hot path;
`event_streams` sees to the streams.

Bounded by the links: an edge has at most its window of frames whose events are not stored. Ends of lost edges'
connections, which no link bounds, are produced only while `has_room`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Protocol

from nats.aio.client import Client

from services.common import log_health, subjects
from services.common.log_wire import header_lines
from services.common.log_writer import LogWriter
from services.common.readiness import Readiness
from services.session.domain.events import Event, group_of

logger = logging.getLogger(__name__)

ROOM_BYTES = 16 << 20
"""Backlog above which ends of lost edges' connections wait."""
MAX_NAMES = 4_096
"""Subjects, and header lines, that are remembered; beyond, all are forgotten and made anew."""


class Waiter(Protocol):
    """What waits for events to be stored."""

    def on_stored(self) -> None:
        """Note that one more event is stored."""


class Mark:
    """A point in the events of an instance."""

    __slots__ = ("reached", "sequence", "written")

    def __init__(self, written: int) -> None:
        self.written = written
        self.sequence = 0
        self.reached = asyncio.Event()


class InstanceLog:
    """How far the events of one instance are."""

    __slots__ = ("instance_id", "mark", "sequence", "stored", "written")

    def __init__(self, instance_id: str, sequence: int) -> None:
        self.instance_id = instance_id
        self.sequence = sequence  # in the stream, of the last event stored
        self.written = 0  # events, by this process
        self.stored = 0  # of those
        self.mark: Mark | None = None

    def on_stored(self, sequence: int) -> None:
        """Note that the next event is stored."""
        self.stored += 1
        # The sequence of a repeat is that of the first time.
        self.sequence = max(self.sequence, sequence)
        mark = self.mark
        if mark is not None and mark.written == self.stored:
            mark.sequence = self.sequence
            mark.reached.set()

    def set_mark(self) -> Mark:
        """Mark what is written now; one mark at a time, and only while some of it is not stored."""
        mark = self.mark = Mark(self.written)
        return mark


class _Token:
    """What LogWriter hands back with the acknowledgement of an event."""

    __slots__ = ("log", "waiter")

    def __init__(self, log: InstanceLog, waiter: Waiter | None) -> None:
        self.log = log
        self.waiter = waiter


class EventLog:
    """Writes events to the streams of their instances. Owned by one event loop; `run` is its pump.

    Args:
        client: connected to NATS and reconnecting by itself.
        is_alone: whether no other session shard writes to the same streams.
    """

    def __init__(self, client: Client, *, is_alone: bool) -> None:
        self._writer = LogWriter(client, stored=self._stored, failed=self._failed, is_ours=lambda _lane: is_alone)
        self._logs: dict[str, InstanceLog] = {}
        self._subjects: dict[tuple[str, str, str], str] = {}
        self._lines: dict[tuple[str, str], bytes] = {}
        self.unsure: set[str] = set()
        """Instances whose stream may not exist."""
        self.wanted = asyncio.Event()
        """Set when there is another one of them."""
        self.drained = asyncio.Event()
        """Set while everything is stored."""
        self.drained.set()

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

    def write(self, event: Event, waiter: Waiter | None, *, may_repeat: bool) -> None:
        """Have an event stored; `waiter.on_stored` is called when it is.

        With `may_repeat` it may be in the stream already, written by the process before this one.
        """
        log = self._logs.get(event.instance_id)
        if log is None:
            log = self._logs[event.instance_id] = InstanceLog(event.instance_id, 0)
            self.unsure.add(event.instance_id)
            self.wanted.set()
        log.written += 1
        self.drained.clear()
        self._writer.write_lines(
            self._subject(event),
            event.body(),
            f"{event.channel_id}-{event.tag}",
            self._header_lines(event),
            _Token(log, waiter),
            may_repeat,
            False,  # noqa: FBT003 - hot path
        )

    def watch(self, readiness: Readiness) -> Coroutine[object, object, None]:
        """Keep `readiness` informed whether events are stored, until cancelled."""
        return log_health.watch(self._writer, readiness)

    def run(self) -> Coroutine[object, object, None]:
        """Store what is written until cancelled."""
        return self._writer.run()

    def _subject(self, event: Event) -> str:
        key = (event.instance_id, group_of(event.client_id), event.tag)
        subject = self._subjects.get(key)
        if subject is None:
            if len(self._subjects) >= MAX_NAMES:
                self._subjects.clear()
            subject = self._subjects[key] = subjects.event_subject(*key)
        return subject

    def _header_lines(self, event: Event) -> bytes:
        key = (event.tag, event.edge)
        lines = self._lines.get(key)
        if lines is None:
            if len(self._lines) >= MAX_NAMES:
                self._lines.clear()
            lines = self._lines[key] = header_lines({"Tag": event.tag, "Edge": event.edge})
        return lines

    def _stored(self, token: object, sequence: int, _is_duplicate: bool) -> None:  # noqa: FBT001 - LogWriter's call
        if not isinstance(token, _Token):
            raise AssertionError("only `write` makes tokens")  # noqa: TRY004 - a fault of our own
        token.log.on_stored(sequence)
        if token.waiter is not None:
            token.waiter.on_stored()
        if self._writer.backlog_messages == 0:
            self.drained.set()

    def _failed(self, token: object, reason: str) -> None:
        # It can never be stored (LogWriter logged it); its frame must not wait for it.
        logger.error("event lost", extra={"reason": reason})
        self._stored(token, 0, False)  # noqa: FBT003 - LogWriter's call
