"""The edges that watch resources, and what each has still to be told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Generator

from services.auth import metrics
from services.auth.domain.resources import ChangeSet
from services.auth.domain.view import View
from services.common.errors import NotServingError

MAX_WAITING = 256
"""Change sets that may wait for one watcher; policy when full: its stream ends, and it starts over with a snapshot."""

MAX_WATCHERS = 4_096
"""Streams that one replica serves; further ones are refused."""


class Watcher:
    """One open watch. Owned by one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[ChangeSet] = deque()
        self._something = asyncio.Event()
        self._ended_because = ""

    def tell(self, changes: ChangeSet) -> None:
        """Queue a change set, or end the watch when too many wait."""
        # Thousands of tokens may be revoked at once.
        if self._waiting and self._waiting[-1].absorb(changes):
            return
        if len(self._waiting) >= MAX_WAITING:
            self.end("the watcher reads too slowly: open the stream again")
        else:
            self._waiting.append(changes.copy())
            self._something.set()

    def end(self, because: str) -> None:
        """End the watch."""
        self._ended_because = because
        self._waiting.clear()
        self._something.set()

    async def next(self, timeout_s: float) -> ChangeSet | None:
        """Return the next change set, or None when none came in time.

        Raises:
            NotServingError: the watch has ended.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._something.wait()
        if self._ended_because:
            raise NotServingError(self._ended_because)
        if not self._waiting:
            return None
        changes = self._waiting.popleft()
        if not self._waiting:
            self._something.clear()
        return changes


class Watchers:
    """All open watches. Owned by one event loop."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._open: set[Watcher] = set()

    @contextlib.contextmanager
    def watching(self) -> Generator[tuple[ChangeSet, Watcher]]:
        """Open a watch; yields what there is, and the watcher that tells every change after it.

        Raises:
            NotServingError: too many are open.
        """
        if len(self._open) >= MAX_WATCHERS:
            raise NotServingError("too many watchers: use another replica")
        watcher = Watcher()
        self._open.add(watcher)
        metrics.WATCHERS.set(len(self._open))
        try:
            # No await since the watcher was added: nothing is missed, nothing comes twice.
            yield self._view.snapshot(), watcher
        finally:
            self._open.discard(watcher)
            metrics.WATCHERS.set(len(self._open))

    def tell(self, changes: ChangeSet) -> None:
        """Queue a change set for every watcher."""
        for watcher in self._open:
            watcher.tell(changes)

    def close(self) -> None:
        """End every watch: the service is stopping."""
        for watcher in self._open:
            watcher.end("the service is stopping: open the stream again")
