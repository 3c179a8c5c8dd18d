"""Who signed a text. Pure.

An unknown instance, an unknown AccessKey and a wrong signature take the same work, so that a stranger can't find out
which ids exist: an unknown key is taken for one with a secret that signs nothing.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.hmac import HMAC

from services.auth.domain.records import AccessKey
from services.auth.domain.resources import Resources
from services.common import signature

# As long as the secrets that are created here; what it signs is never accepted.
_NO_SECRET = "x" * 32
_NO_SIGNER = signature.signer(_NO_SECRET)


def is_signed_by(secret: str | None, text: str, given: bytes) -> bool:
    """Say whether a secret signed `text`; without a secret it takes as long, and nothing did."""
    is_right = signature.is_signed(secret or _NO_SECRET, text, given)
    return is_right and bool(secret)


def _is_signed_by_key(signs: HMAC | None, text: str, given: bytes) -> bool:
    """Say the same of the signer of an AccessKey, which is ready: without one it takes as long as with one."""
    is_right = signature.is_signed(signs or _NO_SIGNER, text, given)
    return is_right and signs is not None


def signer(
    instance_id: str, access_key_id: str, text: str, given: bytes, resources: Resources
) -> tuple[AccessKey | None, str]:
    """Return the AccessKey that signed `text`, or why there is none, for the log of operators."""
    instance = resources.instance(instance_id)
    key = resources.access_key(instance_id, access_key_id)
    is_right = _is_signed_by_key(key.signer if key is not None else None, text, given)
    if instance is None:
        return None, "unknown instance"
    if key is None:
        return None, "unknown AccessKey"
    if key.signer is None:
        return None, "secret of the AccessKey can't be decrypted: see the log of auth"
    return (key, "") if is_right else (None, "wrong signature")


def signers(access_key_id: str, text: str, given: bytes, resources: Resources) -> list[AccessKey]:
    """Return the AccessKeys of an id that signed `text`, in whatever instance; usually one or none."""
    candidates = resources.signers(access_key_id)
    if not candidates:
        _is_signed_by_key(None, text, given)
    return [
        key
        for key in candidates
        if _is_signed_by_key(key.signer, text, given) and resources.instance(key.instance_id) is not None
    ]
