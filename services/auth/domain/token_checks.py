"""What tokens are worth (product.md section 2.2). Pure.

A token that can't be opened, whatever the reason, is answered alike: nobody learns which part of a forgery failed.
"""

from __future__ import annotations

import dataclasses
import enum

from services.auth.domain import tokens
from services.auth.domain.tokens import BadTokenError, Token, TokenType
from services.auth.domain.view import View


class TokenCode(enum.IntEnum):
    """Code of `$SYS/tokenInvalidNotice`."""

    VALID = 0
    FORGED = 1
    """No token key opens it: no token at all, changed, or sealed with a key that is gone."""
    EXPIRED = 2
    REVOKED = 3
    WRONG_TYPE = 5
    """It was applied for with other actions."""
    BAD_SIGNATURE = 8
    """It was signed for by another AccessKey, or in another instance, than the client names."""
    NOT_PERMITTED = -1
    """Its AccessKey is gone, or another one has its id now."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a token is worth; `token` is set when it is valid."""

    code: TokenCode
    token_type: TokenType
    token: Token | None = None


class BadPasswordError(ValueError):
    """A password that is no set of tokens."""


def parse_password(password: bytes) -> dict[TokenType, str]:
    """Return the tokens of `R|tokenA|W|tokenB`, by type; none for an empty password.

    Raises:
        BadPasswordError: it is not of that form, or gives two tokens for a type.
    """
    if not password:
        return {}
    try:
        parts = password.decode().split("|")
    except UnicodeDecodeError as error:
        raise BadPasswordError("no text") from error
    types, texts = parts[::2], parts[1::2]
    if len(types) != len(texts):
        raise BadPasswordError("types and tokens do not alternate")
    found: dict[TokenType, str] = {}
    for name, text in zip(types, texts, strict=True):
        try:
            token_type = TokenType(name)
        except ValueError as error:
            raise BadPasswordError("unknown type") from error
        if token_type in found:
            raise BadPasswordError("two tokens for a type")
        found[token_type] = text
    return found


def check(
    text: str, token_type: TokenType, *, instance_id: str, access_key_id: str, view: View, now_ms: int
) -> Verdict:
    """Say what a token of a client is worth.

    Args:
        text: the token as sent.
        token_type: what the client says it is for.
        instance_id: the client's.
        access_key_id: that of its user name.
        view: what exists and what was revoked.
        now_ms: milliseconds since 1970.
    """
    code, token = examine(text, view, now_ms)
    if token is None:
        return Verdict(code, token_type)
    if (token.instance_id, token.access_key_id) != (instance_id, access_key_id):
        return Verdict(TokenCode.BAD_SIGNATURE, token_type)
    if code is not TokenCode.VALID:
        return Verdict(code, token_type)
    if not token.actions.covers(token_type):
        return Verdict(TokenCode.WRONG_TYPE, token_type)
    return Verdict(code, token_type, token)


def examine(text: str, view: View, now_ms: int) -> tuple[TokenCode, Token | None]:
    """Say what a token is worth by itself, and what it says when it can be opened."""
    try:
        token = tokens.unseal(text, view.resources.token_cipher)
    except BadTokenError:
        return TokenCode.FORGED, None
    key = view.resources.access_key(token.instance_id, token.access_key_id)
    if key is None or key.create_time_ms != token.key_time_ms or view.resources.instance(token.instance_id) is None:
        return TokenCode.NOT_PERMITTED, token
    if token.expire_time_ms <= now_ms:
        return TokenCode.EXPIRED, token
    if view.revocations.is_revoked(token.token_id):
        return TokenCode.REVOKED, token
    return TokenCode.VALID, token
