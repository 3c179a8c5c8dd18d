"""`weimq.auth.v1.TokenService`: checks requests and hands them to `TokenIssuer`."""

from __future__ import annotations

from typing import Any

from grpc import aio
from typing_extensions import override

from services.auth.attempts import TOKEN_TYPES
from services.auth.auth_servicer import TOKEN_TYPES_OF
from services.auth.domain.records import TokenKey
from services.auth.domain.token_checks import TokenCode
from services.auth.gate import Gate
from services.auth.issuing import MAX_TOKENS, TokenIssuer
from services.auth.token_keys import TokenKeys
from services.common.errors import InvalidFieldError
from weimq.auth.v1 import token_pb2, token_pb2_grpc

Context = aio.ServicerContext[Any, Any]


class TokenServicer(token_pb2_grpc.TokenServiceServicer):
    """Answers operators, the command line and services of the mesh."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.issuer: TokenIssuer | None = None
        """Set before the gate opens, like `token_keys`: they need NATS, which connects after the server has started."""
        self.token_keys: TokenKeys | None = None

    @property
    def _issuer(self) -> TokenIssuer:
        self._gate.check()
        if self.issuer is None:
            raise AssertionError("the gate opened before there was an issuer")
        return self.issuer

    @override
    async def ApplyToken(self, request: token_pb2.ApplyTokenRequest, context: Context) -> token_pb2.ApplyTokenResponse:
        issuer = self._issuer
        actions = TOKEN_TYPES_OF.get(request.actions)
        if actions is None:
            raise InvalidFieldError("actions must be a type of tokens", field="actions")
        text, token = issuer.apply(
            instance_id=request.instance_id,
            access_key_id=request.access_key_id,
            actions=actions,
            resources=request.resources,
            expire_time_ms=request.expire_time_ms,
        )
        return token_pb2.ApplyTokenResponse(token=text, token_id=token.token_id, expire_time_ms=token.expire_time_ms)

    @override
    async def RevokeTokens(
        self, request: token_pb2.RevokeTokensRequest, context: Context
    ) -> token_pb2.RevokeTokensResponse:
        issuer = self._issuer
        if not 1 <= len(request.tokens) <= MAX_TOKENS:
            raise InvalidFieldError(f"must hold 1 to {MAX_TOKENS} tokens", field="tokens")
        codes = await issuer.revoke(request.tokens)
        # Here it does not matter when a token was revoked.
        return token_pb2.RevokeTokensResponse(
            codes=[TokenCode.VALID if code is TokenCode.REVOKED else code for code in codes]
        )

    @override
    async def QueryToken(self, request: token_pb2.QueryTokenRequest, context: Context) -> token_pb2.QueryTokenResponse:
        code, token = self._issuer.examine(request.token)
        if token is None:
            return token_pb2.QueryTokenResponse(code=code)
        return token_pb2.QueryTokenResponse(
            code=code,
            token_id=token.token_id,
            instance_id=token.instance_id,
            access_key_id=token.access_key_id,
            actions=TOKEN_TYPES[token.actions],
            resources=token.resources,
            expire_time_ms=token.expire_time_ms,
        )

    @override
    async def RotateTokenKey(
        self, request: token_pb2.RotateTokenKeyRequest, context: Context
    ) -> token_pb2.RotateTokenKeyResponse:
        self._gate.check()
        if self.token_keys is None:
            raise AssertionError("the gate opened before there were token keys")
        key, keys = await self.token_keys.rotate()
        return token_pb2.RotateTokenKeyResponse(token_key=_token_key(key), token_keys=map(_token_key, keys))


def _token_key(key: TokenKey) -> token_pb2.TokenKey:
    return token_pb2.TokenKey(key_id=key.key_id, create_time_ms=key.create_time_ms)
