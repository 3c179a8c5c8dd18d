"""Whether JetStream stores what is written to logs, as the health of a service tells it.

A connection to NATS proves nothing: with a full disk NATS answers, and stores nothing.
"""

from __future__ import annotations

import logging
import time

from services.common import ticks
from services.common.log_writer import LogWriter
from services.common.readiness import Readiness

logger = logging.getLogger(__name__)

DEPENDENCY = "log storage"
"""Name under which `Readiness` lists it."""
LOOK_S = 1.0
STUCK_S = 10.0
"""Seconds in which nothing of what waits was stored, after which it is missing."""


async def watch(log: LogWriter, readiness: Readiness) -> None:
    """Keep `readiness` informed until cancelled."""
    stored, since = -1, 0.0
    readiness.mark(DEPENDENCY, present=True)
    while True:
        now = time.monotonic()
        if log.stored_messages != stored or not log.backlog_messages or not log.is_connected:
            # Without a connection it is NATS that is missing.
            stored, since = log.stored_messages, now
        is_stuck = now - since >= STUCK_S
        if is_stuck == (DEPENDENCY not in readiness.missing):
            readiness.mark(DEPENDENCY, present=not is_stuck)
            if is_stuck:
                logger.warning("JetStream stores nothing; is its disk full?", extra={"waiting": log.backlog_messages})
        await ticks.tick(LOOK_S)
