"""Revoked tokens, until they would have expired. Pure."""

from __future__ import annotations

MIN_SWEPT = 1_024
"""Fewer revocations are not worth looking through."""


class Revocations:
    """Ids of revoked tokens. Owned by one event loop."""

    def __init__(self) -> None:
        self._expiry: dict[str, int] = {}
        self._sweep_at = MIN_SWEPT

    def __len__(self) -> int:
        return len(self._expiry)

    def is_revoked(self, token_id: str) -> bool:
        """Say whether a token was revoked; one that has expired may be forgotten."""
        return token_id in self._expiry

    def ids(self) -> list[str]:
        """Return every id."""
        return list(self._expiry)

    def add(self, token_id: str, expire_time_ms: int, now_ms: int) -> bool:
        """Note a revoked token; returns whether it is new. Forgets expired ones each time that their number doubles."""
        is_new = token_id not in self._expiry
        self._expiry[token_id] = expire_time_ms
        if len(self._expiry) >= self._sweep_at:
            self._expiry = {known: expiry for known, expiry in self._expiry.items() if expiry > now_ms}
            self._sweep_at = max(MIN_SWEPT, 2 * len(self._expiry))
        return is_new
