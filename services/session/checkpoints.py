"""When checkpoints of the presence are written."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from services.common.errors import UnavailableError
from services.session.domain.presence import Presence
from services.session.domain.records import Connection
from services.session.event_log import EventLog
from services.session.event_streams import accounted_sequence

logger = logging.getLogger(__name__)

STORE_S = 30.0
"""How long one checkpoint may take, with its wait for events to be stored; then it is given up until the next time."""


class Writer(Protocol):
    """Where checkpoints go."""

    async def write_checkpoint(
        self, instance_id: str, connections: list[Connection], sequence: int, last_time_ms: int, lost: dict[str, int]
    ) -> None:
        """Replace the checkpoint of an instance."""


class Checkpoints:
    """Writes a checkpoint of each instance that changed, now and then. Owned by one event loop."""

    def __init__(self, presence: Presence, events: EventLog, store: Writer, *, interval_s: float) -> None:
        self._presence = presence
        self._events = events
        self._store = store
        self._interval_s = interval_s
        self._written: dict[str, int] = {}  # by instance: the sequence of its checkpoint

    async def run(self) -> None:
        """Write checkpoints until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.write()

    async def write(self) -> None:
        """Write the checkpoints that are due; failures are logged."""
        for instance_id in self._events.instances:
            try:
                async with asyncio.timeout(STORE_S):
                    await self._write(instance_id)
            except (UnavailableError, TimeoutError) as error:
                logger.warning("checkpoint not written", extra={"instance": instance_id, "error": repr(error)})

    async def _write(self, instance_id: str) -> None:
        log = self._events.of(instance_id)
        if log.stored == log.written and self._written.get(instance_id) == log.sequence:
            return
        # One turn: the connections are those that the events written until now leave behind.
        connections = self._presence.announced(instance_id)
        last_time_ms = self._presence.last_time_ms
        lost = dict(self._presence.lost_edges)
        sequence = await accounted_sequence(log)
        await self._store.write_checkpoint(instance_id, connections, sequence, last_time_ms, lost)
        self._written[instance_id] = sequence
