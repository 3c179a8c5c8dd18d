"""Reads what a shard missed from the logs of a router, from where each is accounted for to where the link goes on.

For every stream of a link: the router knows all filters first, then the logs are read to their end. What comes live
from a log meanwhile is left to the reading, so nothing is held in memory, and the log goes live when reading has passed
all of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client

from services.common import subjects
from services.common.errors import UnavailableError
from services.common.sharding import router_of
from services.session import stored
from services.session.clock import Clock
from services.session.domain.sessions import Log
from services.session.domain.shard import Shard
from services.session.log_reader import LogReader, StoredMessage, time_ms_of
from services.session.router_link import RouterLink

logger = logging.getLogger(__name__)

PAUSE_S = 0.5
"""Pause after a failure of NATS."""
CALL_S = 5.0
READ_ON_S = 600.0
"""How often logs are looked at whose messages are hardly for this shard, so that a restart need not read them all."""
READ_ON_MESSAGES = 100_000
"""How far a log may be ahead of what is accounted for."""
MAX_APART_MS = 500
"""Difference between the clocks of NATS and ours above which it is logged."""
SORT_SLICE = 500
"""Sessions whose messages are put in order at once."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """What NATS says of a stream."""

    name: str
    created: str
    last: int


class CatchUp:
    """Keeps the logs of one router read. Owned by one event loop.

    Args:
        client: of NATS.
        reader: reads logs.
        shard: takes what was read.
        link: of the router.
        routers: how many there are.
        clock: tells the time.
        flush: called after each batch.
        is_last: says whether no other router's logs have to be read.
    """

    def __init__(
        self,
        *,
        client: Client,
        reader: LogReader,
        shard: Shard,
        link: RouterLink,
        routers: int,
        clock: Clock,
        flush: Callable[[], None],
        is_last: Callable[[], bool],
    ) -> None:
        self._is_last = is_last
        self._client = client
        self._reader = reader
        self._shard = shard
        self._link = link
        self._routers = routers
        self._clock = clock
        self._flush = flush
        self._ahead_ms = 0  # how much the clock of NATS is ahead of ours

    async def run(self) -> None:
        """Read after each opening of the link, until cancelled."""
        opened = self._link.opened
        loop = asyncio.get_running_loop()
        due = loop.time() + READ_ON_S
        while True:
            is_new = True
            try:
                async with asyncio.timeout_at(due):
                    await opened.wait()
            except TimeoutError:
                is_new = False
            opened.clear()
            opening = self._link.openings
            must_read, self._link.must_read = self._link.must_read, False
            try:
                while must_read and not await self._catch_up():
                    pass
                if is_new and not must_read:
                    await self._note_created()
                    continue
                due = loop.time() + READ_ON_S
                if not is_new and not self._link.is_behind:
                    await self._read_on()
            except (UnavailableError, nats.errors.Error, TimeoutError, OSError) as error:
                extra = {"router": self._link.index, "error": repr(error)}
                logger.warning("logs can't be read, trying on", extra=extra)
                await asyncio.sleep(PAUSE_S)
                if (
                    self._link.openings == opening
                ):  # else the next stream has its turn when the router knows all filters
                    self._link.must_read = self._link.must_read or must_read
                    opened.set()

    async def _catch_up(self) -> bool:
        """Read the logs; returns whether all of them are live, or the link has another stream."""
        began = time.monotonic()
        link, logs = self._link, self._shard.logs
        opening = link.openings
        states = await self._streams()
        if link.openings != opening:
            return True
        for state in states:
            log = logs.open(state.name, subjects.stream_names(state.name)[0])
            if log.created and log.created != state.created:
                logger.warning("log is another one now", extra={"log": log.name})
                logs.begin_anew(log, state.created, self._shard.roster.sessions)
            log.created = state.created
            logs.begin_reading(log)
        link.is_behind = False  # a log that is made from now on comes live from its beginning
        count = 0
        for state in states:
            log = logs.open(state.name, "")
            count += await self._read(log, state.last)
            while not logs.end_reading(log):
                count += await self._read(log, log.skipped)
        if count:
            await self._sort()
        if link.openings == opening and self._is_last():
            self._shard.pump.end_rebuilding()
        extra = {"router": link.index, "logs": len(states), "messages": count}
        logger.info("logs read", extra={**extra, "duration_s": round(time.monotonic() - began, 3)})
        # One that was made while the logs were listed may have been left to reading.
        return link.openings != opening or not any(self._is_of_router(log.name) for log in logs.reading())

    async def _note_created(self) -> None:
        """Note when the streams were made whose first message came live."""
        logs = self._shard.logs
        for state in await self._streams():
            log = logs.get(state.name)
            if log is not None and not log.created:
                logs.note_created(log, state.created)

    async def _read_on(self) -> None:
        """Read logs that are far ahead, while what comes live goes on: whatever comes first, counts."""
        for state in await self._streams():
            log = self._shard.logs.open(state.name, subjects.stream_names(state.name)[0])
            if not log.is_reading and state.last - log.met.resume_after > READ_ON_MESSAGES:
                await self._read(log, state.last)

    async def _streams(self) -> list[StreamState]:
        """Return the logs of this router."""
        states = [state for prefix in (subjects.OUT, subjects.KEPT) for state in await self._list(f"{prefix}.>")]
        return [state for state in states if self._is_of_router(state.name)]

    def _is_of_router(self, stream: str) -> bool:
        try:
            instance_id, name = subjects.stream_names(stream)
        except ValueError:
            return False
        if stream.startswith(subjects.KEPT_STREAM):
            return name == str(self._link.index)
        return router_of(instance_id, name, self._routers) == self._link.index

    async def _read(self, log: Log, last: int) -> int:
        """Read a log on through a sequence; returns how many messages that were."""
        after = log.met.resume_after
        count = 0
        while after < last and (messages := await self._reader.read(log.name, after)):
            for message in messages:
                while self._shard.fanout.is_busy:
                    self._flush()
                    await asyncio.sleep(0)
                self._take(log, message)
            self._flush()
            after = messages[-1].sequence
            count += len(messages)
            await asyncio.sleep(0)
        self._shard.logs.note_read(log, max(after, last))
        return count

    def _take(self, log: Log, message: StoredMessage) -> None:
        fanout = self._shard.fanout
        try:
            published = stored.parse(message)
        except ValueError as error:
            extra = {"log": log.name, "sequence": message.sequence, "error": str(error)}
            logger.warning("message of a log not understood", extra=extra)
            fanout.logs.note_read(log, message.sequence)
        else:
            time_ms = message.time_ms - self._ahead_ms
            fanout.read(log, message.sequence, published, message.payload, time_ms, self._clock.now_ms())

    async def _sort(self) -> None:
        """Put what was read from several logs in the order of its time."""
        for number, session in enumerate(list(self._shard.roster.sessions.values())):
            if session.queue and session.channel is None:
                session.queue.sort()
            if number % SORT_SLICE == 0:
                await asyncio.sleep(0)

    async def _list(self, subject: str) -> list[StreamState]:
        states: list[StreamState] = []
        while True:
            request = json.dumps({"offset": len(states), "subject": subject}).encode()
            answer = await self._client.request("$JS.API.STREAM.LIST", request, timeout=CALL_S)
            page: dict[str, Any] = json.loads(answer.data)
            if "error" in page:
                raise UnavailableError(f"list of streams: {page['error']}", dependency="nats")
            streams = page.get("streams") or []
            if streams and (timestamp := streams[0].get("ts")):
                self._compare_clocks(timestamp)
            states.extend(
                StreamState(each["config"]["name"], each["created"], each["state"]["last_seq"]) for each in streams
            )
            if not streams or len(states) >= page["total"]:
                return states

    def _compare_clocks(self, timestamp: str) -> None:
        """Note how far NATS's clock, by which logs tell the time, is from ours, by which subscriptions do.

        At the least: NATS may have written its time long ago. What seems older than a subscription would be lost, what
        seems newer is a message more.
        """
        told_ms = time_ms_of(timestamp)
        if told_ms <= 0:
            return  # a server that knows no time
        self._ahead_ms = told_ms - self._clock.now_ms()
        if abs(self._ahead_ms) > MAX_APART_MS:
            logger.warning("the clocks of NATS and of this machine differ", extra={"ahead_ms": self._ahead_ms})
