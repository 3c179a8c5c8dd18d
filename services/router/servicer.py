"""`RouterService` over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from grpc import aio
from typing_extensions import override

from services.common.errors import StreamContractError
from services.common.link import LinkBrokenError
from services.common.runtime import first_of
from services.router.calls import Calls
from services.router.members import Members
from weimq.router.v1 import router_pb2, router_pb2_grpc

OPENING_S = 5.0
"""How long a new stream may take to say who it is."""

_Context = aio.ServicerContext[AsyncIterator[router_pb2.LinkRequest], AsyncIterator[router_pb2.LinkResponse]]


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Links of edges, whose state is with `Members`, and messages of others."""

    def __init__(self, members: Members, calls: Calls) -> None:
        self._members = members
        self._calls = calls

    @override
    async def Publish(
        self,
        request: router_pb2.PublishRequest,
        context: aio.ServicerContext[router_pb2.PublishRequest, Awaitable[router_pb2.PublishResponse]],
    ) -> router_pb2.PublishResponse:
        await self._calls.publish(request.messages, context.time_remaining())
        return router_pb2.PublishResponse()

    @override
    async def Deliver(
        self,
        request: router_pb2.DeliverRequest,
        context: aio.ServicerContext[router_pb2.DeliverRequest, Awaitable[router_pb2.DeliverResponse]],
    ) -> router_pb2.DeliverResponse:
        outcome = await self._calls.deliver(request.message, context.time_remaining())
        return router_pb2.DeliverResponse(outcome=outcome)

    @override
    async def PublishStream(  # type: ignore[override]  # as with `Link`
        self, request_iterator: AsyncIterator[router_pb2.PublishStreamRequest], context: Any
    ) -> None:
        async def read() -> router_pb2.PublishStreamRequest | None:
            message = await context.read()
            return None if message is aio.EOF else message

        with contextlib.suppress(aio.UsageError, asyncio.InvalidStateError):  # the caller is gone
            await self._calls.stream(read, context.write)

    @override
    async def Link(  # type: ignore[override]  # the stub knows only generators; this one reads and writes its context
        self, request_iterator: AsyncIterator[router_pb2.LinkRequest], context: _Context
    ) -> None:
        stream_context: Any = context  # types-grpcio types `read` and `write` by the iterators

        async def read() -> router_pb2.LinkRequest | None:
            message = await stream_context.read()
            return None if message is aio.EOF else message

        opening = await _opening(read)
        edge, stream = await self._members.open(opening)
        opened = router_pb2.LinkOpened(
            router_incarnation=edge.router_incarnation,
            # What is held back comes again and is dropped by the link, so that the edge's window stays full.
            received_through=edge.link.confirmed_through,
            resumed=stream.is_resumed,
            missed=stream.has_missed,
        )
        try:
            await stream_context.write(router_pb2.LinkResponse(opened=opened))
            await first_of(edge.link.exchange(read, stream_context.write), stream.ended())
        except (LinkBrokenError, aio.UsageError, asyncio.InvalidStateError):
            pass  # the edge comes again, or its grace ends
        except StreamContractError as error:
            self._members.violated(edge, error)
            raise
        finally:
            self._members.left(edge, stream)


async def _opening(read: Any) -> router_pb2.LinkOpen:  # noqa: ANN401 - a local function of the above
    try:
        async with asyncio.timeout(OPENING_S):
            request: router_pb2.LinkRequest | None = await read()
    except TimeoutError as error:
        raise StreamContractError("the stream was not opened in time", rule="opening") from error
    if request is None or not request.HasField("open") or len(request.ListFields()) != 1:
        raise StreamContractError("the first request holds `open` and nothing else", rule="opening")
    return request.open
