"""Whether a peer still answers at TCP level."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

import pytest
from typing_extensions import override

from services.edge import liveness

pytestmark = pytest.mark.asyncio


class Server(asyncio.Protocol):
    """Notes its transport."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


@contextlib.asynccontextmanager
async def _connection() -> AsyncGenerator[tuple[asyncio.BaseTransport, socket.socket]]:
    loop = asyncio.get_running_loop()
    accepted = Server()
    server = await loop.create_server(lambda: accepted, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        async with asyncio.timeout(20):
            while not hasattr(accepted, "transport"):  # noqa: ASYNC110 - a test waits
                await asyncio.sleep(0.01)
        yield accepted.transport, peer
    server.close()


async def _ask(transport: asyncio.BaseTransport) -> bool:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()
    liveness.probe(transport, loop, answer.set_result)
    async with asyncio.timeout(liveness.DEADLINE_S + 20):
        return await answer


async def test_a_silent_peer_that_is_there_is_alive() -> None:
    async with _connection() as (transport, peer):
        assert await _ask(transport)
        known = transport.get_extra_info("socket")
        with socket.fromfd(known.fileno(), known.family, known.type) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert peer.fileno() > 0


async def test_a_peer_without_acknowledgement_is_dead_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    # A peer behind a cut cable can't be had on loopback: the kernel's answer is replaced.
    monkeypatch.setattr(liveness, "_last_acknowledgement_s", lambda _: 100.0)
    monkeypatch.setattr(liveness, "DEADLINE_S", 0.2)
    async with _connection() as (transport, _):
        assert not await _ask(transport)


async def test_a_closed_transport_is_dead() -> None:
    async with _connection() as (transport, _):
        transport.close()
        assert not await _ask(transport)


async def test_a_peer_that_closes_meanwhile_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_last_acknowledgement_s", lambda _: 100.0)
    async with _connection() as (transport, peer):
        peer.close()
        assert not await _ask(transport)
