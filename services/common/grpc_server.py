"""gRPC server of a service: cluster token, health, reflection, errors, drain."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from typing_extensions import override

from services.common import grpc_errors
from services.common.errors import DomainError
from services.common.readiness import Readiness
from services.common.runtime import background, first_of
from services.common.settings import Secret

logger = logging.getLogger(__name__)

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # watches of health bring nothing for hours
]
"""Frames of links may hold many payloads; pings find dead peers behind a silent network."""

# Orchestrators probe health without credentials; it tells nothing but SERVING or NOT_SERVING.
_OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})

AUTHORIZATION = "authorization"


def authorization(token: Secret) -> str:
    """Return the value of the `authorization` metadata for a cluster token."""
    return f"Bearer {token.reveal()}"


Handler = Any
"""A `grpc.RpcMethodHandler` of any request and response."""
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


class _TokenInterceptor(aio.ServerInterceptor):
    """Refuses calls without the cluster token."""

    def __init__(self, token: Secret) -> None:
        self._expected = authorization(token).encode()

    @override
    async def intercept_service(  # type: ignore[override]  # the stub's type variables are unbound
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        given = ""
        for key, value in handler_call_details.invocation_metadata:
            if key == AUTHORIZATION:
                given = value if isinstance(value, str) else value.decode("latin-1")
        is_open = handler_call_details.method in _OPEN_METHODS
        if is_open or hmac.compare_digest(given.encode(), self._expected):
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(_refuse)


async def _refuse(_request: object, context: aio.ServicerContext[Any, Any]) -> object:
    await grpc_errors.abort(
        context,
        grpc.StatusCode.UNAUTHENTICATED,
        "the cluster token is missing or wrong: send metadata `authorization: Bearer <token>`",
        "CLUSTER_TOKEN_REJECTED",
    )
    raise AssertionError("abort raises")


class _Health(health.aio.HealthServicer):
    """The health service, whose watches end with the server instead of using up the grace of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    @override
    async def Watch(self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]) -> None:
        with contextlib.suppress(aio.InternalError):  # whoever watched is gone
            await first_of(super().Watch(request, context), self._ended.wait())

    @override
    async def enter_graceful_shutdown(self) -> None:
        await super().enter_graceful_shutdown()
        self._ended.set()


class _ErrorInterceptor(aio.ServerInterceptor):
    """Turns domain errors raised by servicers into statuses."""

    @override
    async def intercept_service(  # type: ignore[override]  # the stub's type variables are unbound
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary), **codec)
        if handler.unary_stream and handler_call_details.method.startswith("/weimq."):
            behavior = handler.unary_stream  # one that yields, or one that writes through its context
            wrapped = _stream(behavior) if inspect.isasyncgenfunction(behavior) else _unary(behavior)
            return grpc.unary_stream_rpc_method_handler(wrapped, **codec)
        if handler.stream_stream and handler_call_details.method.startswith("/weimq."):
            return grpc.stream_stream_rpc_method_handler(_unary(handler.stream_stream), **codec)
        return handler


def _unary(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    # Also for bidirectional streams, which read and write through their context and return nothing.
    async def wrapped(request: object, context: aio.ServicerContext[Any, Any]) -> object:
        try:
            return await behavior(request, context)
        except DomainError as error:
            await grpc_errors.abort_with(context, error)
            raise AssertionError("abort raises") from error

    return wrapped


def _stream(behavior: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def wrapped(request: object, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in behavior(request, context):
                yield response
        except DomainError as error:
            await grpc_errors.abort_with(context, error)

    return wrapped


@contextlib.asynccontextmanager
async def serving(
    *,
    listen: Iterable[str],
    token: Secret,
    readiness: Readiness,
    register: Callable[[aio.Server], Iterable[str]],
    drain_s: float,
) -> AsyncGenerator[list[int]]:
    """Serve gRPC while the body runs.

    Health is SERVING exactly while `readiness` has nothing missing. Leaving the body reports
    NOT_SERVING, then gives running calls `drain_s` seconds; long streams must have ended before, or
    they use them up.

    Args:
        listen: addresses, `host:port` (port 0: any free one) or `unix:/path`.
        token: the cluster token that callers must send.
        readiness: what the health check reports.
        register: adds the servicers and returns the full names of their services.
        drain_s: grace for calls when stopping, in seconds.

    Yields:
        The bound port of each address, in order.

    Raises:
        OSError: an address can't be bound.
    """
    server = aio.server(interceptors=[_TokenInterceptor(token), _ErrorInterceptor()], options=OPTIONS)
    names = list(register(server))
    checks = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    ports = []
    for address in listen:
        try:
            ports.append(server.add_insecure_port(address))
        except RuntimeError as error:
            raise OSError(f"can't listen on {address}: {error}") from error
    async with _health(checks, names, readiness):
        await server.start()
        logger.info("grpc listening", extra={"listen": list(listen), "ports": ports})
        try:
            yield ports
        finally:
            await checks.enter_graceful_shutdown()
            await server.stop(drain_s)


@contextlib.asynccontextmanager
async def _health(checks: health.aio.HealthServicer, names: list[str], readiness: Readiness) -> AsyncGenerator[None]:
    """Keep the health service equal to `readiness`."""
    changed = asyncio.Event()
    readiness.on_change(changed.set)

    async def publish() -> None:
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if readiness.is_ready else status.NOT_SERVING
        for name in ("", *names):
            await checks.set(name, value)

    async def follow() -> None:
        while True:
            await changed.wait()
            changed.clear()
            await publish()

    await publish()  # before the server starts: the servicer begins as SERVING
    async with background(follow()):
        yield
