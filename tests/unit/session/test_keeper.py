"""The session shard at work: what is stored, when the disk refuses."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest
from typing_extensions import override

from services.session import checkpointing
from services.session.clock import Clock
from services.session.domain.changes import Checkpoint
from services.session.files import Files
from services.session.keeper import Keeper

pytestmark = pytest.mark.asyncio


class FullDisk(Files):
    """Files that can't be written while the disk is full."""

    is_full = False
    refused = 0

    @override
    def write(self, checkpoint: Checkpoint) -> None:
        if self.is_full:
            self.refused += 1
            raise sqlite3.OperationalError("database or disk is full")
        super().write(checkpoint)


async def test_what_was_not_stored_before_the_end_is_stored_by_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the log would count as read so far, and its messages be in no session."""
    monkeypatch.setattr(checkpointing, "PAUSE_S", 60.0)
    files = FullDisk(tmp_path, "0 of 1")
    keeper = Keeper(
        place=(0, 1),
        clock=Clock(),
        locate=lambda _instance_id, _client_id: None,
        answer=lambda _channel_id, _number: None,
        evict=lambda _channel_id: None,
    )
    keeper.checkpointer.files = files
    with contextlib.closing(files):
        files.is_full = True
        keeper.shard.pump.changes.add_position(1, 4, 10)
        async with asyncio.timeout(20):
            running = asyncio.create_task(keeper.checkpointer.run())
            while not files.refused:  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait([running])
            files.is_full = False
            keeper.shard.pump.changes.add_position(1, 8, 11)
            await keeper.checkpointer.checkpoint()
        assert [row for rows in files.positions() for row in rows] == [(1, 4, 10), (1, 8, 11)]
