"""Gathers questions of connections into calls: while one call is on its way, the next one gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """Questions that wait for their call; owned by one event loop."""

    def __init__(self, send: Callable[[list[T]], Awaitable[None]], *, max_batch: int, max_waiting: int) -> None:
        """Start empty.

        Args:
            send: asks all questions of a batch and sees to their answers.
            max_batch: questions in one call.
            max_waiting: questions that may wait; policy when full: a further one is refused.
        """
        self._send = send
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: list[T] = []
        self._wake = asyncio.Event()

    def add(self, question: T) -> bool:
        """Have a question asked; False: too many wait."""
        if len(self._waiting) >= self._max_waiting:
            return False
        self._waiting.append(question)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Send what has gathered, one call at a time, until cancelled."""
        while True:
            await self._wake.wait()
            batch = self._waiting[: self._max_batch]
            del self._waiting[: self._max_batch]
            if not self._waiting:
                self._wake.clear()
            await self._send(batch)
