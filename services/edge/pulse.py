"""How long messages of QoS 1 and 2 take to be acknowledged, by one of them at a time. Hot path.

Those of topics with a log are left out: what they wait for is JetStream.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from services.edge.columns import Columns, Unacknowledged
from services.edge.policy import FLAG_LOGGED

LATE_S: Final = 0.002
"""What takes so much longer than the fastest is late: publishers with a small window wait for it."""
DRIFT: Final = 2e-5
"""What the time of the fastest rises by in each second, since ways become longer: a millisecond a minute."""
LOST_S: Final = 1.0
"""What takes longer than that does not wait for messages of QoS 0."""


class Pulse:
    """Watches one message after the other. Owned by one event loop."""

    __slots__ = ("_is_judged", "_judged_at", "_least_s", "_sent_at", "_sequence")

    def __init__(self) -> None:
        self._least_s = 0.0  # what one takes when nothing is in its way, the network's part; 0: not known
        self._judged_at = 0.0  # when that was known
        self._sequence = 0  # of the one that is watched
        self._sent_at = 0.0
        self._is_judged = False  # it is known to be late

    def sent(self, columns: Columns, unacknowledged: Mapping[int, Unacknowledged]) -> None:
        """Note that messages go."""
        if not self._sequence:
            entry = unacknowledged.get(columns.sequences[-1])
            if entry is not None and not entry.rule.flags & FLAG_LOGGED:
                self._sequence = columns.sequences[-1]
                self._sent_at = time.monotonic()
                self._is_judged = False

    def look(self, unacknowledged: Mapping[int, Unacknowledged]) -> bool | None:
        """Judge the one that is watched, once, by whether it is acknowledged.

        Returns:
            Whether it is late; None: nothing new is known.
        """
        if not self._sequence:
            return None
        now = time.monotonic()
        age_s = now - self._sent_at
        is_late = age_s > self._least_s + LATE_S
        if self._sequence not in unacknowledged:
            self._sequence = 0
            risen_s = self._least_s + DRIFT * (now - self._judged_at)
            self._least_s = min(age_s, risen_s) if self._least_s else age_s
            self._judged_at = now
        elif age_s > LOST_S:
            self._sequence = 0
            return None
        elif not is_late:
            return None
        if self._is_judged:
            return None
        self._is_judged = True
        return is_late
