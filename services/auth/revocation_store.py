"""The KV bucket `revoked_tokens`: each revoked token until it would have expired, by the age that JetStream keeps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from nats.aio.client import Client
from typing_extensions import override

from services.auth import metrics
from services.auth.bucket import Bucket
from services.auth.domain.resources import ChangeSet
from services.auth.domain.revocations import Revocations
from services.auth.domain.tokens import Token

logger = logging.getLogger(__name__)

BUCKET = "revoked_tokens"
GRACE_S = 60
"""A revocation outlives its token by this, so that clocks which differ bring no token back to life."""


class RevocationStore(Bucket[int]):
    """All revocations, stored and in memory; an entry is the expiry of its token in milliseconds since 1970.

    Args:
        client: connected to NATS.
        revocations: the view, written only by `run`.
        changed: called with what the edges must be told, after the view has changed.
    """

    def __init__(self, *, client: Client, revocations: Revocations, changed: Callable[[ChangeSet], None]) -> None:
        super().__init__(client=client, name=BUCKET)
        self._revocations = revocations
        self._changed = changed

    async def revoke(self, tokens: Sequence[Token]) -> None:
        """Revoke tokens, and wait until the view shows it. Idempotent.

        Raises:
            UnavailableError: NATS does not answer; some may be revoked.
        """
        now_ms = _now_ms()
        await self.create_entries(
            (token.token_id, str(token.expire_time_ms).encode(), _ttl_s(token.expire_time_ms, now_ms))
            for token in tokens
        )

    @override
    def decoded(self, key: str, stored: bytes) -> int | None:
        if stored.isdigit():
            return int(stored)
        logger.error("stored revocation can't be read", extra={"key": key})
        return None

    @override
    def replace(self, entries: dict[str, int]) -> None:
        now_ms = _now_ms()
        self._tell([key for key, expiry in entries.items() if self._revocations.add(key, expiry, now_ms)])

    @override
    def apply(self, key: str, entry: int | None) -> None:
        # A revocation is never taken back: what is gone has expired.
        if entry is not None and self._revocations.add(key, entry, _now_ms()):
            self._tell([key])

    def _tell(self, token_ids: list[str]) -> None:
        metrics.REVOKED_TOKENS.set(len(self._revocations))
        if token_ids:
            self._changed(ChangeSet(revoked_token_ids=token_ids))


def _ttl_s(expire_time_ms: int, now_ms: int) -> int:
    return max(1, math.ceil((expire_time_ms - now_ms) / 1_000) + GRACE_S)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
