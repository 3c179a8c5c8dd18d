"""Issues, revokes and examines tokens, for the gRPC and the HTTP API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from services.auth.domain import token_checks, tokens
from services.auth.domain.token_checks import TokenCode
from services.auth.domain.tokens import Token, TokenType
from services.auth.domain.view import View
from services.auth.revocation_store import RevocationStore
from services.common import topics
from services.common.errors import InvalidFieldError, NotFoundError, NotPermittedError, UnavailableError
from services.common.topics import InvalidTopicError

MAX_TOKENS = 1_000
"""Tokens that one call revokes."""


class TokenIssuer:
    """Makes tokens and takes them back. Owned by one event loop.

    Args:
        view: what exists and what was revoked.
        store: where revocations are kept.
    """

    def __init__(self, *, view: View, store: RevocationStore) -> None:
        self._view = view
        self._store = store

    def apply(
        self,
        *,
        instance_id: str,
        access_key_id: str,
        actions: TokenType,
        resources: Sequence[str],
        expire_time_ms: int,
    ) -> tuple[str, Token]:
        """Return a new token and what it says.

        Args:
            instance_id: that it is for.
            access_key_id: that it belongs to.
            actions: what it allows.
            resources: topic names and filters.
            expire_time_ms: at least 60 s ahead; more than 30 days ahead is cut to 30 days.

        Raises:
            InvalidFieldError: a field is out of its range.
            NotFoundError: there is no such instance or AccessKey.
            NotPermittedError: the AccessKey may not do what the token would allow.
            UnavailableError: there is no token key.
        """
        now_ms = _now_ms()
        check_resources(resources)
        if expire_time_ms < now_ms + tokens.MIN_LIFETIME_MS:
            raise InvalidFieldError("expire_time_ms must be at least 60 s ahead", field="expire_time_ms")
        if self._view.resources.instance(instance_id) is None:
            raise NotFoundError(f"instance/{instance_id} does not exist", resource=f"instance/{instance_id}")
        key = self._view.resources.access_key(instance_id, access_key_id)
        if key is None:
            raise NotFoundError(f"accesskey/{access_key_id} does not exist", resource=f"accesskey/{access_key_id}")
        if (TokenType.READ in actions and not key.subscribe) or (TokenType.WRITE in actions and not key.publish):
            raise NotPermittedError(
                "the AccessKey may not do what the token would allow", resource=f"accesskey/{access_key_id}"
            )
        token_key = tokens.sealing_key(self._view.resources.token_keys(), now_ms)
        if token_key is None:
            raise UnavailableError("there is no token key: see the log of auth", dependency="token key")
        token = Token(
            token_id=secrets.token_hex(tokens.TOKEN_ID_BYTES),
            instance_id=instance_id,
            access_key_id=access_key_id,
            key_time_ms=key.create_time_ms,
            actions=actions,
            resources=tuple(resources),
            expire_time_ms=min(expire_time_ms, now_ms + tokens.MAX_LIFETIME_MS),
        )
        return tokens.seal(token, token_key, secrets.token_bytes(tokens.NONCE_BYTES)), token

    async def revoke(self, texts: Sequence[str]) -> list[TokenCode]:
        """Revoke tokens, and return for each VALID (revoked now), REVOKED (before), FORGED or EXPIRED.

        Raises:
            UnavailableError: NATS does not answer; some may be revoked.
        """
        examined = [self.examine(text) for text in texts]
        # A token whose AccessKey is gone is revoked all the same: a key of its name may be made again.
        wanted = (TokenCode.VALID, TokenCode.NOT_PERMITTED)
        await self._store.revoke([token for code, token in examined if token is not None and code in wanted])
        return [TokenCode.VALID if code in wanted else code for code, _ in examined]

    def examine(self, text: str) -> tuple[TokenCode, Token | None]:
        """Return what a token is worth by itself, and what it says when it can be opened."""
        return token_checks.examine(text, self._view, _now_ms())


def check_resources(resources: Sequence[str]) -> None:
    """Accept what a token may be applied for.

    Raises:
        InvalidFieldError: there are too few or too many, or one is no topic filter.
    """
    if not 1 <= len(resources) <= tokens.MAX_RESOURCES:
        raise InvalidFieldError(f"resources must be 1 to {tokens.MAX_RESOURCES}", field="resources")
    for resource in resources:
        try:
            topics.validate_topic_filter(resource)
        except InvalidTopicError as error:
            raise InvalidFieldError(
                f"resources must be topics or filters: {error.message}", field="resources"
            ) from None
    if sum(len(resource.encode()) for resource in resources) > tokens.MAX_RESOURCES_BYTES:
        raise InvalidFieldError(
            f"resources must have at most {tokens.MAX_RESOURCES_BYTES} bytes together", field="resources"
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
