"""What is kept for how long, and how much of it: messages, and sessions. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from services.session.domain.losses import EXPIRED, OVER_LIMIT
from services.session.domain.pump import Pump
from services.session.domain.sessions import Instance, Session

SWEEP_SESSIONS = 5_000
"""Sessions looked at by one call of `sweep`."""
SWEEP_MS = 10_000
"""Milliseconds between two sweeps through all sessions."""
MAX_STALE = 1_000
"""Entries of a heap, beyond two for each session, after which it is made anew."""
SWEEP_DROPS = 5_000
"""Messages dropped by one call of `sweep`, about."""


class Bounds:
    """Drops what is too old or too much; the rest of the shard need not care.

    Args:
        pump: has the queues.
        sessions: by slot.
        expire_session: deletes a session that outlived its last connection for too long.
    """

    def __init__(self, pump: Pump, sessions: dict[int, Session], expire_session: Callable[[Session], None]) -> None:
        self._pump = pump
        self._sessions = sessions
        self._expire_session = expire_session
        self._sweep: Iterator[Session] | None = None
        self._due_ms = 0  # when the next sweep begins

    def limit(self, instance: Instance) -> None:
        """Drop the oldest messages of an instance that has too many; those under way to clients stay."""
        heap = instance.heap
        if instance.count <= instance.limit:
            if heap is not None and instance.count < instance.limit * 9 // 10:
                instance.heap = None  # it would gather what comes and goes
            return
        if heap is None:
            heap = instance.heap = [
                (oldest_s, session.slot) for session in instance.sessions.values() if (oldest_s := session.oldest_s)
            ]
            heapq.heapify(heap)
        while instance.count > instance.limit and heap:
            noted_s, slot = heap[0]
            session = self._sessions.get(slot)
            oldest_s = session.oldest_s if session is not None and session.instance is instance else 0
            if session is None or not oldest_s:
                heapq.heappop(heap)
            elif oldest_s > noted_s:
                heapq.heapreplace(heap, (oldest_s, slot))
            else:
                self._drop_oldest(session, OVER_LIMIT)
        if not heap:
            instance.heap = None  # all that is left is under way; or sessions came since

    def note_waiting(self, session: Session, time_s: int) -> None:
        """Note that a session may have messages that wait, which it had not before."""
        instance = session.instance
        if instance.heap is None:
            return
        if len(instance.heap) > 2 * len(instance.sessions) + MAX_STALE:
            instance.heap = None  # most of it is of messages that did not wait; `limit` makes it anew
        else:
            heapq.heappush(instance.heap, (time_s, session.slot))

    @property
    def is_sweeping(self) -> bool:
        """Whether `sweep` is not through all sessions yet."""
        return self._sweep is not None

    def sweep(self, now_ms: int) -> None:
        """Look at the next sessions: drop messages that are too old, and sessions that nobody came back to."""
        if self._sweep is None:
            if now_ms < self._due_ms:
                return
            self._due_ms = now_ms + SWEEP_MS
            self._sweep = iter(list(self._sessions.values()))
        drops = 0
        for _ in range(SWEEP_SESSIONS):
            session = next(self._sweep, None)
            if session is None:
                self._sweep = None
                return
            if self._sessions.get(session.slot) is not session:
                continue
            rules = session.rules
            if rules.session_expiry_ms and session.ended_ms and now_ms - session.ended_ms >= rules.session_expiry_ms:
                drops += session.offline_count
                self._expire_session(session)
                continue
            oldest_s = session.oldest_s
            limit_s = (now_ms - rules.offline_retention_ms) // 1000
            while 0 < oldest_s < limit_s:
                self._drop_oldest(session, EXPIRED)
                drops += 1
                oldest_s = session.oldest_s
            if session.is_empty:
                self._expire_session(session)  # a receiver of kept P2P messages, of which none is left
            if drops > SWEEP_DROPS:
                return

    def _drop_oldest(self, session: Session, reason: str) -> None:
        queue, channel = session.queue, session.channel
        if channel is not None and channel.live and not (queue and queue.first_time_s() <= channel.live.first_time_s()):
            queue = channel.live
        if queue:
            position, _ = queue.pop()
            self._pump.forget(session, position)
            self._pump.note_dropped(session, position, reason)
