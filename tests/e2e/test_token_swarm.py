"""Many clients in token mode: exactly those whose tokens are revoked are closed, within a second, on every edge.

`make chaos` has 5,000 clients; the default run fewer, and more time, since it shares the machine with other tests.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from services.edge.mqtt import packets
from tests.support import swarm
from tests.support.mesh import Mesh
from tests.support.swarm import SwarmClient, Tokens

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio, pytest.mark.timeout(300)]

INVALID = "$SYS/tokenInvalidNotice"

counts = pytest.mark.parametrize(("count", "within_s"), [(300, 5.0), pytest.param(5000, 1.0, marks=pytest.mark.chaos)])


async def healthy(mesh: Mesh) -> float:
    """Wait until every process serves, the edges with a view of auth that is current; return when that was."""
    await asyncio.to_thread(mesh.wait_healthy)
    return time.monotonic()


@asynccontextmanager
async def connected(mesh: Mesh, tokens: Tokens, count: int) -> AsyncGenerator[dict[str, SwarmClient]]:
    """Yield clients that are in, each by its own token."""
    swarm.allow_sockets()
    name = secrets.token_hex(3)
    made = [await tokens.apply("RW", f"{mesh.topic}/#") for _ in range(count)]
    clients = {
        token: SwarmClient(mesh.client_id(f"{name}-{n}"), tokens.user, f"RW|{token}") for n, token in enumerate(made)
    }
    await swarm.connect(swarm.ports_of(mesh), clients.values())
    try:
        yield clients
    finally:
        for client in clients.values():
            client.close()
        await swarm.until(lambda: all(client.closed_at for client in clients.values()), "all closed")


async def expect_exactly(clients: dict[str, SwarmClient], revoked: list[str], since: float, within_s: float) -> None:
    """Wait for the end of those whose tokens are revoked, and check the others."""
    gone = [clients[token] for token in revoked]
    kept = [client for token, client in clients.items() if token not in set(revoked)]
    await swarm.until(lambda: all(client.closed_at for client in gone), "the revoked are closed")
    assert max(client.closed_at for client in gone) - since < within_s
    assert all(client.notices == [(INVALID, {"code": 3, "type": "RW"})] for client in gone)
    await expect_alive(kept)


async def expect_alive(clients: list[SwarmClient]) -> None:
    """Check that connections live."""
    before = [client.answers for client in clients]
    for client in clients:
        assert not client.closed_at, client.client_id
        client.send(packets.PingReq())
    await swarm.until(
        lambda: all(client.answers > count for client, count in zip(clients, before, strict=True)), "answers to pings"
    )
    assert not any(client.notices for client in clients)


@counts
async def test_exactly_the_revoked_are_closed_within_a_second(mesh: Mesh, count: int, within_s: float) -> None:
    await healthy(mesh)
    async with swarm.tokens_of(mesh) as tokens, connected(mesh, tokens, count) as clients:
        half = list(clients)[: count // 2]
        await tokens.revoke(half)
        await expect_exactly(clients, half, time.monotonic(), within_s)
        again = SwarmClient(mesh.client_id("revoked"), tokens.user, f"RW|{half[0]}")
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: again, "127.0.0.1", mesh.mqtt_port())
        await swarm.until(lambda: again.return_code is not None, "CONNACK")
        assert again.return_code == packets.ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD


@counts
async def test_clients_that_share_a_revoked_token_are_closed_together(mesh: Mesh, count: int, within_s: float) -> None:
    await healthy(mesh)
    async with swarm.tokens_of(mesh) as tokens:
        one, other = [await tokens.apply("RW", f"{mesh.topic}/#") for _ in range(2)]
        clients = [
            SwarmClient(mesh.client_id(f"shared-{secrets.token_hex(4)}"), tokens.user, f"RW|{one if n % 2 else other}")
            for n in range(count)
        ]
        swarm.allow_sockets()
        await swarm.connect(swarm.ports_of(mesh), clients)
        await tokens.revoke([one])
        since = time.monotonic()
        await swarm.until(lambda: all(client.closed_at for client in clients[1::2]), "the revoked are closed")
        assert max(client.closed_at for client in clients[1::2]) - since < within_s
        await expect_alive(clients[::2])
        for client in clients:
            client.close()
        await swarm.until(lambda: all(client.closed_at for client in clients), "all closed")


@counts
async def test_a_revocation_survives_the_death_of_auth_and_nobody_else_notices(
    mesh: Mesh, count: int, within_s: float
) -> None:
    await healthy(mesh)
    async with swarm.tokens_of(mesh) as tokens, connected(mesh, tokens, count) as clients:
        kept = list(clients.values())[count // 2 :]
        listener, publisher = kept[:2]
        listener.send(packets.Subscribe(1, [(f"{mesh.topic}/swarm", 1)]))
        await swarm.until(lambda: listener.answers == 1, "SUBACK")
        await tokens.revoke(list(clients)[: count // 4])
        await asyncio.to_thread(mesh.kill, "auth")
        publisher.send(packets.Publish(f"{mesh.topic}/swarm", b"while auth is away", 1, False, False, 1))
        await swarm.until(lambda: publisher.answers == 1, "PUBACK while auth is away")
        await healthy(mesh)
        await tokens.revoke(list(clients)[count // 4 : count // 2])
        await expect_exactly(clients, list(clients)[: count // 2], time.monotonic(), within_s)
        assert listener.messages == [b"while auth is away"]
