"""The token format: what a token grants, sealed with AES-256-GCM so that it is verified without a look-up. Pure.

A token is URL-safe Base64 without padding of

    version    1 byte, 1
    key id     4 bytes: which token key sealed it, so that keys can be replaced while their tokens live on
    nonce      12 bytes
    ciphertext with tag, of a JSON object; the 17 bytes before are associated data

Base64 holds no `|`, `,` or `&`, so tokens need no escaping in passwords and query strings.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
import itertools
import json
import re
from collections.abc import Callable, Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.auth.domain.records import TokenKey

KEY_BYTES = 32
KEY_ID_BYTES = 4
NONCE_BYTES = 12
TOKEN_ID_BYTES = 16
MAX_TOKEN_CHARACTERS = 65_535
"""A longer text is no token: passwords and payloads of `$SYS/uploadToken` have no room for it."""
MAX_RESOURCES = 100
MAX_RESOURCES_BYTES = 12_800
"""Of all resources of a token together, so that three tokens fit into a password."""
MIN_LIFETIME_MS = 60_000
MAX_LIFETIME_MS = 30 * 86_400_000
KEY_SETTLING_MS = 10_000
"""A new token key seals only after this time, when every replica of auth knows it."""
MAX_KEYS = 100

_VERSION = b"\x01"
_HEADER_BYTES = len(_VERSION) + KEY_ID_BYTES + NONCE_BYTES
_TEXT = re.compile(r"[A-Za-z0-9_-]+\Z")


class BadTokenError(ValueError):
    """A text that no token key sealed."""


class TokenType(enum.StrEnum):
    """What a token is for."""

    READ = "R"
    """Subscribe."""
    WRITE = "W"
    """Publish."""
    READ_WRITE = "RW"

    def covers(self, wanted: TokenType) -> bool:
        """Say whether a token of this type may serve as one of `wanted`."""
        return set(wanted) <= set(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a token says."""

    token_id: str
    """32 hexadecimal digits; it is revoked by them."""
    instance_id: str
    access_key_id: str
    key_time_ms: int
    """When its AccessKey was created: one made later under the same id is another."""
    actions: TokenType
    resources: tuple[str, ...]
    """Topic names and filters that it covers."""
    expire_time_ms: int


def seal(token: Token, key: TokenKey, nonce: bytes) -> str:
    """Return the text of a token.

    Args:
        token: what it says.
        key: that seals it; it has a cipher.
        nonce: 12 random bytes, never used before.
    """
    if key.cipher is None:
        raise AssertionError("a token key that can't be decrypted is not chosen for sealing")
    header = _VERSION + bytes.fromhex(key.key_id) + nonce
    body = json.dumps(dataclasses.astuple(token), ensure_ascii=False, separators=(",", ":")).encode()
    sealed = header + key.cipher.encrypt(nonce, body, header)
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def unseal(text: str, cipher_of: Callable[[str], AESGCM | None]) -> Token:
    """Return what a token says.

    Args:
        text: as sent by a client.
        cipher_of: returns the cipher of a key id, None when there is none.

    Raises:
        BadTokenError: no key that is known sealed it, or it was changed.
    """
    if len(text) > MAX_TOKEN_CHARACTERS or not _TEXT.match(text):
        raise BadTokenError("no token")
    try:
        sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise BadTokenError("no token") from error
    header = sealed[:_HEADER_BYTES]
    if not header.startswith(_VERSION) or len(sealed) <= _HEADER_BYTES:
        raise BadTokenError("no token")
    cipher = cipher_of(header[len(_VERSION) :][:KEY_ID_BYTES].hex())
    if cipher is None:
        raise BadTokenError("unknown token key")
    try:
        body = cipher.decrypt(header[-NONCE_BYTES:], sealed[_HEADER_BYTES:], header)
    except InvalidTag as error:
        raise BadTokenError("changed or forged") from error
    # Only this module seals, so what was opened is well-formed.
    token_id, instance_id, access_key_id, key_time_ms, actions, resources, expire_time_ms = json.loads(body)
    return Token(
        token_id=token_id,
        instance_id=instance_id,
        access_key_id=access_key_id,
        key_time_ms=key_time_ms,
        actions=TokenType(actions),
        resources=tuple(resources),
        expire_time_ms=expire_time_ms,
    )


def sealing_key(keys: Iterable[TokenKey], now_ms: int) -> TokenKey | None:
    """Return the key that seals new tokens: the newest that has settled, else the oldest; None: there is none."""
    usable = by_age(key for key in keys if key.cipher is not None)
    settled = [key for key in usable if key.create_time_ms + KEY_SETTLING_MS <= now_ms]
    return settled[-1] if settled else next(iter(usable), None)


def spent_keys(keys: Iterable[TokenKey], now_ms: int) -> list[TokenKey]:
    """Return the keys whose tokens have all expired: a newer one has sealed for longer than a token lives."""
    settled = now_ms - 2 * KEY_SETTLING_MS - MAX_LIFETIME_MS
    return [older for older, newer in itertools.pairwise(by_age(keys)) if newer.create_time_ms <= settled]


def by_age(keys: Iterable[TokenKey]) -> list[TokenKey]:
    """Return keys, the oldest first."""
    return sorted(keys, key=lambda key: (key.create_time_ms, key.key_id))
