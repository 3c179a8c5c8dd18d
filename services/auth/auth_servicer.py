"""`weimq.auth.v1.AuthService` over the in-memory view; never asks NATS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from grpc import aio
from typing_extensions import override

from services.auth import metrics
from services.auth.attempts import TOKEN_TYPES, Attempts, grant_of
from services.auth.domain import backoff, credentials, names, token_checks
from services.auth.domain.backoff import Guard
from services.auth.domain.credentials import QueryOutcome
from services.auth.domain.token_checks import TokenCode
from services.auth.domain.view import View
from services.auth.gate import Gate
from services.auth.watch_messages import messages
from services.auth.watchers import Watchers
from services.common import ticks
from services.common.errors import InvalidFieldError
from services.common.runtime import first_of
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

MAX_ATTEMPTS = 1_000
MAX_TOKENS = 1_000
MAX_DEVICES = 10_000
HEARTBEAT_S = 2.0
"""A watcher hears something at least so often."""

Context = aio.ServicerContext[Any, Any]

_QUERY_OUTCOMES = {
    QueryOutcome.ALLOWED: auth_pb2.QUERY_OUTCOME_ALLOWED,
    QueryOutcome.BAD_SIGNATURE: auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE,
    QueryOutcome.GROUP_NOT_OWNED: auth_pb2.QUERY_OUTCOME_GROUP_NOT_OWNED,
}

TOKEN_TYPES_OF = {number: token_type for token_type, number in TOKEN_TYPES.items()}

# Looked up once: a label costs as much as the check of a signature.
_TOKENS = {code: metrics.TOKENS.labels(code.name.lower()) for code in TokenCode}
_BLOCKED_TOKENS = metrics.TOKENS.labels("blocked")


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    """Answers the edges and the status service."""

    def __init__(self, *, view: View, guard: Guard, watchers: Watchers, gate: Gate) -> None:
        self._view = view
        self._guard = guard
        self._attempts = Attempts(view=view, guard=guard)
        self._watchers = watchers
        self._gate = gate
        self.view_age_s: Callable[[], float] = lambda: 0.0
        """Age of the view in seconds; set before the gate is opened, like `revision`."""
        self.revision: Callable[[], int] = lambda: 0

    @override
    async def Authenticate(
        self, request: auth_pb2.AuthenticateRequest, context: Context
    ) -> auth_pb2.AuthenticateResponse:
        self._check(request.attempts)
        results = self._attempts.answer(request.attempts, _now_ms(), time.monotonic())
        return auth_pb2.AuthenticateResponse(results=results)

    @override
    async def AuthenticateStream(  # type: ignore[override]  # reads and writes through the context
        self, request_iterator: AsyncIterator[auth_pb2.AuthenticateStreamRequest], context: Context
    ) -> None:
        self._gate.check()
        writing = asyncio.Lock()
        await first_of(self._authenticate_all(context, writing), self._closed(writing))
        self._gate.check()  # an open stream would use up the grace of all other calls

    async def _closed(self, writing: asyncio.Lock) -> None:
        await self._gate.closed.wait()
        await writing.acquire()  # gRPC takes no status while an answer is under way: the stream would stay open

    async def _authenticate_all(self, context: Context, writing: asyncio.Lock) -> None:
        while (request := await context.read()) is not aio.EOF:
            self._check(request.attempts)
            if request.merges_results:
                response = self._attempts.answer_merged(request.attempts, _now_ms(), time.monotonic())
            else:
                results = self._attempts.answer(request.attempts, _now_ms(), time.monotonic())
                response = auth_pb2.AuthenticateStreamResponse(results=results)
            async with writing:
                await context.write(response)

    def _check(self, attempts: Sequence[auth_pb2.ConnectAttempt]) -> None:
        self._gate.check()
        if not 1 <= len(attempts) <= MAX_ATTEMPTS:
            raise InvalidFieldError(f"must hold 1 to {MAX_ATTEMPTS} attempts", field="attempts")

    @override
    async def CheckTokens(self, request: auth_pb2.CheckTokensRequest, context: Context) -> auth_pb2.CheckTokensResponse:
        self._gate.check()
        if not 1 <= len(request.tokens) <= MAX_TOKENS:
            raise InvalidFieldError(f"must hold 1 to {MAX_TOKENS} tokens", field="tokens")
        now_ms, now = _now_ms(), time.monotonic()
        return auth_pb2.CheckTokensResponse(
            results=[self._token_result(check, now_ms, now) for check in request.tokens]
        )

    def _token_result(self, message: auth_pb2.TokenCheck, now_ms: int, now: float) -> auth_pb2.TokenResult:
        # A client that is connected has an address of its own; what counts here is who it says it is.
        who = backoff.Attempt(key=f"{message.instance_id}|{message.client_id}")
        if not self._guard.admits(who, now):
            _BLOCKED_TOKENS.inc()
            return auth_pb2.TokenResult(code=TokenCode.FORGED)
        token_type = TOKEN_TYPES_OF.get(message.type)
        if token_type is None:
            return auth_pb2.TokenResult(code=TokenCode.WRONG_TYPE)
        verdict = token_checks.check(
            message.token,
            token_type,
            instance_id=message.instance_id,
            access_key_id=message.access_key_id,
            view=self._view,
            now_ms=now_ms,
        )
        _TOKENS[verdict.code].inc()
        if verdict.code in {TokenCode.FORGED, TokenCode.BAD_SIGNATURE}:
            self._guard.failed(who, now)
        grant = grant_of(verdict) if verdict.code is TokenCode.VALID else None
        return auth_pb2.TokenResult(code=verdict.code, grant=grant)

    @override
    async def CheckDeviceCredentials(
        self, request: auth_pb2.CheckDeviceCredentialsRequest, context: Context
    ) -> auth_pb2.CheckDeviceCredentialsResponse:
        self._gate.check()
        if len(request.device_credential_ids) > MAX_DEVICES:
            raise InvalidFieldError(f"must hold at most {MAX_DEVICES} ids", field="device_credential_ids")
        return auth_pb2.CheckDeviceCredentialsResponse(
            removed_device_credential_ids=[
                credential_id
                for credential_id in request.device_credential_ids
                if (credential := self._view.devices.credential(credential_id)) is None
                or self._view.resources.instance(credential.instance_id) is None
            ]
        )

    @override
    async def AuthorizeQuery(
        self, request: auth_pb2.AuthorizeQueryRequest, context: Context
    ) -> auth_pb2.AuthorizeQueryResponse:
        self._gate.check()
        # Without an address a stranger could lock everybody out who asks with the key.
        key = f"{request.instance_id}|{request.access_key_id}" if request.address else ""
        who = backoff.Attempt(backoff.host_of(request.address), key)
        now = time.monotonic()
        if not self._guard.admits(who, now):
            metrics.QUERIES.labels("blocked").inc()
            return auth_pb2.AuthorizeQueryResponse(outcome=auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE)
        outcome = credentials.authorize_query(
            instance_id=request.instance_id,
            access_key_id=request.access_key_id,
            group_id=request.group_id or names.group_of(request.client_id),
            topic=request.topic,
            signed_text=request.signed_text,
            given=request.signature,
            resources=self._view.resources,
        )
        metrics.QUERIES.labels(outcome.name.lower()).inc()
        if outcome is QueryOutcome.BAD_SIGNATURE:
            self._guard.failed(who, now)
        else:
            self._guard.succeeded(who)
        return auth_pb2.AuthorizeQueryResponse(outcome=_QUERY_OUTCOMES[outcome])

    @override
    async def WatchResources(
        self, request: auth_pb2.WatchResourcesRequest, context: Context
    ) -> AsyncIterator[auth_pb2.WatchResourcesResponse]:
        self._gate.check()
        with self._watchers.watching() as (snapshot, watcher):
            for message in messages(snapshot):
                yield self._stamped(message)
            yield self._stamped(auth_pb2.WatchResourcesResponse(snapshot_complete=True))
            loop = asyncio.get_running_loop()
            beat = ticks.next_tick(HEARTBEAT_S)
            while True:
                changes = await watcher.next(max(0.0, beat - loop.time()))
                if changes is not None:
                    for message in messages(changes):
                        yield self._stamped(message)
                else:
                    yield self._stamped(auth_pb2.WatchResourcesResponse())
                beat = ticks.next_tick(HEARTBEAT_S)

    def _stamped(self, message: auth_pb2.WatchResourcesResponse) -> auth_pb2.WatchResourcesResponse:
        message.view_age_ms = int(self.view_age_s() * 1000)
        message.revision = self.revision()
        return message


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
