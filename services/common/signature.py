"""Signatures of devices and of HTTP queries (product.md sections 2.1 and 2.3): Base64 of HMAC-SHA1.

Pure. SHA-1 is what the protocol prescribes; HMAC does not rest on its collision resistance.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.hmac import HMAC


def signer(secret: str) -> HMAC:
    """Return what signs with a secret; it costs more than a signature, so keep it where one secret signs many texts."""
    return HMAC(secret.encode(), SHA1())  # noqa: S303 - see above


def sign(secret: str | HMAC, text: str) -> str:
    """Return `Base64(HMAC-SHA1(secret, text))`, standard alphabet, padded.

    Args:
        secret: or the `signer` made of it, which stays as it is.
        text: to be signed.
    """
    return _signature(secret, text).decode()


def is_signed(secret: str | HMAC, text: str, signature: str | bytes) -> bool:
    """Say whether `signature` is that of `text`, in a time that does not depend on where they differ; see `sign`."""
    given = signature.encode(errors="replace") if isinstance(signature, str) else signature
    return hmac.compare_digest(_signature(secret, text), given)


def string_to_sign(parameters: Mapping[str, str | Iterable[str]]) -> str:
    """Return the text that is signed for a query: `key=value` sorted by key, joined by `&`.

    Args:
        parameters: raw values, not URL-encoded; several values of a key are sorted and joined by `,`.
    """
    return "&".join(f"{key}={_joined(value)}" for key, value in sorted(parameters.items()))


def _signature(secret: str | HMAC, text: str) -> bytes:
    made = signer(secret) if isinstance(secret, str) else secret.copy()
    made.update(text.encode())
    return base64.b64encode(made.finalize())


def _joined(value: str | Iterable[str]) -> str:
    return value if isinstance(value, str) else ",".join(sorted(value))
