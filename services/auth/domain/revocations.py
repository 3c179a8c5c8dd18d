"""Revoked tokens, until they would have expired. Pure."""

from __future__ import annotations


class Revocations:
    """Ids of revoked tokens. Owned by one event loop."""

    def __init__(self) -> None:
        self._expiry: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._expiry)

    def is_revoked(self, token_id: str) -> bool:
        """Say whether a token was revoked; one that has expired may be forgotten."""
        return token_id in self._expiry

    def ids(self) -> list[str]:
        """Return every id."""
        return list(self._expiry)

    def add(self, token_id: str, expire_time_ms: int) -> bool:
        """Note a revoked token; returns whether it is new."""
        is_new = token_id not in self._expiry
        self._expiry[token_id] = expire_time_ms
        return is_new

    def forget_expired(self, now_ms: int) -> None:
        """Forget the tokens that have expired by themselves."""
        for token_id in [token_id for token_id, expiry in self._expiry.items() if expiry <= now_ms]:
            del self._expiry[token_id]
