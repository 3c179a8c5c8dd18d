"""`weimq.session.v1.SessionService` over the hub."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any, cast

from grpc import aio
from typing_extensions import override

from services.common.errors import (
    InvalidFieldError,
    NotFoundError,
    NotServingError,
    StreamContractError,
    SupersededError,
    UnavailableError,
)
from services.common.link import LinkBrokenError
from services.common.runtime import first_of
from services.session.hub import Hub
from services.session.kept_sessions import KeptSessions
from weimq.session.v1 import session_pb2, session_pb2_grpc

logger = logging.getLogger(__name__)

OPEN_S = 5.0
"""How long a stream may take to introduce itself."""

# A name becomes part of a header, where `/` separates the two.
_NAME = re.compile(r"[!-.0-~]{1,128}\Z")

Context = aio.ServicerContext[Any, Any]


class _Stream:
    """The stream of an edge that is open now."""

    __slots__ = ("ended", "superseded")

    def __init__(self) -> None:
        self.superseded = asyncio.Event()
        self.ended = asyncio.Event()


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Serves links and queries. Owned by one event loop."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._kept = KeptSessions(hub.keeper)
        self._incarnation = secrets.token_hex(8)
        self._streams: dict[str, _Stream] = {}
        self._stopping = asyncio.Event()

    async def end_links(self) -> None:
        """End all streams, and take no more."""
        self._stopping.set()
        while self._streams:
            await next(iter(self._streams.values())).ended.wait()

    @override
    async def Link(  # type: ignore[override]  # reads and writes through the context
        self, request_iterator: AsyncIterator[session_pb2.LinkRequest], context: Context
    ) -> None:
        opening = await _read_opening(context)
        self._refuse_unless_serving()
        edge_id = opening.edge_id
        while (earlier := self._streams.get(edge_id)) is not None:
            earlier.superseded.set()
            await earlier.ended.wait()
        stream = self._streams[edge_id] = _Stream()
        try:
            self._refuse_unless_serving()
            await self._exchange(opening, stream, context)
        finally:
            del self._streams[edge_id]
            stream.ended.set()
        if stream.superseded.is_set():
            raise SupersededError("the edge opened another link")
        if self._stopping.is_set():
            raise NotServingError("the session service is stopping")

    async def _exchange(self, opening: session_pb2.LinkOpen, stream: _Stream, context: Context) -> None:
        edge_link, resumed = self._hub.open(opening, self._incarnation)
        extra = {"edge": edge_link.edge_id, "incarnation": edge_link.incarnation}
        reason = "cancelled"
        link = edge_link.link
        logger.info("link opened", extra={**extra, "resumed": resumed})
        try:
            opened = session_pb2.LinkOpened(
                session_incarnation=self._incarnation, received_through=link.confirmed_through, resumed=resumed
            )
            await context.write(session_pb2.LinkResponse(opened=opened))
            await first_of(
                link.exchange(lambda: _read(context), context.write),
                stream.superseded.wait(),
                self._stopping.wait(),
            )
            reason = "superseded" if stream.superseded.is_set() else "stopping"
        except LinkBrokenError as error:
            reason = str(error)
        except StreamContractError as error:
            reason = str(error)
            raise
        finally:
            self._hub.break_link(edge_link)
            logger.info("link ended", extra={**extra, "reason": reason})

    def _refuse_unless_serving(self) -> None:
        if self._stopping.is_set():
            raise NotServingError("the session service is stopping")
        if not self._hub.is_started:
            raise NotServingError("the session service is reading its events")

    @override
    async def GetClient(self, request: session_pb2.GetClientRequest, context: Context) -> session_pb2.GetClientResponse:
        _check_names(request.instance_id, request.client_id)
        connections = [
            session_pb2.Connection(
                channel_id=connection.channel_id,
                instance_id=connection.instance_id,
                client_id=connection.client_id,
                address=connection.address,
                connect_time_ms=connection.connect_time_ms,
                edge_id=connection.edge.edge_id,
            )
            for connection in self._hub.connections(request.instance_id, request.client_id)
        ]
        synchronized = self._hub.is_certain(request.instance_id, request.client_id)
        return session_pb2.GetClientResponse(connections=connections, synchronized=synchronized)

    @override
    async def CloseConnections(
        self, request: session_pb2.CloseConnectionsRequest, context: Context
    ) -> session_pb2.CloseConnectionsResponse:
        _check_names(request.instance_id, request.client_id)
        count = self._hub.evict(request.instance_id, request.client_id)
        if count == 0:
            raise NotFoundError(f"client {request.client_id} has no connection", resource=f"client/{request.client_id}")
        return session_pb2.CloseConnectionsResponse(connection_count=count)

    @override
    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        return self._kept.page(request)

    @override
    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        _check_names(request.instance_id, request.client_id)
        return session_pb2.GetSessionResponse(session=self._kept.get(request.instance_id, request.client_id))

    @override
    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Context
    ) -> session_pb2.DeleteSessionResponse:
        _check_names(request.instance_id, request.client_id)
        count = await self._kept.delete(request.instance_id, request.client_id)
        self._hub.evict(request.instance_id, request.client_id)
        return session_pb2.DeleteSessionResponse(dropped_message_count=count)


async def _read(context: Context) -> session_pb2.LinkRequest | None:
    request = await context.read()
    if request is aio.EOF:
        return None
    message = cast("session_pb2.LinkRequest", request)
    if message.HasField("open"):
        raise StreamContractError("only the first request holds `open`", rule="opening")
    return message


async def _read_opening(context: Context) -> session_pb2.LinkOpen:
    """Return what the first request holds.

    Raises:
        StreamContractError: it is not an opening.
        UnavailableError: it did not come.
    """
    try:
        async with asyncio.timeout(OPEN_S):
            request = await context.read()
    except TimeoutError as error:
        raise UnavailableError("the link was not opened in time", dependency="edge") from error
    if request is aio.EOF:
        raise StreamContractError("the first request holds `open`", rule="opening")
    message = cast("session_pb2.LinkRequest", request)
    is_bare = message == session_pb2.LinkRequest(open=message.open)
    if not message.HasField("open") or not is_bare:
        raise StreamContractError("the first request holds `open` and nothing else", rule="opening")
    opening = message.open
    if not _NAME.match(opening.edge_id) or not _NAME.match(opening.edge_incarnation):
        raise StreamContractError("names of edges have 1 to 128 printable ASCII characters but `/`", rule="opening")
    return opening


def _check_names(instance_id: str, client_id: str) -> None:
    if not instance_id:
        raise InvalidFieldError("instance_id is empty", field="instance_id")
    if not client_id:
        raise InvalidFieldError("client_id is empty", field="client_id")
