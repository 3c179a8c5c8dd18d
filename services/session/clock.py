"""Wall clock that never goes back."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Milliseconds since 1970 that rise at least as fast as time passes, so that deadlines come due.

    Follows the wall clock when that is set forward; when it is set back, goes on from where it was.
    """

    def __init__(
        self, *, wall_s: Callable[[], float] = time.time, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._offset_s = wall_s() - monotonic_s()

    def now_ms(self) -> int:
        """Return the time."""
        monotonic = self._monotonic_s()
        self._offset_s = max(self._offset_s, self._wall_s() - monotonic)
        return int((monotonic + self._offset_s) * 1000)
