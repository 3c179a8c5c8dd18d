"""A fake auth service behind real gRPC, for tests of the edge alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc import aio
from typing_extensions import override

from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

INSTANCE = "i"
KEY = "K"
TYPES = {
    "R": auth_pb2.TOKEN_TYPE_READ,
    "W": auth_pb2.TOKEN_TYPE_WRITE,
    "RW": auth_pb2.TOKEN_TYPE_READ_WRITE,
}


def snapshot(profile: auth_pb2.Profile.ValueType) -> auth_pb2.WatchResourcesResponse:
    """Return what there is at first."""
    return auth_pb2.WatchResourcesResponse(
        instances=[
            auth_pb2.InstancePolicy(
                instance_id=INSTANCE,
                profile=profile,
                max_topic_characters=64,
                max_payload_bytes=65_536,
                max_subscriptions=3,
                strict_order=True,
                offline_batch_messages=30,
                offline_batch_interval_ms=5000,
                acknowledgement_timeout_ms=5001,
                offline_retention_ms=1 << 40,
                max_offline_messages=1_000_000,
                session_expiry_ms=7,
            )
        ],
        topics=[
            auth_pb2.TopicPolicy(instance_id=INSTANCE, topic="demo", account_id="default", logged=True),
            auth_pb2.TopicPolicy(instance_id=INSTANCE, topic="fast", account_id="default"),
        ],
        groups=[auth_pb2.GroupPolicy(instance_id=INSTANCE, group_id="GID_demo", account_id="default")],
        access_keys=[
            auth_pb2.AccessKeyPolicy(
                instance_id=INSTANCE, access_key_id=KEY, account_id="default", publish=True, subscribe=True
            )
        ],
        snapshot_complete=True,
    )


class FakeAuth(auth_pb2_grpc.AuthServiceServicer):
    """Lets everybody in whose password is `right`, and clients in token mode with tokens that were issued.

    User names: `Token|<key>|i` is token mode, `Signature|<key>|i` has the key, `DeviceCredential|<id>|i` that
    credential; with any other there is an account alone. Knows the instance `i` with the topics `demo` and `fast`.
    """

    def __init__(self, profile: auth_pb2.Profile.ValueType = auth_pb2.PROFILE_LMQ) -> None:
        self.batches: list[int] = []
        self.token_batches: list[int] = []
        self.tokens: dict[str, auth_pb2.TokenGrant] = {}
        self.codes: dict[str, int] = {}
        """What is wrong with tokens that are not in `tokens`; 1 unless it says otherwise."""
        self.removed_credentials: set[str] = set()
        self.is_away = False
        """Whether calls fail."""
        self.goes_on = asyncio.Event()
        """Cleared, connection attempts are not answered until it is set."""
        self.goes_on.set()
        self.is_silent = False
        self.view_age_ms = 0
        """Whether watches fail, and nothing else."""
        self.snapshot = snapshot(profile)
        self._watchers: set[asyncio.Queue[auth_pb2.WatchResourcesResponse | None]] = set()

    def issue(self, token: str, token_type: str, *resources: str, seconds: float = 3600) -> None:
        """Make a token; its id is the token with `id-` before."""
        self.tokens[token] = auth_pb2.TokenGrant(
            token_id=f"id-{token}",
            type=TYPES[token_type],
            resources=resources,
            expire_time_ms=int((time.time() + seconds) * 1000),
        )

    def tell(self, change: auth_pb2.WatchResourcesResponse) -> None:
        """Send every watcher a change; `snapshot` is the affair of the test."""
        for watcher in self._watchers:
            watcher.put_nowait(change)

    def cut(self) -> None:
        """End every watch."""
        for watcher in self._watchers:
            watcher.put_nowait(None)

    @property
    def is_watched(self) -> bool:
        """Whether an edge watches."""
        return bool(self._watchers)

    async def _check_away(self, context: aio.ServicerContext[Any, Any]) -> None:
        if self.is_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")

    def _check(self, token: str, token_type: str) -> tuple[int, auth_pb2.TokenGrant | None]:
        grant = self.tokens.get(token)
        if grant is None:
            return self.codes.get(token, 1), None
        return (0, grant) if grant.type == TYPES.get(token_type) else (5, None)

    def _result(self, attempt: auth_pb2.ConnectAttempt) -> auth_pb2.ConnectResult:
        mode, _, rest = attempt.user_name.partition("|")
        name = rest.partition("|")[0]
        accepted = auth_pb2.ConnectResult(
            outcome=auth_pb2.CONNECT_OUTCOME_ACCEPTED, instance_id=INSTANCE, account_id="default"
        )
        refused = auth_pb2.ConnectResult(outcome=auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS, reason="wrong")
        if mode == "Token":
            accepted.access_key_id = name
            accepted.token_mode = True
            fields = attempt.password.decode().split("|") if attempt.password else []
            for token_type, token in zip(fields[::2], fields[1::2], strict=True):
                code, grant = self._check(token, token_type)
                if code or grant is None:
                    return refused
                accepted.tokens.append(grant)
            return accepted
        if mode == "Signature":
            accepted.access_key_id = name
        elif mode == "DeviceCredential":
            accepted.device_credential_id = name
        return accepted if attempt.password == b"right" else refused

    @override
    async def Authenticate(
        self, request: auth_pb2.AuthenticateRequest, context: aio.ServicerContext[Any, Any]
    ) -> auth_pb2.AuthenticateResponse:
        await self._check_away(context)
        self.batches.append(len(request.attempts))
        await self.goes_on.wait()
        return auth_pb2.AuthenticateResponse(results=map(self._result, request.attempts))

    @override
    async def AuthenticateStream(  # type: ignore[override]  # reads and writes through the context
        self,
        request_iterator: AsyncIterator[auth_pb2.AuthenticateStreamRequest],
        context: aio.ServicerContext[Any, Any],
    ) -> None:
        while (request := await context.read()) is not aio.EOF:
            asked = auth_pb2.AuthenticateRequest(attempts=request.attempts)
            answer = await self.Authenticate(asked, context)
            await context.write(auth_pb2.AuthenticateStreamResponse(results=answer.results))

    @override
    async def CheckTokens(
        self, request: auth_pb2.CheckTokensRequest, context: aio.ServicerContext[Any, Any]
    ) -> auth_pb2.CheckTokensResponse:
        await self._check_away(context)
        self.token_batches.append(len(request.tokens))
        names = {number: name for name, number in TYPES.items()}
        response = auth_pb2.CheckTokensResponse()
        for check in request.tokens:
            code, grant = self._check(check.token, names[check.type])
            response.results.add(code=code, grant=grant)
        return response

    @override
    async def CheckDeviceCredentials(
        self, request: auth_pb2.CheckDeviceCredentialsRequest, context: aio.ServicerContext[Any, Any]
    ) -> auth_pb2.CheckDeviceCredentialsResponse:
        await self._check_away(context)
        removed = self.removed_credentials.intersection(request.device_credential_ids)
        return auth_pb2.CheckDeviceCredentialsResponse(removed_device_credential_ids=removed)

    @override
    async def AuthorizeQuery(
        self, request: auth_pb2.AuthorizeQueryRequest, context: aio.ServicerContext[Any, Any]
    ) -> auth_pb2.AuthorizeQueryResponse:
        raise NotImplementedError

    @override
    async def WatchResources(
        self, request: auth_pb2.WatchResourcesRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[auth_pb2.WatchResourcesResponse]:
        await self._check_away(context)
        if self.is_silent:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "silent")
        changes: asyncio.Queue[auth_pb2.WatchResourcesResponse | None] = asyncio.Queue()
        self._watchers.add(changes)
        try:
            yield self.snapshot
            while True:
                try:
                    async with asyncio.timeout(1):
                        change = await changes.get()
                except TimeoutError:
                    change = auth_pb2.WatchResourcesResponse(view_age_ms=self.view_age_ms)
                if change is None:
                    return
                yield change
        finally:
            self._watchers.discard(changes)
