"""The edge's questions to auth, gathered: may this client connect, what is this token worth."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from grpc import aio

from services.common.linking import BACKOFF_S
from services.edge import tokens
from services.edge.gathering import Gathering
from services.edge.mqtt.packets import Connect, ConnectReturnCode
from services.edge.policies import Policies
from services.edge.policy import GROUP_SEPARATOR, Coverage
from services.edge.ports import Access, Client
from services.edge.tokens import Token
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 500
"""CONNECT packets in one call."""
MAX_TOKENS = 100
"""Tokens in one call: with `credentials.MAX_TOKEN_CHARACTERS` they fit into a message of gRPC."""
MAX_WAITING = 20_000
"""CONNECT packets that may wait for their call; a further one is answered CONNACK 3. As many tokens may wait; a further
one closes its connection."""
LARGE_BYTES = 4_096
"""A CONNECT beyond this is large."""
MAX_LARGE_BYTES = 16 << 20
"""Large CONNECT packets that may wait and be asked about together, so that a call fits into a message of gRPC whatever
strangers send; a further one is answered CONNACK 3."""
APART_S = 0.005
"""Between calls about CONNECT packets: in a storm, some forty come together and go on together."""
TIMEOUT_S = 5.0
"""Deadline of a call."""

_RETURN_CODES = {
    auth_pb2.CONNECT_OUTCOME_IDENTIFIER_REJECTED: ConnectReturnCode.IDENTIFIER_REJECTED,
    auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS: ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD,
    auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED: ConnectReturnCode.NOT_AUTHORIZED,
}
_TYPES = {
    tokens.READ: auth_pb2.TOKEN_TYPE_READ,
    tokens.WRITE: auth_pb2.TOKEN_TYPE_WRITE,
    tokens.READ_WRITE: auth_pb2.TOKEN_TYPE_READ_WRITE,
}
_TYPE_NAMES: dict[int, str] = {int(number): name for name, number in _TYPES.items()}


class _RefusedError(Exception):
    """A client may not connect; the text says why."""

    def __init__(self, return_code: int, reason: str) -> None:
        super().__init__(reason)
        self.return_code = return_code


class _Attempt(NamedTuple):
    client: Client
    message: auth_pb2.ConnectAttempt
    large_bytes: int


class _Check(NamedTuple):
    answer: Callable[[int, Token | None], None]
    message: auth_pb2.TokenCheck


class AuthClient:
    """Asks auth; owned by one event loop."""

    def __init__(self, *, channel: aio.Channel, policies: Policies, default_instance: str) -> None:
        self._stub = auth_pb2_grpc.AuthServiceStub(channel)
        self._policies = policies
        self._default_instance = default_instance
        self._large_bytes = 0
        self._attempts = Gathering(self._authenticate, max_batch=MAX_ATTEMPTS, max_waiting=MAX_WAITING, apart_s=APART_S)
        self._checks = Gathering(self._check_tokens, max_batch=MAX_TOKENS, max_waiting=MAX_WAITING)

    async def run(self) -> None:
        """Ask what has gathered, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._attempts.run())
            group.create_task(self._checks.run())

    # --- CONNECT -------------------------------------------------------------------------------

    def authenticate(self, client: Client, connect: Connect) -> None:
        """Check a CONNECT; see `ports.Authenticator`."""
        attempt = auth_pb2.ConnectAttempt(
            client_id=connect.client_id,
            user_name=connect.username,
            password=connect.password,
            default_instance_id=self._default_instance,
            address=client.address,
        )
        size = attempt.ByteSize()
        large_bytes = size if size > LARGE_BYTES else 0
        has_room = not large_bytes or self._large_bytes + large_bytes <= MAX_LARGE_BYTES
        if has_room and self._attempts.add(_Attempt(client, attempt, large_bytes)):
            self._large_bytes += large_bytes
        else:
            client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "too many connections at once")

    async def _authenticate(self, batch: list[_Attempt]) -> None:
        request = auth_pb2.AuthenticateRequest(attempts=[attempt.message for attempt in batch])
        try:
            response = await self._stub.Authenticate(request, timeout=TIMEOUT_S)
        except aio.AioRpcError as error:
            logger.warning("auth did not answer", extra={"code": error.code().name, "error": error.details()})
            for client, _, _ in batch:
                client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "auth did not answer")
            return
        finally:
            self._large_bytes -= sum(attempt.large_bytes for attempt in batch)
        for (client, _, _), result in zip(batch, response.results, strict=True):
            try:
                access = self._access(client.client_id, result)
            except _RefusedError as refusal:
                client.on_authenticated(None, refusal.return_code, str(refusal))
            else:
                client.on_authenticated(access, ConnectReturnCode.ACCEPTED, "")

    def _access(self, client_id: str, result: auth_pb2.ConnectResult) -> Access:
        """Return what a client may do; the watch may be behind the answer, or ahead of it."""
        if result.outcome != auth_pb2.CONNECT_OUTCOME_ACCEPTED:
            # An outcome that this edge does not know yet is a refusal, too.
            code = _RETURN_CODES.get(result.outcome, ConnectReturnCode.NOT_AUTHORIZED)
            raise _RefusedError(code, result.reason)
        policies = self._policies
        grant = policies.grant(result.instance_id, result.account_id, result.access_key_id)
        if grant is None or policies.is_outdated:
            raise _RefusedError(ConnectReturnCode.SERVER_UNAVAILABLE, "instance or AccessKey not known here")
        if not grant.instance.is_standard and not policies.has_group(
            result.instance_id, client_id.partition(GROUP_SEPARATOR)[0], result.account_id
        ):
            raise _RefusedError(ConnectReturnCode.SERVER_UNAVAILABLE, "group not known here")
        if result.device_credential_id in policies.removed_credentials or any(
            token.token_id in policies.revoked_tokens for token in result.tokens
        ):
            raise _RefusedError(ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD, "just revoked")
        return Access(
            grant=grant,
            access_key_id=result.access_key_id,
            tokens=[_token(token) for token in result.tokens] if result.token_mode else None,
            device_credential_id=result.device_credential_id,
        )

    # --- tokens --------------------------------------------------------------------------------

    def check_token(
        self,
        client: Client,
        access_key_id: str,
        token_type: str,
        token: str,
        answer: Callable[[int, Token | None], None],
    ) -> None:
        """Check a token; see `ports.TokenChecker`."""
        check = auth_pb2.TokenCheck(
            instance_id=client.instance_id,
            access_key_id=access_key_id,
            type=_TYPES[token_type],
            token=token,
            client_id=client.client_id,
        )
        if not self._checks.add(_Check(answer, check)):
            answer(tokens.ACCOUNT_NOT_PERMITTED, None)

    async def _check_tokens(self, batch: list[_Check]) -> None:
        request = auth_pb2.CheckTokensRequest(tokens=[check.message for check in batch])
        response = None
        while response is None:
            try:
                response = await self._stub.CheckTokens(request, timeout=TIMEOUT_S)
            except aio.AioRpcError as error:
                # The clients wait for their PUBACK; what they had before stays in force.
                logger.warning("auth did not check tokens", extra={"code": error.code().name, "error": error.details()})
                await asyncio.sleep(random.uniform(*BACKOFF_S))  # noqa: S311 - spreads load, no secret
        for check, result in zip(batch, response.results, strict=True):
            check.answer(result.code, None if result.code else _token(result.grant))


def _token(grant: auth_pb2.TokenGrant) -> Token:
    return Token(
        token_id=grant.token_id,
        type=_TYPE_NAMES[grant.type],
        coverage=Coverage(tuple(grant.resources)),
        expire_time_ms=grant.expire_time_ms,
    )
