"""Room for connections, and what happens without."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from types import SimpleNamespace

import pytest

from services.edge import descriptors
from services.edge.descriptors import ENOUGH, MOST_UNSEEN, Descriptors, raise_limit, refuse
from services.edge.transports.listen import ListenerSpec, open_listener


def _lowest_free() -> int:
    free = os.dup(2)
    os.close(free)
    return free


def test_the_reserve_is_not_given_to_connections(caplog: pytest.LogCaptureFixture) -> None:
    free = _lowest_free()
    assert Descriptors(limit=free + 11, reserve=10).has_room(100.0)
    full = Descriptors(limit=free + 10, reserve=10)
    assert not full.has_room(100.0)
    assert not full.has_room(105.0)
    assert len(caplog.records) == 1, "one line in ten seconds"
    assert not full.has_room(110.0)
    assert len(caplog.records) == 2


def test_with_room_for_many_not_every_connection_is_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    dup = os.dup

    def look(descriptor: int) -> int:
        looks.append(descriptor)
        return dup(descriptor)

    monkeypatch.setattr(os, "dup", look)
    roomy = Descriptors(limit=_lowest_free() + 10_000)
    looks.clear()
    assert all(roomy.has_room(100.0) for _ in range(4 * MOST_UNSEEN + 4))
    assert len(looks) == 4


def test_no_connection_gets_a_descriptor_of_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    # Those of a process full of other tests come and go.
    monkeypatch.setattr(descriptors, "os", SimpleNamespace(dup=lambda _: taken, close=lambda _: None))
    room = 3 * MOST_UNSEEN
    counted = Descriptors(limit=room + 10, reserve=10)
    while taken < 2 * room:
        taken += 1  # by the connection
        if not counted.has_room(100.0):
            break
    assert taken == room


def test_no_descriptor_at_all_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "dup", fail)
    assert not Descriptors(limit=1 << 20).has_room(100.0)


def test_the_limit_is_raised_and_a_low_one_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, ENOUGH - 1))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    assert raise_limit() == ENOUGH - 1
    assert raised == [(ENOUGH - 1, ENOUGH - 1)]
    assert "few file descriptors" in caplog.text


@pytest.mark.asyncio
async def test_a_connection_without_room_is_closed_and_the_next_one_served() -> None:
    made: list[asyncio.Protocol] = []

    def inner() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]

    answers = iter([refuse(), None])
    spec = ListenerSpec(name="tcp", host="127.0.0.1", port=0)
    async with open_listener(spec, inner, refusal=lambda: next(answers)) as (port,):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        assert not made
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(20):
            while not made:  # noqa: ASYNC110 - the accept has no event here
                await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
