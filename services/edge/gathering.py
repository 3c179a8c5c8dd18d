"""Gathers questions of connections into calls: while one call is on its way, the next one gathers.

A call costs as much as twenty questions. So that a storm does not become one call for every few of them, calls are some
milliseconds apart; a question that comes after a while is asked at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """Questions that wait for their call; owned by one event loop."""

    def __init__(
        self, send: Callable[[list[T]], Awaitable[None]], *, max_batch: int, max_waiting: int, apart_s: float = 0.0
    ) -> None:
        """Start empty.

        Args:
            send: asks all questions of a batch and sees to their answers.
            max_batch: questions in one call.
            max_waiting: questions that may wait; policy when full: a further one is refused.
            apart_s: seconds from the start of a call to that of the next one, at least.
        """
        self._send = send
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._apart_s = apart_s
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
        loop = asyncio.get_running_loop()
        next_call = 0.0
        while True:
            await self._wake.wait()
            pause_s = next_call - loop.time()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            next_call = loop.time() + self._apart_s
            batch = self._waiting[: self._max_batch]
            del self._waiting[: self._max_batch]
            if not self._waiting:
                self._wake.clear()
            await self._send(batch)
            del batch  # holds connections
