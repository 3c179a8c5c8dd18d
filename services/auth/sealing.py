"""Encryption of stored secrets under the master key: AES-256-GCM.

Sealed form: 4 bytes of key id (the start of the SHA-256 of the master key), 12 bytes of nonce, ciphertext with tag; all
in Base64. What the secret belongs to, such as instance and AccessKey id, is associated data, so that a sealed secret
can't be moved to another owner.
"""

from __future__ import annotations

import base64
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.common.settings import Secret

KEY_BYTES = 32
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12


class SealError(ValueError):
    """A master key that is none, or a sealed secret that this master key did not seal."""


class Sealer:
    """Seals and opens secrets with one master key.

    Args:
        master_key: Base64 of 32 bytes.

    Raises:
        SealError: it is not.
    """

    def __init__(self, master_key: Secret) -> None:
        try:
            key = base64.b64decode(master_key.reveal(), validate=True)
        except ValueError as error:
            raise SealError("the master key must be Base64 of 32 bytes") from error
        if len(key) != KEY_BYTES:
            raise SealError(f"the master key must be Base64 of 32 bytes, not of {len(key)}")
        self._cipher = AESGCM(key)
        self._key_id = hashlib.sha256(key).digest()[:_KEY_ID_BYTES]

    def seal(self, secret: str, *owner: str) -> str:
        """Return the sealed form of a secret.

        Args:
            secret: to be sealed.
            owner: whose it is, such as instance and AccessKey id: texts without line feeds.
        """
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = self._cipher.encrypt(nonce, secret.encode(), _associated(owner))
        return base64.b64encode(self._key_id + nonce + ciphertext).decode()

    def unseal(self, sealed: str, *owner: str) -> str:
        """Return the secret that `seal` made `sealed` of, for the same owner.

        Raises:
            SealError: another master key sealed it, or it was changed or moved.
        """
        try:
            blob = base64.b64decode(sealed, validate=True)
        except ValueError as error:
            raise SealError("the sealed secret is not Base64") from error
        key_id, nonce, ciphertext = blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:][:_NONCE_BYTES], blob[16:]
        if key_id != self._key_id:
            raise SealError("the secret was sealed with another master key")
        try:
            return self._cipher.decrypt(nonce, ciphertext, _associated(owner)).decode()
        except (InvalidTag, ValueError) as error:
            raise SealError("the sealed secret was changed") from error


def _associated(owner: tuple[str, ...]) -> bytes:
    # No part holds a line feed, so the parts are unambiguous.
    return "\n".join(owner).encode()


def token_key_owner(key_id: str) -> tuple[str, ...]:
    """Return what a token key is sealed for; three parts, so that it is no AccessKey's."""
    return "", "tokenkey", key_id
