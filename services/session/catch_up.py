"""Reads what a shard missed from the logs of a router, from where each is accounted for to where the link goes on.

For every stream of a link: the router knows all filters first, then the logs are read to their end. What comes live
from a log meanwhile is left to the reading, so nothing is held in memory, and the log goes live when reading has passed
all of it. So is what comes first from a log that is new: nothing is taken of a stream before it is known when that was
made, by which another one of its name is told apart. That is looked at again for a log in doubt: with live messages
that were met before, or were left to a reading, or are the first since the logs were listed.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from services.common.log_reader import LogReader, StoredMessage, time_ms_of
from services.common.sharding import router_of
from services.session import stored
from services.session.clock import Clock
from services.session.domain.sessions import Log
from services.session.domain.shard import Shard
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
NATS_ERRORS = (UnavailableError, nats.errors.Error, TimeoutError, OSError)
"""What is tried again."""
SORT_SLICE = 500
"""Sessions whose messages are put in order at once."""
STREAM_NOT_FOUND = 10059
"""Error code of JetStream."""


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
        self._in_hand: set[Log] = set()  # what `_catch_up` reads now
        self._failures: dict[Log, int] = {}  # times in a row that nothing was to be had of a log in doubt
        self._asking = asyncio.Lock()  # an answer of NATS counts before the next question is asked

    async def run(self) -> None:
        """Read after each opening of the link, and look at logs in doubt, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_caught_up())
            group.create_task(self._keep_looking())

    async def _keep_caught_up(self) -> None:
        opened = self._link.opened
        loop = asyncio.get_running_loop()
        due = loop.time() + READ_ON_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await opened.wait()
            opened.clear()
            opening = self._link.openings
            must_read, self._link.must_read = self._link.must_read, False
            try:
                if must_read:
                    await self._catch_up()
                    must_read = False
                    due = loop.time() + READ_ON_S
                    self._link.has_doubts.set()
                if loop.time() >= due:
                    due = loop.time() + READ_ON_S
                    if not self._link.is_behind:
                        await self._read_on()
            except NATS_ERRORS as error:
                await self._pause(error)
                if (
                    self._link.openings == opening
                ):  # else the next stream has its turn when the router knows all filters
                    self._link.must_read = self._link.must_read or must_read
                    opened.set()

    async def _keep_looking(self) -> None:
        has_doubts = self._link.has_doubts
        while True:
            await has_doubts.wait()
            has_doubts.clear()
            try:
                await self._look()
            except NATS_ERRORS as error:
                await self._pause(error)
                has_doubts.set()

    async def _pause(self, error: Exception) -> None:
        extra = {"router": self._link.index, "error": repr(error)}
        logger.warning("logs can't be read, trying on", extra=extra)
        await asyncio.sleep(PAUSE_S)

    async def _catch_up(self) -> None:
        """Read the logs, unless the link has another stream by then."""
        began = time.monotonic()
        link, logs = self._link, self._shard.logs
        opening = link.openings
        async with self._asking:
            states = await self._streams()
            if link.openings != opening:
                return
            listed = [(logs.open(state.name, subjects.stream_names(state.name)[0]), state) for state in states]
            for log, state in listed:
                self._identify(log, state)
                logs.begin_reading(log)
                log.is_checked = False
            # Those that are not there any more have to end their reading.
            logs.doubted.update(set(logs.reading()).difference(log for log, _ in listed))
            link.is_behind = False  # a log that is made from now on comes live from its beginning
        count = 0
        self._in_hand = {log for log, _ in listed}
        try:
            for log, state in listed:
                count += await self._read_to_end(log, state.last)
                self._in_hand.discard(log)
        finally:
            self._in_hand.clear()
        if count:
            await self._sort()
        extra = {"router": link.index, "logs": len(states), "messages": count}
        logger.info("logs read", extra={**extra, "duration_s": round(time.monotonic() - began, 3)})

    async def _look(self) -> None:
        """See which streams the logs in doubt are, and read those that are new or other ones."""
        link, logs, pump = self._link, self._shard.logs, self._shard.pump
        opening = link.openings
        # Those that tell nothing, without a leader say, have their turn when the others had theirs, and one by one.
        for log in sorted(logs.doubted, key=lambda log: self._failures.get(log, 0)):
            if link.is_behind or link.openings != opening:
                return  # `_catch_up` has its turn
            if not self._is_of_router(log.name) or log in self._in_hand:
                continue
            logs.doubted.discard(log)
            try:
                await self._look_at(log)
                self._failures.pop(log, None)
            except NATS_ERRORS:
                logs.doubted.add(log)
                self._failures[log] = self._failures.get(log, 0) + 1
                raise
        if pump.is_rebuilding and link.openings == opening and self._is_last():
            pump.end_rebuilding()

    async def _look_at(self, log: Log) -> None:
        logs, opening = self._shard.logs, self._link.openings
        state = await self._ask_which(log)
        if self._link.openings != opening:
            return
        if state is not None:
            if log.is_reading:
                await self._read_to_end(log, state.last)
        elif log.skipped:  # it was made again meanwhile
            logs.doubted.add(log)
        elif log.is_reading:
            if log.created or log.met.resume_after:
                logs.begin_anew(log, "", self._shard.roster.sessions)
            logs.end_reading(log)

    async def _ask_which(self, log: Log) -> StreamState | None:
        """Ask which stream a log is, and begin to read it when it is another one; returns what there is of it."""
        async with self._asking:
            log.skipped = 0  # what was left to reading by now, the stream has when it is asked
            state = await self._state(log.name)
            if state is not None and self._identify(log, state):
                self._shard.logs.begin_reading(log)
        return state

    def _identify(self, log: Log, state: StreamState) -> bool:
        is_other = self._shard.logs.identify(log, state.created, state.last, self._shard.roster.sessions)
        if is_other:
            logger.warning("log is another one now", extra={"log": log.name})
        return is_other

    async def _read_on(self) -> None:
        """Read logs that are far ahead, while what comes live goes on: whatever comes first, counts."""
        for state in await self._streams():
            log = self._shard.logs.open(state.name, subjects.stream_names(state.name)[0])
            if self._identify(log, state):
                self._shard.logs.begin_reading(log)
                self._shard.logs.doubted.add(log)
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

    async def _read_to_end(self, log: Log, last: int) -> int:
        """Read a log, with its last sequence, until it goes on live; returns how many messages that were."""
        logs = self._shard.logs
        count = await self._read(log, last)
        while not logs.end_reading(log):
            state = await self._ask_which(log)  # not read to `skipped`: that may be of a stream that is gone
            if state is None:
                logs.doubted.add(log)
                break
            count += await self._read(log, state.last)
        return count

    async def _read(self, log: Log, last: int) -> int:
        """Read a log on through a sequence; returns how many messages that were."""
        stream, after = log.index, log.met.resume_after
        count = 0
        while after < last and (messages := await self._reader.read(log.name, after)):
            for message in messages:
                while self._shard.fanout.is_busy:
                    self._flush()
                    await asyncio.sleep(0)
                if log.index != stream:
                    return count  # it turned out to be another one, and is read from its beginning
                self._take(log, message)
            self._flush()
            after = messages[-1].sequence
            count += len(messages)
            await asyncio.sleep(0)
        if log.index == stream:
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
            page = await self._ask("STREAM.LIST", {"offset": len(states), "subject": subject})
            if "error" in page:
                raise UnavailableError(f"list of streams: {page['error']}", dependency="nats")
            streams = page.get("streams") or []
            if streams and (timestamp := streams[0].get("ts")):
                self._compare_clocks(timestamp)
            states.extend(_state_of(each) for each in streams)
            if not streams or len(states) >= page["total"]:
                return states

    async def _state(self, stream: str) -> StreamState | None:
        """Return what there is of a stream; None: no stream has that name."""
        info = await self._ask(f"STREAM.INFO.{stream}", {})
        error = info.get("error")
        if error is None:
            return _state_of(info)
        if error.get("err_code") == STREAM_NOT_FOUND:
            return None
        raise UnavailableError(f"{stream}: {error}", dependency="nats")

    async def _ask(self, api: str, request: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.request(f"$JS.API.{api}", json.dumps(request).encode(), timeout=CALL_S)
        found: dict[str, Any] = json.loads(answer.data)
        return found

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


def _state_of(info: dict[str, Any]) -> StreamState:
    return StreamState(info["config"]["name"], info["created"], info["state"]["last_seq"])
