"""HTTP server of a service: uvicorn inside our event loop, under our signal handlers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import prometheus_client
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import override

from services import compiled
from services.common import ticks
from services.common.readiness import Readiness
from services.common.runtime import background
from services.common.settings import SettingsError

logger = logging.getLogger(__name__)

prometheus_client.Gauge("weimq_hot_path_compiled", "1: the hot path runs as machine code, 0: in pure Python.").set(
    compiled.is_active
)

MAX_CONCURRENCY = 1_000
"""Connections or running requests above this are answered 503 by uvicorn: callers retry, memory stays bounded."""

KEEP_ALIVE_S = 30
"""How long an idle connection is kept."""

TICK_S = 1.0
"""How often uvicorn renews the header `Date`."""


class _Server(uvicorn.Server):
    """A server that leaves signals to `runtime.main` and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.ended = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Stop serving; `ended` follows."""
        self.should_exit = True
        self._stopping.set()

    @override
    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether it is to exit.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(ticks.next_tick(TICK_S)):
                    await self._stopping.wait()

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until `stop` is called and running requests have ended."""
        try:
            await self.serve(sockets=[listener])
        finally:
            self.ended.set()


def parse_listen(listen: str) -> tuple[str, int]:
    """Split `host:port`; an IPv6 host may stand in brackets.

    Raises:
        ValueError: it is not of that form.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:  # noqa: PLR2004 - largest port
        raise ValueError(f"must be host:port, not {listen!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def tls_context(listen: str, certificate: Path | None, key: Path | None, prefix: str) -> ssl.SSLContext | None:
    """Return the context of an HTTPS listener, None when `listen` is empty.

    Args:
        listen: address of the listener.
        certificate: PEM file of the certificate and its intermediates.
        key: PEM file of its private key.
        prefix: of the settings, for the text of an error.

    Raises:
        SettingsError: a file is missing or can't be used.
    """
    if not listen:
        return None
    if certificate is None or key is None:
        raise SettingsError([f"{prefix}HTTPS_LISTEN needs {prefix}HTTPS_CERTIFICATE_FILE and {prefix}HTTPS_KEY_FILE"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A key with a password would ask at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise SettingsError([f"{prefix}HTTPS_CERTIFICATE_FILE, {prefix}HTTPS_KEY_FILE: {error}"]) from error
    return context


@contextlib.asynccontextmanager
async def also_serving(
    *, listen: str, app: Starlette, drain_s: float, tls: ssl.SSLContext | None
) -> AsyncGenerator[int | None]:
    """Serve over HTTPS when there is a context; yields the bound port, else None."""
    if tls is None:
        yield None
        return
    async with serving(listen=listen, app=app, drain_s=drain_s, tls=tls) as port:
        yield port


@contextlib.asynccontextmanager
async def serving(
    *, listen: str, app: Starlette, drain_s: float, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[int]:
    """Serve `app` over HTTP(S) while the body runs; on leaving, running requests get `drain_s` seconds.

    Args:
        listen: `host:port`; port 0: any free one.
        app: the application.
        drain_s: grace for requests when stopping, in seconds.
        tls: context of HTTPS; None: HTTP.

    Yields:
        The bound port.

    Raises:
        OSError: the address can't be bound.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",  # what is left are failed requests; the start is logged below
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else whoever comes over loopback may claim any address, and so is never made to wait
        limit_concurrency=MAX_CONCURRENCY,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
    server = _Server(config)
    listener = _bind(listen)
    async with background(server.run_on(listener)):
        await server.listening.wait()
        port: int = listener.getsockname()[1]
        logger.info("http listening", extra={"listen": listen, "port": port, "tls": tls is not None})
        try:
            yield port
        finally:
            server.stop()
            await server.ended.wait()


@contextlib.asynccontextmanager
async def serving_health(*, listen: str, readiness: Readiness, drain_s: float) -> AsyncGenerator[int]:
    """Serve health and metrics alone while the body runs; see `serving`. Empty `listen`: nothing, and port 0."""
    if not listen:
        yield 0
        return
    async with serving(listen=listen, app=Starlette(routes=health_routes(readiness)), drain_s=drain_s) as port:
        yield port


def _bind(listen: str) -> socket.socket:
    host, port = parse_listen(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise OSError(f"can't listen on {listen}: {error}") from error
    listener.setblocking(False)  # noqa: FBT003 - its only form
    return listener


def peer(request: Request) -> str:
    """Return who sent a request, `host:port`; empty when that is not known."""
    return f"{request.client.host}:{request.client.port}" if request.client is not None else ""


def health_routes(readiness: Readiness) -> list[Route]:
    """Return `/healthz` (the loop turns), `/readyz` (nothing is missing) and `/metrics` (Prometheus text)."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        ready = readiness.is_ready
        return JSONResponse({"ready": ready, "missing": readiness.missing}, 200 if ready else 503)

    async def metrics(_request: Request) -> Response:
        text = prometheus_client.generate_latest()
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
