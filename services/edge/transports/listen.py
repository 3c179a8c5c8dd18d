"""Listeners: PROXY protocol -> TLS -> WebSocket -> the protocol of a connection, each only where it is on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine

from services.common.runtime import background
from services.edge.transports.layer import ByteProtocol, ProtocolFactory, as_protocol
from services.edge.transports.proxy_protocol import ProxyProtocolLayer, TlsStart
from services.edge.transports.websocket import WebSocketLayer
from services.edge.transports.websocket_handshake import WebSocketOptions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSpec:
    """A listener and its layers."""

    name: str
    """For logs: `tcp`, `tls`, `ws`, `wss`, `flash`."""
    host: str
    port: int
    """0: one that is free."""
    proxy_protocol: bool = False
    """Whether every connection begins with a PROXY header; one without is closed."""
    tls: ssl.SSLContext | None = None
    websocket: WebSocketOptions | None = None
    handshake_timeout_s: float = 10.0
    """Seconds for each: PROXY header, TLS handshake. `WebSocketOptions` has its own."""
    shutdown_timeout_s: float = 5.0
    """Seconds that the peer has for its part of the end of TLS."""
    backlog: int = 4096
    """Connections that the kernel holds until we accept them."""
    reuse_port: bool = False
    """Whether other processes may listen at the same port; the kernel spreads the connections."""


@contextlib.asynccontextmanager
async def open_listener(
    spec: ListenerSpec, inner_factory: ProtocolFactory, refusal: Callable[[], ByteProtocol | None] = lambda: None
) -> AsyncGenerator[list[int]]:
    """Accept connections while the body runs; those that were accepted stay when it ends.

    Args:
        spec: address and layers.
        inner_factory: makes the protocol of a connection. Its `connection_made` comes when all layers below are
            up; a connection that does not get there never calls it.
        refusal: asked for each connection; what it returns is the protocol of the socket instead of all layers.

    Yields:
        The bound ports.

    Raises:
        OSError: the address can't be bound.
    """
    loop = asyncio.get_running_loop()
    factory = inner_factory
    if spec.websocket is not None:
        factory = _websocket_factory(loop, factory, spec.websocket)
    tls = spec.tls
    handshakes = _Handshakes()
    if spec.proxy_protocol:
        start = None
        if tls is not None:
            start = TlsStart(
                context=tls,
                handshake_timeout_s=spec.handshake_timeout_s,
                shutdown_timeout_s=spec.shutdown_timeout_s,
                spawn=handshakes.spawn,
            )
        factory = _proxy_factory(loop, factory, spec.handshake_timeout_s, start)
        tls = None
    async with background(handshakes.run()) if spec.proxy_protocol and spec.tls else contextlib.nullcontext():
        server = await loop.create_server(
            lambda: as_protocol(refusal() or factory()),
            spec.host,
            spec.port,
            ssl=tls,
            backlog=spec.backlog,
            reuse_port=spec.reuse_port,
            ssl_handshake_timeout=spec.handshake_timeout_s if tls is not None else None,
            ssl_shutdown_timeout=spec.shutdown_timeout_s if tls is not None else None,
        )
        try:
            ports = [socket.getsockname()[1] for socket in server.sockets]
            logger.info("listening", extra={"listener": spec.name, "host": spec.host, "ports": ports})
            yield ports
        finally:
            server.close()


def _websocket_factory(
    loop: asyncio.AbstractEventLoop, above: ProtocolFactory, options: WebSocketOptions
) -> ProtocolFactory:
    return lambda: WebSocketLayer(loop, above, options)


def _proxy_factory(
    loop: asyncio.AbstractEventLoop, above: ProtocolFactory, header_timeout_s: float, tls: TlsStart | None
) -> ProtocolFactory:
    return lambda: ProxyProtocolLayer(loop, above, header_timeout_s=header_timeout_s, tls=tls)  # type: ignore[return-value]  # a buffered protocol


class _Handshakes:
    """Runs the TLS handshakes behind PROXY headers: the only work of a listener that needs a task."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.Event().wait()  # until it is cancelled
            finally:
                self._group = None

    def spawn(self, handshake: Coroutine[object, object, None]) -> bool:
        if self._group is None:  # the listener is closing
            handshake.close()
            return False
        self._group.create_task(_guarded(handshake))
        return True


async def _guarded(handshake: Coroutine[object, object, None]) -> None:
    try:
        await handshake
    except Exception:  # one connection must not end the others
        logger.exception("connection failed behind its proxy header")
