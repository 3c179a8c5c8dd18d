"""Waiting for a condition with a deadline, instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAIT_S = 30.0
"""How long to wait for what takes milliseconds on an idle machine: others may take the CPU for seconds."""


def until(condition: Callable[[], T], *, seconds: float = WAIT_S, what: str = "the condition") -> T:
    """Return the first true value of `condition`.

    Raises:
        AssertionError: it stayed false for `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s; last value: {value!r}")
        time.sleep(0.01)


async def eventually(condition: Callable[[], object], *, seconds: float = WAIT_S) -> None:
    """Wait for a condition of what runs in this event loop.

    Raises:
        TimeoutError: it stayed false for `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a condition has no event
            await asyncio.sleep(0.005)
