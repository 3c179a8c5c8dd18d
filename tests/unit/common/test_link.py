"""Links keep every frame, once and in order, however often the stream breaks."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest

from services.common import link as link_module
from services.common.link import Link, LinkBrokenError
from services.common.runtime import first_of
from weimq.router.v1 import router_pb2


class End:
    """One end of a link that sends numbers as sequences."""

    def __init__(self, window_bytes: int = 1 << 20) -> None:
        self.to_send: deque[int] = deque()
        self.received: list[int] = []
        self.confirmed = 0
        self.link: Link[router_pb2.LinkResponse, router_pb2.LinkResponse] = Link(
            build=self.build,
            bare=router_pb2.LinkResponse,
            take=self.take,
            confirmed=self.on_confirmed,
            window_bytes=window_bytes,
        )

    def build(self) -> router_pb2.LinkResponse | None:
        if not self.to_send:
            return None
        batch = [self.to_send.popleft() for _ in range(min(3, len(self.to_send)))]
        return router_pb2.LinkResponse(acknowledged_sequences=batch)

    def take(self, frame: router_pb2.LinkResponse) -> None:
        self.received.extend(frame.acknowledged_sequences)
        self.link.confirm(frame.frame)

    def on_confirmed(self, through: int) -> None:
        assert through > self.confirmed
        self.confirmed = through

    def send(self, *numbers: int) -> None:
        self.to_send.extend(numbers)
        self.link.wake()


class Wire:
    """A stream in memory that can lose what is on its way."""

    def __init__(self) -> None:
        self.queues: tuple[asyncio.Queue[bytes | None], ...] = (asyncio.Queue(4), asyncio.Queue(4))

    async def run(self, a: End, b: End) -> None:
        await first_of(self._run(a, 0), self._run(b, 1))

    async def _run(self, end: End, side: int) -> None:
        async def read() -> router_pb2.LinkResponse | None:
            data = await self.queues[1 - side].get()
            return None if data is None else router_pb2.LinkResponse.FromString(data)

        async def write(message: router_pb2.LinkResponse) -> None:
            await self.queues[side].put(message.SerializeToString())

        await end.link.exchange(read, write)


async def until_broken(a: End, b: End, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await Wire().run(a, b)
    except (LinkBrokenError, TimeoutError):
        return


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(20))
async def test_frames_arrive_once_and_in_order_over_broken_streams(seed: int) -> None:
    rng = random.Random(seed)
    a, b = End(window_bytes=200), End(window_bytes=200)
    a.send(*range(500))
    b.send(*range(1000, 1400))
    for _ in range(200):
        await until_broken(a, b, rng.random() * 0.01)
        a.link.resume(b.link.confirmed_through)
        b.link.resume(a.link.confirmed_through)
        if len(b.received) == 500 and len(a.received) == 400:
            break
    assert b.received == list(range(500))
    assert a.received == list(range(1000, 1400))


@pytest.mark.asyncio
async def test_unconfirmed_bytes_stay_within_the_window() -> None:
    a, b = End(window_bytes=40), End()
    b.take = lambda frame: b.received.extend(frame.acknowledged_sequences)  # type: ignore[method-assign]
    b.link._take = b.take  # takes over, never confirms
    a.send(*range(1000))
    await until_broken(a, b, 0.1)
    assert a.link.is_congested
    assert len(b.received) < 100
    b.link.confirm(b.link.received_through)
    a.link.resume(b.link.confirmed_through)
    assert not a.link.is_congested


@pytest.mark.asyncio
async def test_silence_breaks_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOOK_S", 0.01)
    end = End()

    async def read() -> None:
        await asyncio.Event().wait()

    async def write(message: router_pb2.LinkResponse) -> None:
        await asyncio.sleep(0)

    with pytest.raises(LinkBrokenError, match="no message"):
        await end.link.exchange(read, write)


@pytest.mark.asyncio
async def test_a_gap_breaks_the_stream() -> None:
    end = End()
    messages = [router_pb2.LinkResponse(frame=2)]

    async def read() -> router_pb2.LinkResponse | None:
        return messages.pop() if messages else None

    async def write(message: router_pb2.LinkResponse) -> None:
        await asyncio.sleep(0)

    with pytest.raises(LinkBrokenError, match="frame 2 came after 0"):
        await end.link.exchange(read, write)


def test_a_confirmation_that_nobody_waits_for_goes_with_the_next_frame() -> None:
    end = End()
    end.link.confirm(1, lazily=True)
    assert end.link._next_message() is None
    end.send(7)
    frame = end.link._next_message()
    assert frame is not None
    assert (frame.frame, frame.received_through) == (1, 1)
    end.link.confirm(1 + link_module.LAZY_FRAMES, lazily=True)
    bare = end.link._next_message()
    assert bare is not None
    assert (bare.frame, bare.received_through) == (0, 1 + link_module.LAZY_FRAMES)


@pytest.mark.asyncio
async def test_a_confirmation_that_nobody_waits_for_goes_by_itself_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOOK_S", 60)
    a, b = End(), End()
    b.link._take = lambda frame: b.link.confirm(frame.frame, lazily=True)
    confirmed = asyncio.Event()
    a.link._confirmed = lambda _: confirmed.set()
    a.send(1)
    await first_of(Wire().run(a, b), asyncio.wait_for(confirmed.wait(), 20))
    assert confirmed.is_set()


@pytest.mark.asyncio
async def test_a_sender_that_may_send_nothing_confirms_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOOK_S", 60)
    monkeypatch.setattr(link_module, "LAZY_S", 0.5)
    a, b = End(), End(window_bytes=0)
    b.link._take = lambda frame: b.link.confirm(frame.frame, lazily=True)
    confirmed = asyncio.Event()
    a.link._confirmed = lambda _: confirmed.set()

    async def keep_writing() -> None:
        while True:
            b.send(1)
            await asyncio.sleep(0)

    a.send(1)
    await first_of(Wire().run(a, b), keep_writing(), asyncio.wait_for(confirmed.wait(), 10))
    assert confirmed.is_set()


async def frames_of(end: End, count: int) -> list[list[int]]:
    """Return what `end` sends in so many frames; after each but the last, two things more come one after the other."""
    loop = asyncio.get_running_loop()
    sent: list[list[int]] = []

    async def read() -> None:
        await asyncio.Event().wait()

    async def write(message: router_pb2.LinkResponse) -> None:
        sent.append(list(message.acknowledged_sequences))
        if len(sent) == count:
            raise LinkBrokenError
        loop.call_soon(end.send, 2 * len(sent))
        loop.call_soon(loop.call_soon, end.send, 2 * len(sent) + 1)

    end.send(1)
    with pytest.raises(LinkBrokenError):
        await end.link.exchange(read, write)
    return sent


@pytest.mark.asyncio
async def test_under_load_more_gathers_for_the_next_frame() -> None:
    end = End()
    end.link.gather(link_module.MANY)
    assert await frames_of(end, 2) == [[1], [2, 3]]


@pytest.mark.asyncio
async def test_nothing_gathers_behind_a_frame_that_nobody_is_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "BUSY_S", 10)  # however slow the machine is
    end = End()
    end.link.gather(link_module.MANY)
    end.link.skip_pause()
    assert await frames_of(end, 3) == [[1], [2], [3, 4, 5]]


@pytest.mark.asyncio
async def test_single_things_that_follow_one_another_gather_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "BUSY_S", 10)  # however slow the machine is
    assert await frames_of(End(), 3) == [[1], [2], [3, 4, 5]]
