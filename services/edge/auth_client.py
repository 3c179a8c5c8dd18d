"""The edge's questions to auth, gathered: may this client connect, what is this token worth."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from grpc import aio

from services.common.errors import StreamContractError
from services.common.grpc_client import call_metadata
from services.common.linking import BACKOFF_S
from services.common.runtime import first_of
from services.common.settings import Secret
from services.edge import tokens
from services.edge.attempts import TYPES, Attempts, token_of
from services.edge.gathering import Gathering
from services.edge.mqtt.packets import Connect
from services.edge.policies import Policies
from services.edge.ports import Client
from services.edge.tokens import Token
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

logger = logging.getLogger(__name__)

MAX_TOKENS = 100
"""Tokens in one call: with `credentials.MAX_TOKEN_CHARACTERS` they fit into a message of gRPC."""
MAX_WAITING = 20_000
"""Tokens that may wait; a further one closes its connection."""
APART_S = 0.004
"""Between questions about CONNECT packets, unless many wait: in a storm some come together, and go on together."""
TIMEOUT_S = 2.5
"""How long auth may take to answer about a CONNECT; up to twice that."""
CALL_S = 5.0
"""Deadline of a call."""

_Call: TypeAlias = "aio.StreamStreamCall[auth_pb2.AuthenticateStreamRequest, auth_pb2.AuthenticateStreamResponse]"


class _Check(NamedTuple):
    answer: Callable[[int, Token | None], None]
    message: auth_pb2.TokenCheck


class AuthClient:
    """Asks auth; owned by one event loop."""

    def __init__(self, *, channel: aio.Channel, token: Secret, policies: Policies, default_instance: str) -> None:
        self._stub = auth_pb2_grpc.AuthServiceStub(channel)
        self._metadata = call_metadata(token)
        self._attempts = Attempts(policies, default_instance)
        self._checks = Gathering(self._check_tokens, max_batch=MAX_TOKENS, max_waiting=MAX_WAITING)

    async def run(self) -> None:
        """Ask what has gathered, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_asking())
            group.create_task(self._checks.run())

    # --- CONNECT -------------------------------------------------------------------------------

    def authenticate(self, client: Client, connect: Connect) -> None:
        """Check a CONNECT; see `ports.Authenticator`."""
        self._attempts.add(client, connect)

    async def _keep_asking(self) -> None:
        """Ask over one stream after the other; one is opened when there is something to ask."""
        attempts = self._attempts
        while True:
            await attempts.wake.wait()
            call = self._stub.AuthenticateStream(metadata=self._metadata)
            text = "in time"
            try:
                await first_of(self._ask(call), self._take_answers(call), self._until_late())
            except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError, StreamContractError) as error:
                text = (error.details() or "") if isinstance(error, aio.AioRpcError) else str(error)
            finally:
                call.cancel()
                if attempts.asked > attempts.answered:
                    logger.warning("auth did not answer", extra={"error": text})
                    attempts.fail()

    async def _ask(self, call: _Call) -> None:
        while True:
            await self._attempts.wake.wait()
            await call.write(self._attempts.ask())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(APART_S):
                    await self._attempts.wake_early.wait()

    async def _take_answers(self, call: _Call) -> None:
        while (response := await call.read()) is not aio.EOF:
            self._attempts.answer(response)  # type: ignore[arg-type]  # EOF is no response

    async def _until_late(self) -> None:
        """Wait until a question has had its time."""
        attempts = self._attempts
        asked = 0
        while attempts.answered >= asked:
            asked = attempts.asked
            await asyncio.sleep(TIMEOUT_S)

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
            type=TYPES[token_type],
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
                response = await self._stub.CheckTokens(request, timeout=CALL_S)
            except aio.AioRpcError as error:
                # The clients wait for their PUBACK; what they had before stays in force.
                logger.warning("auth did not check tokens", extra={"code": error.code().name, "error": error.details()})
                await asyncio.sleep(random.uniform(*BACKOFF_S))  # noqa: S311 - spreads load, no secret
        for check, result in zip(batch, response.results, strict=True):
            check.answer(result.code, None if result.code else token_of(result.grant))
