"""Tests of `benchmarks.offline_client`: what a benchmark waits for comes, or it learns what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from benchmarks import offline
from benchmarks.offline_client import Client, MissingError
from benchmarks.wire import Login

pytestmark = pytest.mark.asyncio

CONNACK, REFUSED = b"\x20\x02\x00\x00", b"\x20\x02\x00\x03"


@asynccontextmanager
async def connected(answer: bytes, *, ends: bool = False) -> AsyncGenerator[tuple[Client, int]]:
    """Yield a client and the port of a server that answers CONNECT so, and then ends the connection or is silent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        if not ends:
            while await reader.read(1000):
                pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = Client(Login("GID_x", "key", "instance", "secret"), "1")
    try:
        yield client, server.sockets[0].getsockname()[1]
    finally:
        if not client.is_lost:
            await client.leave()
        server.close()


async def test_a_silent_server_is_given_up() -> None:
    async with connected(b"") as (client, port):
        with pytest.raises(MissingError, match=r"GID_x@@@1 got no CONNACK within 0\.1 s"):
            await client.connect(port, wait_s=0.1)


async def test_a_refusal_is_told() -> None:
    async with connected(REFUSED) as (client, port):
        with pytest.raises(MissingError, match="was not let in: CONNACK 3"):
            await client.connect(port)


async def test_a_lost_connection_ends_every_wait() -> None:
    async with connected(CONNACK, ends=True) as (client, port):
        await client.connect(port)
        client.publish("a", b"", 1)
        with pytest.raises(MissingError, match="lost its connection before PUBACK came"):
            await client.until_unanswered(0)
        with pytest.raises(MissingError, match="lost its connection before SUBACK came"):
            await client.subscribe("a")
        with pytest.raises(MissingError, match="1 of 2 of all clients are here"):
            await offline.all_received([client], lambda: 1, 2)


async def test_messages_that_do_not_come_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "WAIT_S", 0.1)
    async with connected(CONNACK) as (client, port):
        await client.connect(port)
        with pytest.raises(MissingError, match="1 of 2 messages are missing"):
            await offline.all_received([client], lambda: 1, 2)
