"""Waits for several answers without a task."""

from __future__ import annotations

from collections.abc import Callable


def countdown(count: int, done: Callable[[], None]) -> Callable[[], None]:
    """Return a function whose `count`-th call calls `done`."""
    waiting = count

    def step() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            done()

    return step
