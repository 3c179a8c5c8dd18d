"""Which messages a log has already, found by reading its end.

JetStream's own table of ids (`Nats-Msg-Id`) costs it a third of its time for a message, and memory for two minutes of
them, to find repeats that only a failure brings. So most messages of the logs carry their id in a header of our own,
and whoever may repeat some looks for them first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine

from nats.aio.client import Client

from services.common.errors import UnavailableError
from services.common.log_reader import LogReader
from services.common.log_wire import MESSAGE_ID, OWN_ID
from services.common.runtime import first_of

logger = logging.getLogger(__name__)

STEP_MESSAGES = 256
"""How far is looked back at first; twice as far each time."""
MOST_MESSAGES = 16_384
"""How far is looked back at most: four times what a writer has in flight."""
MOST_MS = 10_000
"""And how long before the last message, in ms, for those of the process before: nothing was in flight that long."""
NEAR = 1_024
"""How many more messages of this process are looked at for what it may have been given twice."""
KEPT_S = 120.0
KEPT_LOGS = 64
"""How long, and of how many logs, is kept what the process before stored last."""
LOOKS = 16
"""Logs that are read at the same time."""


class Look:
    """What is looked for.

    Args:
        stream: nobody else writes to it now.
        last: sequence of its last message.
        ids: of the messages that are looked for.
        sent: how many this process may have sent in vain; looked for at the end of the stream.
        before: sequence of the last message of the process before, when its messages may be among them; else -1.
        found: called with the sequences of those that the stream has, or None: it can't be read. Must not raise.
    """

    def __init__(
        self,
        stream: str,
        last: int,
        ids: set[str],
        sent: int,
        before: int,
        found: Callable[[dict[str, int] | None], None],
    ) -> None:
        self.stream = stream
        self.last = last
        self.ids = ids
        self.sent = sent
        self.before = before
        self.found = found


class LogTails:
    """Looks for messages at the end of logs. Owned by one event loop; `run` does the reading.

    Args:
        client: connected to NATS and reconnecting by itself.
        stream_of: the stream of a lane, by its name; empty: it is not one to look into.
    """

    def __init__(self, client: Client, stream_of: Callable[[str], str]) -> None:
        self.stream_of = stream_of
        self._reader = LogReader(client)
        self._wanted: deque[Look] = deque()
        self._before: dict[str, tuple[int, float, dict[str, int]]] = {}  # by stream: see `_of_before`
        self._wake = asyncio.Event()

    def find(self, look: Look) -> None:
        """Look for messages; its `found` is called."""
        self._wanted.append(look)
        self._wake.set()

    async def beside(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Do `work`, and read what it asks for, until one of both ends."""
        await first_of(work(), self.run())

    async def run(self) -> None:
        """Read what is asked for until cancelled."""
        slots = asyncio.Semaphore(LOOKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reader.run())
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._wanted:
                    look = self._wanted.popleft()
                    await slots.acquire()
                    task = group.create_task(self._look(look))
                    task.add_done_callback(lambda _task: slots.release())

    async def _look(self, look: Look) -> None:
        sequences: dict[str, int] = {}
        try:
            sent = look.sent + NEAR if look.before >= 0 else look.sent
            await self._note(look.stream, look.last - sent, look.last, sequences)
            if look.before > 0 and not look.ids <= sequences.keys():
                sequences |= await self._of_before(look.stream, look.before)
        except UnavailableError as error:
            logger.warning("end of a log not read", extra={"stream": look.stream, "reason": str(error)})
            look.found(None)
            return
        found = {message_id: sequences[message_id] for message_id in look.ids & sequences.keys()}
        logger.info("end of a log read", extra={"stream": look.stream, "wanted": len(look.ids), "found": len(found)})
        look.found(found)

    async def _of_before(self, stream: str, last: int) -> dict[str, int]:
        """Return the messages up to a sequence that were stored shortly before it; read once."""
        now = time.monotonic()
        end, until, sequences = self._before.get(stream, (0, 0.0, {}))
        if end == last and until > now:
            return sequences
        sequences = {}
        span, end = STEP_MESSAGES, last  # all behind `end` was read
        newest = 0
        while end > 0:
            start = max(0, last - span)
            oldest_ms, newest_ms = await self._note(stream, start, end, sequences)
            newest = newest or newest_ms
            if (oldest_ms and oldest_ms < newest - MOST_MS) or span >= MOST_MESSAGES:
                break
            span, end = span * 2, start
        while len(self._before) >= KEPT_LOGS:
            del self._before[next(iter(self._before))]
        self._before[stream] = (last, now + KEPT_S, sequences)
        return sequences

    async def _note(self, stream: str, start: int, end: int, sequences: dict[str, int]) -> tuple[int, int]:
        """Note the messages behind `start` up to `end`, batch by batch; return when the first and the last were stored.

        Both in ms since 1970; both 0 when there are none.
        """
        oldest_ms = newest_ms = 0
        position = max(0, start)
        while position < end:
            messages = await self._reader.read(stream, position)
            if not messages:
                break
            for message in messages:
                if message.sequence > end:
                    break
                oldest_ms = oldest_ms or message.time_ms
                newest_ms = message.time_ms
                message_id = message.headers.get(OWN_ID) or message.headers.get(MESSAGE_ID, "")
                if message_id:
                    sequences[message_id] = min(message.sequence, sequences.get(message_id, message.sequence))
            position = messages[-1].sequence
        return oldest_ms, newest_ms
