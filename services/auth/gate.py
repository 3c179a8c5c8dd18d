"""Whether the servicers may answer: not before the resources are loaded, not while stopping."""

from __future__ import annotations

import asyncio

from services.common.errors import NotServingError


class Gate:
    """Closed at first. Owned by one event loop."""

    def __init__(self) -> None:
        self._closed_because = "resources are not loaded yet: retry"
        self.closed = asyncio.Event()
        """Set when the service is stopping."""

    def open(self) -> None:
        """Let calls in."""
        self._closed_because = ""

    def close(self) -> None:
        """Refuse calls from now on; running ones end by themselves."""
        self._closed_because = "the service is stopping: retry"
        self.closed.set()

    def check(self) -> None:
        """Refuse the call when closed.

        Raises:
            NotServingError: it is.
        """
        if self._closed_because:
            raise NotServingError(self._closed_because)
