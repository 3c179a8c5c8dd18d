"""Which messages a log has already, found by reading its end.

JetStream's own table of ids (`Nats-Msg-Id`) costs it a third of its time for a message, and memory for two minutes of
them, to find repeats that only a failure brings. So most messages of the logs carry their id in a header of our own,
and whoever may repeat some looks for them first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine

from nats.aio.client import Client

from services.common.errors import UnavailableError
from services.common.log_reader import LogReader
from services.common.log_wire import MESSAGE_ID, OWN_ID
from services.common.runtime import first_of

logger = logging.getLogger(__name__)

FIRST_MESSAGES = 1_024
"""How far is looked back at first; twice as far as long as messages are found in the older half."""
MOST_MESSAGES = 16_384
"""How far is looked back at most: four times what a writer has in flight."""
LOOKS = 16
"""Logs that are read at the same time."""


class LogTails:
    """Looks for messages at the end of logs. Owned by one event loop; `run` does the reading.

    Args:
        client: connected to NATS and reconnecting by itself.
        stream_of: the stream of a lane, by its name; empty: it is not one to look into.
    """

    def __init__(self, client: Client, stream_of: Callable[[str], str]) -> None:
        self.stream_of = stream_of
        self._reader = LogReader(client)
        self._wanted: deque[tuple[str, int, set[str], Callable[[dict[str, int] | None], None]]] = deque()
        self._wake = asyncio.Event()

    def find(self, stream: str, last: int, ids: set[str], found: Callable[[dict[str, int] | None], None]) -> None:
        """Have `found` called with the sequences of those messages that the stream has, or None: it can't be read.

        Args:
            stream: nobody else writes to it now.
            last: of the stream.
            ids: of the messages.
            found: must not raise.
        """
        self._wanted.append((stream, last, ids, found))
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
                    stream, last, ids, found = self._wanted.popleft()
                    await slots.acquire()
                    task = group.create_task(self._look(stream, last, ids, found))
                    task.add_done_callback(lambda _task: slots.release())

    async def _look(
        self, stream: str, last: int, ids: set[str], found: Callable[[dict[str, int] | None], None]
    ) -> None:
        try:
            sequences = await self._sequences(stream, last, ids)
        except UnavailableError as error:
            logger.warning("end of a log not read", extra={"stream": stream, "reason": str(error)})
            found(None)
            return
        logger.info("end of a log read", extra={"stream": stream, "wanted": len(ids), "found": len(sequences)})
        found(sequences)

    async def _sequences(self, stream: str, last: int, ids: set[str]) -> dict[str, int]:
        sequences: dict[str, int] = {}
        span, end = FIRST_MESSAGES, last  # all behind `end` was read
        while True:
            start = max(0, last - span)
            await self._read(stream, start, end, ids, sequences)
            is_done = start == 0 or span >= MOST_MESSAGES or len(sequences) == len(ids)
            if is_done or not any(sequence <= last - span // 2 for sequence in sequences.values()):
                return sequences
            span, end = span * 2, start

    async def _read(self, stream: str, start: int, end: int, ids: set[str], sequences: dict[str, int]) -> None:
        """Note which messages there are behind `start` up to `end`; the first one of each id."""
        position = start
        while position < end:
            messages = await self._reader.read(stream, position)
            if not messages:
                return
            for message in messages:
                if message.sequence > end:
                    return
                message_id = message.headers.get(OWN_ID) or message.headers.get(MESSAGE_ID, "")
                if message_id in ids:
                    sequences.setdefault(message_id, message.sequence)
            position = messages[-1].sequence
