"""`$SYS/getOfflineMsg`: a client asks for some of its offline messages now (product.md section 3.2)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from services.edge.commands import Body, CommandError
from services.edge.ports import Client, SessionShards

logger = logging.getLogger(__name__)

MAX_MESSAGES = 30
"""What one request gets at the most; more means this."""
MAX_PULLS = 5
"""Requests of a client within `WINDOW_S`; further ones are answered and not carried out."""
WINDOW_S = 1.0

_ORDERS = {"DESC": True, "ASC": False}


class OfflinePull:
    """Handles the command for all connections. Owned by one event loop.

    Args:
        shards: of the clients.
        clock: monotonic seconds.
    """

    def __init__(self, shards: SessionShards, clock: Callable[[], float]) -> None:
        self._shards = shards
        self._clock = clock
        # By channel, the one that asked last at the end; those older than `WINDOW_S` are forgotten.
        self._times: dict[str, deque[float]] = {}

    def handle(self, client: Client, body: Body, done: Callable[[], None]) -> None:
        """Pass a request on; see `commands.Handler`."""
        count = body.get("maxPushNum", MAX_MESSAGES)
        order = body.get("pushOrder", "ASC")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise CommandError("maxPushNum is not a positive integer")
        if order not in _ORDERS:
            raise CommandError("pushOrder is neither DESC nor ASC")
        if self._is_in_time(client):
            shard = self._shards.of(client.instance_id, client.client_id)
            shard.pull(client, min(count, MAX_MESSAGES), descending=_ORDERS[str(order)])
        done()

    def _is_in_time(self, client: Client) -> bool:
        now = self._clock()
        recent = self._times
        while recent and now - next(iter(recent.values()))[-1] >= WINDOW_S:
            del recent[next(iter(recent))]
        times = recent.pop(client.channel_id, None) or deque(maxlen=MAX_PULLS)
        if len(times) == MAX_PULLS and now - times[0] < WINDOW_S:
            logger.debug("too many pulls", extra={"client_id": client.client_id})
            recent[client.channel_id] = times
            return False
        times.append(now)
        recent[client.channel_id] = times
        return True
