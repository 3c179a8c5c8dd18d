"""Stores what changed at a session shard once a second, and lets go on what waited for that.

What a checkpoint stores is in step: positions, how far each log is accounted for, and the losses to be announced. So a
shard that is killed either still has a message, or still has to announce that it is lost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Protocol

from services.common import ticks
from services.session.domain.changes import Checkpoint
from services.session.domain.losses import Losses
from services.session.domain.shard import Shard
from services.session.files import Files
from services.session.subscriptions import Writes

logger = logging.getLogger(__name__)

CHECKPOINT_S = 1.0
"""Seconds between two checkpoints."""
CHECKPOINT_ROWS = 20_000
"""Changes after which the next checkpoint does not wait."""
TICK_S = 0.05
REBUILDING_S = 30.0
"""How long frames wait for logs to be read whose messages they acknowledge."""
PAUSE_S = 1.0


class Waiter(Protocol):
    """A frame that is confirmed when a checkpoint has what it brought."""

    def on_stored(self) -> None:
        """Note that it is stored."""


class Checkpointer:
    """Makes checkpoints. Owned by one event loop; `run` is its pump.

    Args:
        shard: whose changes are stored.
        losses: that are stored with them.
        writes: of subscriptions; some follow a checkpoint.
        collect: called before a checkpoint, to put into `losses` what the shard dropped.
    """

    def __init__(self, shard: Shard, losses: Losses, writes: Writes, collect: Callable[[], None]) -> None:
        self._shard = shard
        self._losses = losses
        self._writes = writes
        self._collect = collect
        self.files: Files | None = None
        """Where it is stored; None: nowhere, all follows from the logs."""
        self._unstored: Checkpoint | None = None  # taken from the changes; without it no later one may be stored
        self._waiters: list[Waiter] = []
        self._acknowledging: list[Waiter] = []
        self._began = time.monotonic()

    def keep_until_stored(self, waiter: Waiter, *, acknowledges: bool = True) -> None:
        """Have a frame confirmed when the next checkpoint is stored.

        Args:
            waiter: stands for the frame.
            acknowledges: it may end deliveries of the process before, which no checkpoint has until the logs are read.
        """
        (self._acknowledging if acknowledges else self._waiters).append(waiter)

    def begin(self) -> None:
        """Serve from now on."""
        self._began = time.monotonic()

    async def run(self) -> None:
        """Store what changed, until cancelled."""
        while True:
            deadline = time.monotonic() + CHECKPOINT_S
            while time.monotonic() < deadline and (size := self._shard.pump.changes.size) < CHECKPOINT_ROWS:
                is_busy = size or self._waiters or self._acknowledging
                await (asyncio.sleep(TICK_S) if is_busy else ticks.tick())
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Store what changed, trying on while the disk refuses, and confirm the frames that waited for it."""
        await self._write()  # what a cancelled call left
        while self._shard.fanout.is_midway:  # noqa: ASYNC110 - a turn of the loop is what it takes
            await asyncio.sleep(0)
        waiters, self._waiters = self._waiters, []
        if not self._has_early():
            waiters += self._acknowledging
            self._acknowledging = []
        self._collect()
        written = self._writes.waiting()
        changes = self._shard.pump.changes
        if not changes.is_empty or self._losses.has_changes:
            self._unstored = dataclasses.replace(changes.take(), losses=self._losses.take())
            await self._write()
        self._writes.release(written)
        for waiter in waiters:
            waiter.on_stored()

    async def _write(self) -> None:
        while self._unstored is not None:
            try:
                if self.files is not None:
                    await asyncio.to_thread(self.files.write, self._unstored)
                self._unstored = None
                self._losses.note_stored()
            except sqlite3.Error as error:
                logger.error("checkpoint of sessions not stored, trying on", extra={"error": str(error)})  # noqa: TRY400 - expected
                await asyncio.sleep(PAUSE_S)

    def _has_early(self) -> bool:
        """Say whether acknowledgements came of messages that have yet to be read again: no checkpoint has those."""
        pump = self._shard.pump
        if pump.is_rebuilding and time.monotonic() - self._began > REBUILDING_S:
            pump.end_rebuilding()  # a router is away; edges must go on, though their clients may get repeats
        return bool(pump.early)
