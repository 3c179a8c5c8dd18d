"""Channel ids: 32 hexadecimal digits for each TCP connection, at random."""

from __future__ import annotations

import os

DIGITS = 32
AT_ONCE = 256
"""Ids for which the kernel is asked at once: asking costs twenty times as much as an id."""


class ChannelIds:
    """Those of an edge."""

    __slots__ = ("_digits", "_used")

    def __init__(self) -> None:
        self._digits = ""
        self._used = 0  # of these digits

    def next(self) -> str:
        """Return one that was never returned."""
        start = self._used
        if start >= len(self._digits):
            self._digits = os.urandom(AT_ONCE * DIGITS // 2).hex()
            start = 0
        self._used = start + DIGITS
        return self._digits[start : start + DIGITS]
