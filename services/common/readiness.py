"""What a service still waits for, as its health check tells it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

logger = logging.getLogger(__name__)


class Readiness:
    """The dependencies of a service and which of them are missing. Owned by one event loop.

    Args:
        dependencies: names; all are missing at first.
    """

    def __init__(self, *dependencies: str) -> None:
        self._missing = set(dependencies)
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether nothing is missing."""
        return not self._missing

    @property
    def missing(self) -> list[str]:
        """Names of what is missing, sorted."""
        return sorted(self._missing)

    def mark(self, dependency: str, *, present: bool) -> None:
        """Note that a dependency came or went, and log the change."""
        if present == (dependency not in self._missing):
            return
        if present:
            self._missing.discard(dependency)
        else:
            self._missing.add(dependency)
        logger.info(
            "dependency came" if present else "dependency missing",
            extra={"dependency": dependency, "missing": self.missing},
        )
        for listener in self._listeners:
            listener()

    async def wait(self, *, besides: Collection[str] = ()) -> None:
        """Wait until nothing is missing, `besides` what the caller itself will bring."""
        changed = asyncio.Event()
        self._listeners.append(changed.set)
        while self._missing.difference(besides):
            await changed.wait()
            changed.clear()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change."""
        self._listeners.append(listener)


def names(dependency: str, count: int) -> list[str]:
    """Return what the processes of a replicated dependency are called: `router`, or `router-0`, `router-1`, ..."""
    return [dependency] if count == 1 else [f"{dependency}-{index}" for index in range(count)]
