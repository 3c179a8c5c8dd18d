"""Who watches the presence of groups."""

from __future__ import annotations

import asyncio
from collections import deque

from services.common.errors import LimitReachedError
from services.session.domain.events import CONNECT, TCPCLEAN, Event, group_of

MAX_WATCHES = 1_000
"""Watches at once."""
MAX_WAITING = 100_000
"""Changes that wait for one watch; one more ends it."""


class Watch:
    """One watch of a group: changes since it began, in order."""

    def __init__(self) -> None:
        self._changes: deque[Event] = deque()
        self._is_overrun = False
        self._changed = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add a change."""
        if len(self._changes) >= MAX_WAITING:
            self._is_overrun = True
            self._changes.clear()
        elif not self._is_overrun:
            self._changes.append(event)
        self._changed.set()

    async def next(self, limit: int, timeout_s: float) -> list[Event]:
        """Return up to `limit` changes; none when there was none in time.

        Raises:
            LimitReachedError: they were not taken fast enough.
        """
        if not self._changes and not self._is_overrun:
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                return []
        if self._is_overrun:
            raise LimitReachedError("the caller reads too slowly: watch again", limit="changes")
        return [self._changes.popleft() for _ in range(min(limit, len(self._changes)))]


class Watches:
    """All watches. Owned by one event loop."""

    def __init__(self) -> None:
        self._by_group: dict[tuple[str, str], list[Watch]] = {}
        self._count = 0

    def begin(self, instance_id: str, group_id: str) -> Watch:
        """Begin a watch, which must be ended.

        Raises:
            LimitReachedError: there are too many.
        """
        if self._count >= MAX_WATCHES:
            raise LimitReachedError(f"there are {MAX_WATCHES} watches already", limit="watches")
        self._count += 1
        watch = Watch()
        self._by_group.setdefault((instance_id, group_id), []).append(watch)
        return watch

    def end(self, instance_id: str, group_id: str, watch: Watch) -> None:
        """End a watch."""
        self._count -= 1
        watches = self._by_group[instance_id, group_id]
        watches.remove(watch)
        if not watches:
            del self._by_group[instance_id, group_id]

    def tell(self, event: Event) -> None:
        """Tell those who watch the client's group that a connection came or went."""
        if self._count and event.tag in {CONNECT, TCPCLEAN}:
            for watch in self._by_group.get((event.instance_id, group_of(event.client_id)), ()):
                watch.put(event)
