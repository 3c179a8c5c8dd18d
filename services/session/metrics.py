"""Figures of the persistent sessions of a shard."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import Counter, Gauge

from services.session.domain.losses import Dropped
from services.session.domain.shard import Shard

logger = logging.getLogger(__name__)

FLIPS = Counter("session_clean_session_flips", "Clients that came with another cleanSession flag than before.")
LATE = Counter("session_late_acknowledgements", "Deliveries that were not acknowledged in time.")
SESSIONS = Gauge("session_sessions", "Sessions that are kept.")
OFFLINE = Gauge("session_kept_messages", "Messages that clients have not completed.")
DROPPED = Counter("session_dropped_messages", "Messages that sessions lost.", ["reason"])


def count_dropped(dropped: Iterable[Dropped]) -> None:
    """Count messages that sessions lost."""
    for each in dropped:
        DROPPED.labels(each.reason).inc()


class Figures:
    """Takes them from a shard; `count_up` once a second or so."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._flips = 0
        self._late = 0

    def count_up(self) -> None:
        """Bring the metrics up to date, and log which clients changed their flag."""
        shard = self._shard
        FLIPS.inc(shard.flips - self._flips)
        flipped, shard.flipped = shard.flipped, []
        for instance_id, client_id, clean_session in flipped:
            extra = {"instance_id": instance_id, "client_id": client_id, "clean_session": clean_session}
            logger.info("client changed its cleanSession flag", extra=extra)
        LATE.inc(shard.pump.late - self._late)
        self._flips, self._late = shard.flips, shard.pump.late
        SESSIONS.set(len(shard.roster.sessions))
        OFFLINE.set(sum(instance.count for instance in shard.roster.instances.values()))
