"""The session shard at work: what it wants is written, fetched, told and announced."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from nats.js import JetStreamContext

from services.common import subjects, ticks
from services.common.errors import UnavailableError
from services.common.log_reader import LogReader, StoredMessage
from services.common.log_writer import LogWriter
from services.common.sharding import shard_of
from services.session import stored, subscriptions
from services.session.checkpointing import Checkpointer
from services.session.clock import Clock
from services.session.domain.fanout import Locate
from services.session.domain.losses import Event, Losses
from services.session.domain.positions import Met, sequence_of
from services.session.domain.sessions import Log, Session
from services.session.domain.shard import Shard, Store
from services.session.files import Files
from services.session.metrics import Figures, count_dropped
from services.session.router_link import RouterLink

logger = logging.getLogger(__name__)

FLUSH_FETCHED = 128
"""Fetched messages after which the next ones are asked for, so that some are always under way."""
TICK_S = 0.05
LATE_S = 1.0
"""How often is looked for deliveries that were not acknowledged."""
CACHE_BYTES = 32 << 20
"""Messages that were fetched and may be wanted by other clients, in bytes."""
CACHED_OVERHEAD = 256
PAUSE_S = 1.0


class _Answer:
    """A change of subscriptions that is answered when it is stored and every router knows its filters."""

    __slots__ = ("_done", "_missing")

    def __init__(self, missing: int, done: Callable[[], None]) -> None:
        self._missing = missing
        self._done = done

    def count(self) -> None:
        """Note one of what is missing."""
        self._missing -= 1
        if not self._missing:
            self._done()


class Keeper:
    """Owns the shard. Owned by one event loop; `run` is its pump.

    Args:
        place: index of this shard, and the number of shards.
        clock: tells the time.
        locate: finds connections.
        answer: tells an edge that a change of subscriptions is stored.
        evict: has a connection closed.
    """

    def __init__(
        self,
        *,
        place: tuple[int, int],
        clock: Clock,
        locate: Locate,
        answer: Callable[[str, int], None],
        evict: Callable[[str], None],
    ) -> None:
        index, self._count = place
        self.place = place
        self._clock = clock
        self._answer = answer
        self._evict = evict
        self._index = index
        self.shard = Shard(count=self._count, locate=locate, is_ours=self.is_ours)
        self.losses = Losses(self._log_name, secrets.token_hex(8))
        """What is to be announced."""
        self._writes = subscriptions.Writes()
        self.checkpointer = Checkpointer(self.shard, self.losses, self._writes, self._collect_dropped)
        self.links: list[RouterLink] = []
        """Links with the routers, added before `run`."""
        self.markers: list[tuple[str, int]] = []
        """Subjects and sequences in the bucket that tell of deleted sessions, found at the start."""
        self.read_through = 0
        """How far the bucket was read at the start."""
        self._writer: LogWriter | None = None
        self._reader: LogReader | None = None
        self._cache: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self._cached_bytes = 0
        self._unflushed = 0  # messages that were fetched since
        self._is_flushing = False
        self._flush_again = False
        self._is_going_on = False
        self._figures = Figures(self.shard)

    @property
    def is_started(self) -> bool:
        """Whether what was stored has been read."""
        return self._writer is not None

    def is_ours(self, instance_id: str, client_id: str) -> bool:
        """Say whether a client belongs to this shard."""
        return shard_of(instance_id, client_id, self._count) == self._index

    # Start

    async def load(self, js: JetStreamContext, reader: LogReader, files: Files | None) -> None:
        """Read what is stored; tries on until NATS answers."""
        began = time.monotonic()
        self.checkpointer.files = files
        if files is not None:
            await self._load_files(files)
        while True:
            restored = 0
            self.markers.clear()
            try:
                self.read_through = await subscriptions.last_sequence(js)
                async for sessions in subscriptions.read_all(reader, self.read_through, self.markers):
                    for each in sessions:
                        if self.is_ours(each.instance_id, each.client_id):
                            restored += 1
                            self.shard.restore(*each)
                    await asyncio.sleep(0)
                break
            except UnavailableError as error:
                logger.warning("sessions can't be read, trying on", extra={"error": str(error)})
                await asyncio.sleep(PAUSE_S)
        self.shard.begin(self._clock.now_ms())
        self.shard.interests.take_changes()  # the links begin with all of them
        count = sum(instance.count for instance in self.shard.roster.instances.values())
        duration_s = round(time.monotonic() - began, 3)
        logger.info("sessions read", extra={"sessions": restored, "messages": count, "duration_s": duration_s})

    async def _load_files(self, files: Files) -> None:
        shard = self.shard
        for row in files.logs():
            instance_id = subjects.stream_names(row.name)[0]
            shard.logs.restore(row.index, row.name, instance_id, row.created, Met(row.read_through, row.top, row.bits))
        for sessions in files.sessions():
            for each in sessions:
                shard.restore_row(each.slot, each.instance_id, each.client_id, each.ended_ms, each.carried)
            await asyncio.sleep(0)
        for positions in files.positions():
            for slot, position, time_s in positions:
                shard.restore_position(slot, position, time_s)
            await asyncio.sleep(0)
        self.losses.restore(files.losses())

    def begin(self, writer: LogWriter, reader: LogReader) -> None:
        """Serve from now on; `writer` calls `stored` and `failed`."""
        self._writer = self._writes.writer = writer
        self._reader = reader
        self.checkpointer.begin()
        self.flush()

    # At work

    def flush(self) -> None:
        """Carry out what the shard wants; called after each round of calls to it."""
        if self._writer is None or self._is_flushing:
            self._flush_again = True
            return
        self._is_flushing = True
        try:
            self._flush_again = True
            while self._flush_again:
                self._flush_again = False
                self.shard.flush(self._clock.now_ms())
                self._tell_and_store()
                self._fetch()
        finally:
            self._is_flushing = False
        if self.shard.fanout.is_busy and not self._is_going_on:
            self._is_going_on = True
            asyncio.get_running_loop().call_soon(self._go_on)
        self._collect_dropped()

    def delete(self, session: Session, stored: Callable[[], None]) -> int:
        """Delete a session, and have `stored` called when that is stored; returns how many messages waited for it."""
        if self._writer is None:
            raise AssertionError("sessions are known after the start")
        store = Store(session.instance.instance_id, session.client_id, None, session.rules, number=1)
        dropped = self.shard.delete(session)
        self.flush()
        self._writes.write(store, lambda _channel_id, _number, _is_stored: stored())
        return dropped

    def forget(self, session: Session) -> None:
        """Forget a session of an instance that is gone, and have its connection closed."""
        if session.channel is not None:
            self._evict(session.channel.channel_id)
        self.shard.forget(session)
        self.flush()

    def read_again(self, log: Log, sequence: int) -> None:
        """Look a live message up in its log; see `Fanout.read_again`."""
        fanout = self.shard.fanout

        def take(message: StoredMessage | None) -> None:
            if message is None:
                return
            if fanout.is_busy:
                fanout.postpone(functools.partial(take, message))
                return
            published, now_ms = stored.parse(message), self._clock.now_ms()
            fanout.read_again(log, sequence, published, message.payload, message.time_ms, now_ms)
            self.flush()

        if self._reader is not None:
            self._reader.fetch(log.name, sequence, take)

    def is_caught_up(self) -> bool:
        """Say whether every log has been read."""
        return not any(link.is_behind for link in self.links) and not self.shard.logs.reading()

    def stored(self, token: object, _sequence: int, _is_duplicate: bool) -> None:  # noqa: FBT001 - LogWriter's call
        """Note that a write is stored: subscriptions, or the announcement of losses."""
        if isinstance(token, subscriptions.Stored):
            token.done(token.channel_id, token.number, True)  # noqa: FBT003 - see there
        elif isinstance(token, Event):
            self.losses.forget(token)

    def failed(self, token: object, reason: str) -> None:
        """Note that something can never be stored: subscriptions are too many, or too long."""
        logger.error("subscriptions or losses can't be stored", extra={"reason": reason})
        if isinstance(token, subscriptions.Stored):
            token.done(token.channel_id, token.number, False)  # noqa: FBT003 - see there
        elif isinstance(token, Event):
            self.losses.forget(token)

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        late_at = time.monotonic()
        while True:
            await (asyncio.sleep(TICK_S) if self.shard.is_due_soon else ticks.tick())
            now_ms = self._clock.now_ms()
            self.shard.expire(now_ms)
            if time.monotonic() - late_at >= LATE_S:
                late_at = time.monotonic()
                self.shard.pump.note_late(now_ms)
                self._figures.count_up()
                if self.shard.logs.doubted:
                    for link in self.links:
                        link.has_doubts.set()
            self.flush()

    # Inside

    def _go_on(self) -> None:
        """Offer a portion more of what is for very many sessions."""
        self._is_going_on = False
        self.shard.fanout.go_on()
        self.flush()
        if not self.shard.fanout.is_busy:
            for link in self.links:
                link.confirm_taken()

    def _log_name(self, delivery_id: int) -> str:
        log = self.shard.logs.of(delivery_id)
        return log.name if log is not None else ""

    def _collect_dropped(self) -> None:
        pump = self.shard.pump
        if pump.dropped:
            dropped, pump.dropped = pump.dropped, []
            count_dropped(dropped)
            self.losses.add(dropped)

    def _tell_and_store(self) -> None:
        shard = self.shard
        added, removed = shard.interests.take_changes()
        stores, shard.stores = shard.stores, []
        if not (added or removed or stores):
            return
        answers: list[_Answer] = []
        for store in stores:
            if not store.number:
                self._writes.write(store, _no_answer)
                continue
            answer = _Answer(1 + len(self.links), functools.partial(self._answer, store.channel_id, store.number))
            answers.append(answer)
            self._writes.write(store, functools.partial(self._on_stored, answer))
        for link in self.links:
            link.tell(added, removed, functools.partial(_count_all, answers) if answers else None)

    def _on_stored(self, answer: _Answer, channel_id: str, _number: int, is_stored: bool) -> None:  # noqa: FBT001 - see there
        if is_stored:
            answer.count()
        else:
            self._evict(channel_id)

    def _fetch(self) -> None:
        """Have wanted messages fetched, but for those that were a moment ago."""
        pump = self.shard.pump
        if not pump.fetching.wanted or self._reader is None:
            return
        wanted, pump.fetching.wanted = pump.fetching.wanted, []
        now_ms = self._clock.now_ms()
        for delivery_id in wanted:
            cached = self._cache.get(delivery_id)
            log = self.shard.logs.of(delivery_id)
            if cached is not None:
                pump.fetched(delivery_id, *cached, now_ms)
                self._flush_again = True
            elif log is None:
                pump.fetched(delivery_id, "", b"", now_ms)
                self._flush_again = True
            else:
                self._reader.fetch(log.name, sequence_of(delivery_id), functools.partial(self._on_fetched, delivery_id))

    def _on_fetched(self, delivery_id: int, message: StoredMessage | None) -> None:
        topic, payload = "", b""
        if message is not None:
            topic, payload = stored.parse(message).shown_topic, message.payload
            self._cache[delivery_id] = (topic, payload)
            self._cached_bytes += len(payload) + CACHED_OVERHEAD
            while self._cached_bytes > CACHE_BYTES:
                _, (_, oldest) = self._cache.popitem(last=False)
                self._cached_bytes -= len(oldest) + CACHED_OVERHEAD
        self.shard.pump.fetched(delivery_id, topic, payload, self._clock.now_ms())
        self._unflushed += 1
        if self._reader is not None and (self._unflushed >= FLUSH_FETCHED or not self._reader.pending):
            self._unflushed = 0
            self.flush()


def _no_answer(_channel_id: str, _number: int, _is_stored: bool) -> None:  # noqa: FBT001 - see `subscriptions.Stored`
    """Nobody waits."""


def _count_all(answers: list[_Answer]) -> None:
    for answer in answers:
        answer.count()
