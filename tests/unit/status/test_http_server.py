"""The HTTP server that services share."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.common import http_server
from services.common.readiness import Readiness
from services.common.runtime import background


@pytest.mark.parametrize(
    ("listen", "parsed"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        (":8080", ("", 8080)),
        ("localhost:65535", ("localhost", 65_535)),
    ],
)
def test_listen_addresses(listen: str, parsed: tuple[str, int]) -> None:
    assert http_server.parse_listen(listen) == parsed


@pytest.mark.parametrize("listen", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "x:-1"])
def test_what_is_no_listen_address(listen: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        http_server.parse_listen(listen)


@pytest.mark.asyncio
async def test_health_follows_readiness_and_metrics_are_prometheus_text() -> None:
    readiness = Readiness("nats")
    app = Starlette(routes=http_server.health_routes(readiness))
    async with (
        http_server.serving(listen="127.0.0.1:0", app=app, drain_s=1) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "missing": ["nats"]})
        readiness.mark("nats", present=True)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"ready": True, "missing": []})
        metrics = await client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "# TYPE process_cpu_seconds_total counter" in metrics.text


@pytest.mark.asyncio
async def test_signal_handlers_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with http_server.serving(listen="127.0.0.1:0", app=Starlette(), drain_s=1):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.asyncio
async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{port}"):
            async with http_server.serving(listen=f"127.0.0.1:{port}", app=Starlette(), drain_s=1):
                pass


@pytest.mark.asyncio
async def test_a_running_request_is_finished_when_stopping() -> None:
    begun, go_on, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
    answers: list[str] = []

    async def slow(_request: Request) -> Response:
        begun.set()
        await go_on.wait()
        return PlainTextResponse("done")

    async def ask(port: int) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            answers.append((await client.get(f"http://127.0.0.1:{port}/slow")).text)
            answered.set()

    async def release() -> None:
        async with httpx.AsyncClient() as client:
            with contextlib.suppress(httpx.TransportError):
                while True:  # until it no longer listens
                    await client.get(f"http://127.0.0.1:{port}/none")
        go_on.set()

    app = Starlette(routes=[Route("/slow", slow)])
    server = http_server.serving(listen="127.0.0.1:0", app=app, drain_s=60)
    port = await server.__aenter__()
    async with background(ask(port)):
        await begun.wait()
        async with background(release()):
            async with asyncio.timeout(30):
                await server.__aexit__(None, None, None)
        async with asyncio.timeout(20):
            await answered.wait()
    assert answers == ["done"]


@pytest.mark.asyncio
async def test_the_port_is_free_again_after_stopping() -> None:
    async with http_server.serving(listen="127.0.0.1:0", app=Starlette(), drain_s=1) as port:
        pass
    async with http_server.serving(listen=f"127.0.0.1:{port}", app=Starlette(), drain_s=1) as again:
        assert again == port
