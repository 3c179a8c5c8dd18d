"""The connection of a service to NATS: it never outlives what it was made for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import cast

import nats.errors
import pytest
from nats.aio.client import Client
from typing_extensions import override

from services.common import jetstream, runtime
from services.common.readiness import Readiness
from services.common.runtime import StopRequestedError, unless_stopped
from services.common.settings import Secret
from tests.support.wait import eventually


class Leaving(Readiness):
    """Cancels `leaves` at the moment when NATS is there."""

    leaves: asyncio.Task[None]

    @override
    def mark(self, dependency: str, *, present: bool) -> None:
        super().mark(dependency, present=present)
        if present:
            self.leaves.cancel()


class FakeNats:
    """Does what a real server can't be made to do, without tasks of its own."""

    closes = False
    """Whether it closes each connection at once."""
    refuses = False
    """Whether it answers CONNECT with an error."""
    is_mute = False
    """Whether it answers nothing, once a client has connected."""

    def __init__(self) -> None:
        self.url = ""
        self.made = 0
        self.open: set[asyncio.Transport] = set()

    def drop(self) -> None:
        for transport in self.open:
            transport.abort()


class FakeConnection(asyncio.Protocol):
    def __init__(self, server: FakeNats) -> None:
        self._server = server
        self._has_connected = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._server.made += 1
        self._server.open.add(transport)
        if self._server.closes:
            transport.close()
        else:
            transport.write(b'INFO {"server_id":"x","version":"2.10.0","proto":1,"max_payload":1048576}\r\n')

    @override
    def data_received(self, data: bytes) -> None:
        if self._server.refuses and b"CONNECT" in data:
            self._transport.write(b"-ERR 'Authorization Violation'\r\n")
            self._transport.close()
        elif b"PING" in data and not (self._has_connected and self._server.is_mute):
            self._has_connected = True
            self._transport.write(b"PONG\r\n")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self._transport)


@contextlib.asynccontextmanager
async def fake_nats() -> AsyncGenerator[FakeNats]:
    fake = FakeNats()
    server = await asyncio.get_running_loop().create_server(lambda: FakeConnection(fake), "127.0.0.1", 0)
    fake.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        fake.drop()
        await eventually(lambda: not fake.open)


async def use(nats_url: str, readiness: Readiness, stop: asyncio.Event | None = None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await unless_stopped(stop or asyncio.Event(), stack.enter_async_context(connected(nats_url, readiness)))
        await asyncio.Event().wait()


def connected(nats_url: str, readiness: Readiness | None = None) -> contextlib.AbstractAsyncContextManager[Client]:
    readiness = readiness or Readiness(jetstream.DEPENDENCY)
    return jetstream.connected(Secret(nats_url), name="test", readiness=readiness)


async def assert_nothing_left(fake: FakeNats) -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await eventually(lambda: not fake.open)


@pytest.mark.asyncio
async def test_a_connection_that_comes_as_it_is_given_up_is_closed(nats_url: str) -> None:
    readiness = Leaving(jetstream.DEPENDENCY)
    readiness.leaves = asyncio.create_task(use(nats_url, readiness))
    with pytest.raises(asyncio.CancelledError):
        await readiness.leaves
    assert asyncio.all_tasks() == {asyncio.current_task()}  # nats-py has tasks as long as it has a connection


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(0, 40, 2))
async def test_connecting_can_be_given_up_at_any_time(nats_url: str, turns: int) -> None:
    leaves = asyncio.create_task(use(nats_url, Readiness(jetstream.DEPENDENCY)))
    for _ in range(turns):
        await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ["closes", "refuses"])
@pytest.mark.parametrize("turns", range(20))
async def test_connecting_to_a_server_that_does_not_want_us_can_be_given_up_at_any_time(
    monkeypatch: pytest.MonkeyPatch, fault: str, turns: int
) -> None:
    monkeypatch.setattr(runtime, "CANCEL_AGAIN_S", 0.02)
    async with fake_nats() as fake:
        setattr(fake, fault, True)
        stop = asyncio.Event()
        leaves = asyncio.create_task(use(fake.url, Readiness(jetstream.DEPENDENCY), stop))
        for _ in range(turns):
            await asyncio.sleep(0)
        stop.set()
        async with asyncio.timeout(1):
            with pytest.raises(StopRequestedError):
                await leaves
        await assert_nothing_left(fake)


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(3, 10))
async def test_a_second_cancellation_closes_the_connection_as_well(turns: int) -> None:
    async with fake_nats() as fake:
        fake.is_mute = True
        readiness = Readiness(jetstream.DEPENDENCY)
        leaves = asyncio.create_task(use(fake.url, readiness))
        await readiness.wait()
        leaves.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        leaves.cancel()
        async with asyncio.timeout(3):
            with pytest.raises(asyncio.CancelledError):
                await leaves
        await assert_nothing_left(fake)


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(20))
async def test_a_reconnection_ends_with_what_it_was_for(monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    async with fake_nats() as fake:
        async with connected(fake.url) as client:
            client.options["reconnect_time_wait"] = 0.01
            reconnects = asyncio.Event()
            connect = client._connect_to_server

            async def connect_again(server: object) -> None:
                reconnects.set()
                await connect(server)  # type: ignore[arg-type]

            monkeypatch.setattr(client, "_connect_to_server", connect_again)
            fake.drop()
            await reconnects.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
        await assert_nothing_left(fake)


@pytest.mark.asyncio
async def test_a_server_that_reads_no_more_is_left_in_time() -> None:
    loop = asyncio.get_running_loop()
    async with fake_nats() as fake:
        async with connected(fake.url) as client:
            (there,) = fake.open
            there.pause_reading()
            for _ in range(32):
                await client.publish("a", bytes(1 << 19))
            transport = client._transport._io_writer.transport  # type: ignore[union-attr]
            left_at = loop.time()
        assert loop.time() - left_at < 3.5
        await eventually(lambda: transport.get_extra_info("socket") is None, seconds=1)
        there.resume_reading()
        await assert_nothing_left(fake)


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(4))
async def test_a_broken_connection_does_not_hide_what_the_body_raises(turns: int) -> None:
    async with fake_nats() as fake:
        with pytest.raises(ValueError, match="of the body"):  # noqa: PT012 - it is the body that matters
            async with connected(fake.url) as client:
                client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
                for _ in range(turns):
                    await asyncio.sleep(0)
                raise ValueError("of the body")
        await assert_nothing_left(fake)


@pytest.mark.asyncio
async def test_a_wrong_url_is_told() -> None:
    with pytest.raises(nats.errors.Error, match="invalid connect url"):
        async with connected("nats://127.0.0.1:port"):
            pass


@pytest.mark.asyncio
async def test_an_error_from_nats_makes_the_client_reconnect(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with fake_nats() as fake:
        readiness = Readiness(jetstream.DEPENDENCY)
        async with connected(fake.url, readiness):
            (there,) = fake.open
            there.write(b"-ERR 'Authorization Violation'\r\n")
            await eventually(lambda: fake.made == 2)
            await readiness.wait()
        assert "authorization violation" in str([record.__dict__ for record in caplog.records])
        await assert_nothing_left(fake)
