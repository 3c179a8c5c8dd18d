"""gRPC channels to other services, with the cluster token on every call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from grpc import aio
from typing_extensions import override

from services.common.grpc_server import AUTHORIZATION, OPTIONS, authorization
from services.common.settings import Secret


class _Token:
    """Adds the cluster token to the metadata of a call."""

    def __init__(self, token: Secret) -> None:
        self._value = authorization(token)

    def details(self, details: aio.ClientCallDetails) -> aio.ClientCallDetails:
        metadata = aio.Metadata(*(details.metadata or ()))
        metadata[AUTHORIZATION] = self._value
        return aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _UnaryUnary(_Token, aio.UnaryUnaryClientInterceptor):
    @override
    async def intercept_unary_unary(
        self,
        continuation: Callable[[aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self.details(client_call_details), request)


class _UnaryStream(_Token, aio.UnaryStreamClientInterceptor):
    @override
    async def intercept_unary_stream(
        self,
        continuation: Callable[[aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self.details(client_call_details), request)


def call_metadata(token: Secret) -> tuple[tuple[str, str], ...]:
    """Return the metadata that a bidirectional stream must be opened with.

    Streams that both sides write get it by hand, since an interceptor would put a queue between the
    caller's writes and the transport.
    """
    return ((AUTHORIZATION, authorization(token)),)


@contextlib.asynccontextmanager
async def channel(address: str, token: Secret) -> AsyncGenerator[aio.Channel]:
    """Open a channel that connects, and connects again, by itself; closed on leaving.

    Args:
        address: `host:port`, `dns:///name:port` or `unix:/path`.
        token: the cluster token.
    """
    options = [
        *OPTIONS,
        # A restarted service must be found again within a second, not after gRPC's minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_retries", 0),
    ]
    opened = aio.insecure_channel(
        address,
        options=options,
        interceptors=[_UnaryUnary(token), _UnaryStream(token)],
    )
    async with opened:
        yield opened
