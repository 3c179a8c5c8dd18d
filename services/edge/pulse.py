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
DRIFT_S: Final = 1e-6
"""What the time of the fastest rises by with each other one, since ways become longer: some milliseconds a minute."""
LOST_S: Final = 1.0
"""What takes longer than that does not wait for messages of QoS 0."""


class Pulse:
    """Watches one message after the other. Owned by one event loop."""

    __slots__ = ("_least_s", "_sent_at", "_sequence", "is_late")

    def __init__(self) -> None:
        self._least_s = 0.0  # what one takes when nothing is in its way, the network's part; 0: not known
        self._sequence = 0
        self._sent_at = 0.0
        self.is_late = False
        """Whether the last one took, or takes, too long."""

    def sent(self, columns: Columns, unacknowledged: Mapping[int, Unacknowledged]) -> None:
        """Note that messages go."""
        if not self._sequence:
            entry = unacknowledged.get(columns.sequences[-1])
            if entry is not None and not entry.rule.flags & FLAG_LOGGED:
                self._sequence = columns.sequences[-1]
                self._sent_at = time.monotonic()

    def look(self, unacknowledged: Mapping[int, Unacknowledged]) -> None:
        """Judge by what is acknowledged and what is not."""
        if not (self._sequence or self.is_late):
            return
        age_s = time.monotonic() - self._sent_at
        if not self._sequence:
            self.is_late = bool(unacknowledged) and age_s <= LOST_S
        elif self._sequence not in unacknowledged:
            self._sequence = 0
            self.is_late = age_s > self._least_s + LATE_S
            self._least_s = min(age_s, self._least_s + DRIFT_S) if self._least_s else age_s
        elif age_s > LOST_S:
            self._sequence = 0
            self.is_late = False
        elif age_s > self._least_s + LATE_S:
            self.is_late = True
