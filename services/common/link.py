"""Reliable, ordered frames over successive gRPC streams between the same two processes.

Both ends of a `Link` RPC (an edge, and the router or the session service) hold one `Link` object
that outlives the stream:

- Content travels in frames, numbered from 1 in each direction. A frame stays with its sender until the peer
  confirmed it (`received_through`, cumulative), so a broken stream loses nothing: `resume` sends
  unconfirmed frames again on the next stream, and the receiver drops those that it has had.
- Batches form by back-pressure alone: the writer asks `build` for the next frame only when the stream took
  the one before and fewer than `window_bytes` are unconfirmed. What is to be sent gathers meanwhile.
- A message costs the same whether it carries one thing or hundreds, some 60 us in each process. So confirmations that
  nobody waits for go with the next frame (`lazily`), and under load the writer lets things gather (`gather`).
- When either process is a new one, `reset` starts from nothing and the application sends its state.
- A stream without a message for five seconds counts as broken; both ends send one at least every two seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from grpc import aio

from services.common import ticks
from services.common.runtime import first_of

LOOK_S = 1.0
"""How often is looked whether the peer was heard."""

LOOKS_PER_BEAT = 2
"""After so many looks a message is sent, even without content."""

SILENT_LOOKS = 5
"""Looks in a row without a message of the peer after which the stream counts as broken."""

GATHER_S = 0.001
"""Pause of the writer after a message while much is under way, so that more gathers for the next one.

A message costs some 60 us in each process, whatever it carries: without the pause, a few thousand single things a
second take both cores. What is sent after a rest goes at once.
"""

BUSY_S = 2 * GATHER_S
"""Messages that follow one another faster mean that much is under way."""

MANY = 16
"""Things in one frame that mean it, too."""

LAZY_S = 0.02
LAZY_FRAMES = 4
"""Time and frames after which a confirmation goes by itself, although nobody waits for it."""

WINDOW_BYTES = 8 << 20
"""What a sender has unconfirmed at the most, give or take one frame."""


class LinkBrokenError(Exception):
    """The stream ended, was silent for too long, or brought a frame out of order."""


class Message(Protocol):
    """What both message types of a link have."""

    frame: int
    received_through: int

    def ByteSize(self) -> int:  # noqa: N802 - protobuf's name
        """Return the size on the wire."""
        ...


S = TypeVar("S", bound=Message)
R = TypeVar("R", bound=Message)


class Link(Generic[S, R]):
    """One end of a link. Owned by one event loop; at most one `exchange` runs at a time.

    Args:
        build: returns the content of the next frame, or None when there is nothing to send.
        bare: returns an empty message.
        take: called once for each frame of the peer, in order; `confirm` follows now or later.
        confirmed: called with the number through which the peer has confirmed our frames.
        window_bytes: bound of unconfirmed bytes, above which `build` is not called.
    """

    def __init__(
        self,
        *,
        build: Callable[[], S | None],
        bare: Callable[[], S],
        take: Callable[[R], None],
        confirmed: Callable[[int], None],
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._build = build
        self._bare = bare
        self._take = take
        self._confirmed = confirmed
        self._window_bytes = window_bytes
        self._wake = asyncio.Event()
        self._unconfirmed: deque[S] = deque()
        self._sizes: deque[int] = deque()
        self._heard = False
        self._is_beat_due = False
        self._gathers = False
        self._skips_pause = False
        self.reset()

    def reset(self) -> None:
        """Forget all frames; numbering starts anew in both directions."""
        self._unconfirmed.clear()
        self._sizes.clear()
        self._on_stream = 0  # how many of the unconfirmed frames the current stream has taken
        self.next_frame = 1
        """Number that the next frame gets; valid inside `build`."""
        self.received_through = 0
        """Number of the last frame of the peer."""
        self.unconfirmed_bytes = 0
        """Size of the frames that the peer has not confirmed."""
        self.confirmed_through = 0
        """Number through which we confirmed the peer's frames."""
        self._told_through = 0
        self._is_awaited = False  # whether a confirmation is to be sent now
        self._wake.set()

    def resume(self, peer_received_through: int) -> None:
        """Go on on a new stream with a peer that confirmed our frames through `peer_received_through`."""
        self._drop_confirmed(peer_received_through)
        self._on_stream = 0
        self._told_through = 0  # the answer may have been lost with the old stream
        self._is_awaited = True
        self._wake.set()

    @property
    def is_congested(self) -> bool:
        """Whether the window is full."""
        return self.unconfirmed_bytes >= self._window_bytes

    @property
    def has_unconfirmed(self) -> bool:
        """Whether the peer has yet to confirm a frame."""
        return bool(self._unconfirmed)

    def wake(self) -> None:
        """Note that `build` has something to send."""
        self._wake.set()

    def gather(self, count: int) -> None:
        """Note that so many things came or go in one frame: with `MANY`, the writer pauses after its next message."""
        if count >= MANY:
            self._gathers = True

    def skip_pause(self) -> None:
        """Note that what comes next is not to wait: the writer does not pause after the frame that is being built."""
        self._skips_pause = True

    def confirm(self, through: int, *, lazily: bool = False) -> None:
        """Note that the peer's frames through this number have been taken over; `lazily`: nobody waits for that."""
        if through > self.confirmed_through:
            self.confirmed_through = through
            if not lazily or through - self._told_through >= LAZY_FRAMES:
                self._is_awaited = True
            self._wake.set()

    async def exchange(self, read: Callable[[], Awaitable[R | None]], write: Callable[[S], Awaitable[None]]) -> None:
        """Send and receive over one stream until it breaks.

        Args:
            read: returns the next message, None at the end of the stream.
            write: sends a message, waiting while the stream takes no more.

        Raises:
            LinkBrokenError: the stream ended; `resume` or `reset`, then exchange over the next one.
        """
        self._heard = True
        self._wake.set()
        try:
            await first_of(self._receive(read), self._send(write), self._watch())
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError) as error:
            raise LinkBrokenError(str(error)) from error
        raise LinkBrokenError("the stream ended")

    async def _send(self, write: Callable[[S], Awaitable[None]]) -> None:
        clock = asyncio.get_running_loop().time
        sent_at = 0.0
        told, due = -1, 0.0  # what was told when the time of the confirmation that is to follow began, and its end
        while True:
            self._wake.clear()
            while (message := self._next_message()) is not None:
                await write(message)
                before, sent_at = sent_at, clock()
                is_again = self._on_stream < len(self._unconfirmed)  # nothing more can gather for frames sent before
                if self._skips_pause:
                    self._skips_pause = False
                elif (self._gathers or sent_at - before < BUSY_S) and not is_again:
                    self._gathers = False
                    await asyncio.sleep(GATHER_S)
            if self._told_through == self.confirmed_through:
                told = -1
                await self._wake.wait()
                continue
            if told != self._told_through:
                told, due = self._told_through, clock() + LAZY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            if clock() >= due:  # however often the link was woken up
                self._is_awaited = True

    def _next_message(self) -> S | None:
        if self._on_stream < len(self._unconfirmed):
            message = self._unconfirmed[self._on_stream]
            self._on_stream += 1
            return self._stamp(message)
        if self.unconfirmed_bytes < self._window_bytes and (frame := self._build()) is not None:
            frame.frame = self.next_frame
            self.next_frame += 1
            size = frame.ByteSize()
            self._unconfirmed.append(frame)
            self._sizes.append(size)
            self.unconfirmed_bytes += size
            self._on_stream += 1
            return self._stamp(frame)
        if self._is_awaited or self._is_beat_due:
            return self._stamp(self._bare())
        return None

    def _stamp(self, message: S) -> S:
        message.received_through = self._told_through = self.confirmed_through
        self._is_awaited = self._is_beat_due = False
        return message

    async def _receive(self, read: Callable[[], Awaitable[R | None]]) -> None:
        while (message := await read()) is not None:
            self._heard = True
            if message.received_through > self.next_frame - 1 - len(self._unconfirmed):
                self._drop_confirmed(message.received_through)
                self._wake.set()
            number = message.frame
            if number == self.received_through + 1:
                self.received_through = number
                self._take(message)
            elif number > self.received_through:
                raise LinkBrokenError(f"frame {number} came after {self.received_through}")

    def _drop_confirmed(self, through: int) -> None:
        if through >= self.next_frame:
            raise LinkBrokenError(f"frame {through} was confirmed and never sent")
        first = self.next_frame - len(self._unconfirmed)
        if through < first:
            return
        for _ in range(through - first + 1):
            self._unconfirmed.popleft()
            self.unconfirmed_bytes -= self._sizes.popleft()
        self._on_stream = max(0, self._on_stream - (through - first + 1))
        self._confirmed(through)

    async def _watch(self) -> None:
        # Counts looks instead of reading the clock: a process that was stopped for a while has
        # messages waiting, and must not take its own pause for the peer's silence.
        looks = silent = 0
        while silent < SILENT_LOOKS:
            await ticks.tick(LOOK_S)
            silent = 0 if self._heard else silent + 1
            self._heard = False
            looks += 1
            if looks % LOOKS_PER_BEAT == 0:
                self._is_beat_due = True
                self._wake.set()
        raise LinkBrokenError(f"no message for {SILENT_LOOKS * LOOK_S:.0f} s")
