"""Listeners: PROXY protocol -> TLS -> WebSocket -> the protocol of a connection, each only where it is on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from typing import cast

from services.common.runtime import background
from services.edge.transports.layer import ByteProtocol, ProtocolFactory
from services.edge.transports.proxy_protocol import ProxyProtocolLayer
from services.edge.transports.strangers import Strangers
from services.edge.transports.tls_layer import Handshakes, TlsLayer
from services.edge.transports.websocket import WebSocketLayer
from services.edge.transports.websocket_handshake import WebSocketOptions

logger = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 8
"""Connections that are accepted in one turn of the loop. libuv accepts one for each handle that listens, and a storm in
which each connection takes a turn costs more and waits longer; so several handles listen at each socket."""


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
    """Seconds for each: PROXY header; TLS handshake, from the first byte awaited. `WebSocketOptions` has its own."""
    shutdown_timeout_s: float = 5.0
    """Seconds that the peer has for its part of the end of TLS."""
    backlog: int = 4096
    """Connections that the kernel holds until we accept them."""
    reuse_port: bool = False
    """Whether other processes may listen at the same port; the kernel spreads the connections."""


@contextlib.asynccontextmanager
async def open_listener(
    spec: ListenerSpec,
    inner_factory: ProtocolFactory,
    strangers: Strangers | None = None,
    refusal: Callable[[], ByteProtocol | None] = lambda: None,
) -> AsyncGenerator[list[int]]:
    """Accept connections while the body runs; those that were accepted stay when it ends, but for TLS handshakes.

    Args:
        spec: address and layers.
        inner_factory: makes the protocol of a connection. Its `connection_made` comes when all layers below are
            up; a connection that does not get there never calls it.
        strangers: those of the edge; None: this listener has its own.
        refusal: asked for each connection; what it returns is the protocol of the socket instead of all layers.

    Yields:
        The bound ports.

    Raises:
        OSError: the address can't be bound.
    """
    loop = asyncio.get_running_loop()
    if strangers is None:
        strangers = Strangers()
    factory = inner_factory
    if spec.websocket is not None:
        factory = _websocket_factory(loop, factory, spec.websocket, strangers)
    async with contextlib.AsyncExitStack() as stack:
        if spec.tls is not None:
            handshakes = Handshakes(
                spec.tls,
                strangers,
                handshake_timeout_s=spec.handshake_timeout_s,
                shutdown_timeout_s=spec.shutdown_timeout_s,
            )
            await stack.enter_async_context(background(handshakes.run()))
            factory = _tls_factory(loop, factory, handshakes, strangers)
        if spec.proxy_protocol:
            factory = _proxy_factory(loop, factory, spec.handshake_timeout_s, strangers)

        def protocol() -> ByteProtocol:
            return refusal() or factory()

        accept = cast("Callable[[], asyncio.BaseProtocol]", protocol)
        server = await loop.create_server(
            accept, spec.host, spec.port, backlog=spec.backlog, reuse_port=spec.reuse_port
        )
        stack.callback(server.close)
        ports = [each.getsockname()[1] for each in server.sockets]
        for each in server.sockets * (ACCEPTED_AT_ONCE - 1):
            same = socket.socket(fileno=socket.dup(each.fileno()))
            stack.callback((await loop.create_server(accept, sock=same, backlog=spec.backlog)).close)
        logger.info("listening", extra={"listener": spec.name, "host": spec.host, "ports": ports})
        yield ports


def _websocket_factory(
    loop: asyncio.AbstractEventLoop, above: ProtocolFactory, options: WebSocketOptions, strangers: Strangers
) -> ProtocolFactory:
    return lambda: WebSocketLayer(loop, above, options, strangers)


def _tls_factory(
    loop: asyncio.AbstractEventLoop, above: ProtocolFactory, handshakes: Handshakes, strangers: Strangers
) -> ProtocolFactory:
    return lambda: TlsLayer(loop, above, handshakes, strangers)  # type: ignore[return-value]  # a buffered protocol


def _proxy_factory(
    loop: asyncio.AbstractEventLoop, above: ProtocolFactory, header_timeout_s: float, strangers: Strangers
) -> ProtocolFactory:
    return lambda: ProxyProtocolLayer(  # type: ignore[return-value]  # a buffered protocol
        loop, above, header_timeout_s=header_timeout_s, strangers=strangers
    )
