"""How a connection is read: fairly between clients, and freed when a stranger is gone."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import cast

import pytest

from services.edge.connection import Connection
from services.edge.credentials import Credentials
from services.edge.hub import Hub
from services.edge.mqtt import codec, packets
from services.edge.mqtt.machine import Limits
from services.edge.policies import Policies
from services.edge.ports import TokenChecker
from services.edge.roster import Roster
from services.edge.transports.layer import READ_BYTES

CONNECT = codec.encode(packets.Connect(4, "x" * 60_000, True, 0, None, None, None))


class FakeTransport:
    """Notes whether it is read from."""

    def __init__(self) -> None:
        self.is_reading = True
        self.is_closed = False

    def is_closing(self) -> bool:
        """Say what `close` noted."""
        return self.is_closed

    def close(self) -> None:
        """Note it."""
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        """Have written everything."""
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        """Take no note."""

    def get_extra_info(self, _name: str) -> None:
        """Know nothing."""

    def pause_reading(self) -> None:
        """Note it."""
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        """Note it."""
        assert not self.is_reading
        self.is_reading = True


def _connection() -> Connection:
    loop = asyncio.get_running_loop()
    hub = Hub(loop)
    hub.router = SimpleNamespace(is_congested=False)  # all that is asked
    return Connection(hub, loop, Limits(max_inflight=64, slow_consumer_s=10))


def _read(connection: Connection, data: bytes) -> None:
    buffer = connection.get_buffer(-1)
    buffer[: len(data)] = data
    connection.buffer_updated(len(data))


@pytest.mark.asyncio
async def test_who_sends_more_than_its_part_waits_for_the_next_loop_turn() -> None:
    connection, transport = _connection(), FakeTransport()
    connection.connection_made(cast("asyncio.Transport", transport))
    _read(connection, CONNECT[:READ_BYTES])
    assert not transport.is_reading
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.is_reading
    _read(connection, CONNECT[READ_BYTES:-1])
    assert transport.is_reading


@pytest.mark.asyncio
async def test_a_stranger_that_is_closed_counts_until_its_transport_is_gone() -> None:
    connection, transport = _connection(), FakeTransport()
    roster = Roster()
    connection._hub.credentials = Credentials(
        roster=roster,
        policies=Policies(roster, lambda *_: ()),
        checker=cast("TokenChecker", None),  # nobody is in token mode
        release=lambda _: None,
    )
    strangers = connection._hub.strangers
    connection.connection_made(cast("asyncio.Transport", transport))
    _read(connection, b"\0\0")
    assert transport.is_closed
    assert len(strangers) == 1
    connection.connection_lost(None)
    assert len(strangers) == 0


@pytest.mark.asyncio
async def test_a_stranger_is_freed_without_a_collection() -> None:
    def alive() -> int:
        return sum(isinstance(each, Connection) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        strangers = [_connection() for _ in range(10)]
        assert alive() == before + 10
        strangers.clear()
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.asyncio
async def test_a_connection_is_looked_at_when_something_is_due() -> None:
    connection = _connection()
    connection.connection_made(cast("asyncio.Transport", FakeTransport()))
    now = asyncio.get_running_loop().time()
    connection.check_deadline(now)
    assert connection.look_at == now + 5, "half of `slow_consumer_s`"
    connection.check_deadline(now + 7)
    assert now + 8 < connection.look_at < now + 10.1, "the time for its CONNECT ends"
