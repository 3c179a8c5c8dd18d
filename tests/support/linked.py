"""A router link of an edge in this process, and the router's end of its streams in the hands of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from grpc import aio

from services.common.readiness import Readiness
from services.common.settings import Secret
from services.edge.hub import Hub
from services.edge.router_link import RouterLink
from services.edge.sequences import Sequences
from weimq.router.v1 import router_pb2


class Stream:
    """One stream as gRPC shows it to the caller, without gRPC."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[router_pb2.LinkRequest] = asyncio.Queue()
        """What the edge wrote."""
        self.responses: asyncio.Queue[Any] = asyncio.Queue()
        """What it is to read; `aio.EOF` ends the stream."""

    async def write(self, request: router_pb2.LinkRequest) -> None:
        """Take a message of the edge."""
        self.requests.put_nowait(router_pb2.LinkRequest.FromString(request.SerializeToString()))

    async def read(self) -> Any:
        """Give one to the edge."""
        return await self.responses.get()

    def cancel(self) -> None:
        """End it."""


class Linked:
    """The edge's end of a link. `take` is called with each frame of it; what is in `answer` goes back."""

    def __init__(self, hub: Hub, take: Callable[[router_pb2.LinkRequest], None]) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.link = RouterLink(
            channel=cast("aio.Channel", self),
            token=Secret("0123456789abcdef"),
            hub=hub,
            readiness=Readiness("router"),
            edge_id="edge",
            edge_incarnation="e",
            sequences=Sequences(),
        )
        self.answer = router_pb2.LinkResponse()
        self._take = take
        self._stream = Stream()
        self._incarnation = 0
        self._next_frame = 1
        self._received_through = 0

    def stream_stream(self, *_: object, **__: object) -> Callable[..., Stream]:
        """Stand for a channel: as gRPC's stub has it."""
        return self._open

    def unary_unary(self, *_: object, **__: object) -> None:
        """Stand for a channel: the edge calls nothing else."""

    def _open(self, **_: object) -> Stream:
        stream = Stream()
        self.streams.put_nowait(stream)
        return stream

    async def connect(self, *, resumed: bool = False) -> None:
        """Take the next stream of the edge: as the router that knows the link, or as a new one."""
        self._stream = await self.streams.get()
        assert (await self._stream.requests.get()).HasField("open")
        if not resumed:
            self._incarnation += 1
            self._next_frame, self._received_through = 1, 0
            self.answer = router_pb2.LinkResponse()
        opened = router_pb2.LinkOpened(
            router_incarnation=f"r{self._incarnation}", received_through=self._received_through, resumed=resumed
        )
        self._stream.responses.put_nowait(router_pb2.LinkResponse(opened=opened))

    def break_off(self) -> None:
        """End the stream."""
        self._stream.responses.put_nowait(aio.EOF)

    def exchange(self) -> bool:
        """Take what the edge has written and send `answer`; return whether there was anything."""
        is_busy = False
        while not self._stream.requests.empty():
            request = self._stream.requests.get_nowait()
            if request.frame == self._received_through + 1:
                self._received_through = request.frame
                self._take(request)
                is_busy = True
        frame, self.answer = self.answer, router_pb2.LinkResponse()
        if frame.ByteSize() or is_busy:
            frame.frame = self._next_frame
            frame.received_through = self._received_through
            self._next_frame += 1
            self._stream.responses.put_nowait(frame)
            is_busy = True
        return is_busy
