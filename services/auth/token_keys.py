"""Creation and rotation of the keys that seal tokens."""

from __future__ import annotations

import base64
import secrets
import time

from services.auth.domain import tokens
from services.auth.domain.records import TokenKey
from services.auth.domain.resources import Resources
from services.auth.sealing import Sealer, token_key_owner
from services.auth.store import Store
from services.common.errors import InvalidFieldError


class TokenKeys:
    """Makes token keys, and deletes those that are spent. Owned by one event loop.

    Args:
        store: where records are kept.
        resources: the view that `store` writes.
        sealer: seals the keys.
    """

    def __init__(self, *, store: Store, resources: Resources, sealer: Sealer) -> None:
        self._store = store
        self._resources = resources
        self._sealer = sealer

    async def ensure(self) -> None:
        """Make the first key, unless there is one that can be used.

        Raises:
            UnavailableError: NATS does not answer.
        """
        if not any(key.cipher for key in self._resources.token_keys()):
            await self._create()

    async def rotate(self) -> tuple[TokenKey, list[TokenKey]]:
        """Make a new key, and delete keys whose tokens have all expired.

        Returns:
            The new key, and all there are now, oldest first.

        Raises:
            InvalidFieldError: there are too many keys already.
            UnavailableError: NATS does not answer.
        """
        for key in tokens.spent_keys(self._resources.token_keys(), _now_ms()):
            await self._store.delete(key.key)
        if len(self._resources.token_keys()) >= tokens.MAX_KEYS:
            raise InvalidFieldError(
                f"there are {tokens.MAX_KEYS} token keys: wait until tokens have expired", field="token_keys"
            )
        made = await self._create()
        return made, tokens.by_age(self._resources.token_keys())

    async def _create(self) -> TokenKey:
        key_id = secrets.token_hex(tokens.KEY_ID_BYTES)
        made = base64.b64encode(secrets.token_bytes(tokens.KEY_BYTES)).decode()
        sealed = self._sealer.seal(made, *token_key_owner(key_id))
        key = TokenKey(key_id=key_id, sealed_secret=sealed, create_time_ms=_now_ms())
        await self._store.create(key)
        return key


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
