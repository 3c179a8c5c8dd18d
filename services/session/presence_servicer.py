"""`weimq.session.v1.PresenceService` over the hub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio
from typing_extensions import override

from services.common.errors import InvalidFieldError, NotServingError, UnavailableError
from services.common.topics import InvalidTopicError, validate_topic_name
from services.session.domain.events import CONNECT, Event
from services.session.domain.records import Connection
from services.session.hub import Hub
from services.session.watches import Watch
from weimq.session.v1 import presence_pb2, presence_pb2_grpc, session_pb2

MAX_PAGE = 1_000
"""Clients in one answer."""
HEARTBEAT_S = 1.0
"""How often a quiet watch says that it is current."""

Context = aio.ServicerContext[Any, Any]


class PresenceServicer(presence_pb2_grpc.PresenceServiceServicer):
    """Answers questions about clients. Owned by one event loop."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @override
    async def BatchGetClients(
        self, request: presence_pb2.BatchGetClientsRequest, context: Context
    ) -> presence_pb2.BatchGetClientsResponse:
        self._check(instance_id=request.instance_id)
        if not 1 <= len(request.client_ids) <= MAX_PAGE:
            raise InvalidFieldError(f"must hold 1 to {MAX_PAGE} client ids", field="client_ids")
        return presence_pb2.BatchGetClientsResponse(
            clients=[self._presence(request.instance_id, client_id) for client_id in request.client_ids]
        )

    @override
    async def ListGroupClients(
        self, request: presence_pb2.ListGroupClientsRequest, context: Context
    ) -> presence_pb2.ListGroupClientsResponse:
        self._check(instance_id=request.instance_id, group_id=request.group_id)
        presence = self._hub.presence
        page = presence.group(
            request.instance_id, request.group_id, request.after_client_id, _page_size(request.page_size)
        )
        return presence_pb2.ListGroupClientsResponse(
            clients=[self._presence(request.instance_id, client_id) for client_id in page],
            online_count=presence.group_size(request.instance_id, request.group_id),
            synchronized=presence.is_synchronized,
        )

    @override
    async def WatchGroup(
        self, request: presence_pb2.WatchGroupRequest, context: Context
    ) -> AsyncIterator[presence_pb2.WatchGroupResponse]:
        instance_id, group_id = request.instance_id, request.group_id
        self._check(instance_id=instance_id, group_id=group_id)
        watch = self._hub.watches.begin(instance_id, group_id)  # before the snapshot, so that nothing falls between
        try:
            after = ""
            while page := self._hub.presence.group(instance_id, group_id, after, MAX_PAGE):
                after = page[-1]
                yield presence_pb2.WatchGroupResponse(
                    changes=[
                        presence_pb2.PresenceChange(
                            connection=to_message(connection), connected=True, time_ms=connection.connect_time_ms
                        )
                        for client_id in page
                        for connection in self._hub.connections(instance_id, client_id)
                    ]
                )
            yield presence_pb2.WatchGroupResponse(snapshot_complete=True)
            async for changes in _changes(watch):
                yield presence_pb2.WatchGroupResponse(changes=changes)
        finally:
            self._hub.watches.end(instance_id, group_id, watch)

    @override
    async def DescribeClient(
        self, request: presence_pb2.DescribeClientRequest, context: Context
    ) -> presence_pb2.DescribeClientResponse:
        self._check(instance_id=request.instance_id, client_id=request.client_id)
        response = presence_pb2.DescribeClientResponse(
            synchronized=self._hub.is_certain(request.instance_id, request.client_id)
        )
        for connection in self._hub.connections(request.instance_id, request.client_id):
            described = response.connections.add(connection=to_message(connection))
            edge_link = self._hub.edge_link(connection.edge.edge_id)
            if edge_link is None:
                continue  # its edge is away, and `synchronized` false for that
            try:
                inquired = await self._hub.inquiries.connection(edge_link, connection.channel_id)
            except UnavailableError:
                response.synchronized = False
            else:
                described.subscriptions.extend(inquired.subscriptions if inquired is not None else ())
        return response

    @override
    async def ListSubscribers(
        self, request: presence_pb2.ListSubscribersRequest, context: Context
    ) -> presence_pb2.ListSubscribersResponse:
        self._check(instance_id=request.instance_id)
        try:
            validate_topic_name(request.topic)
        except InvalidTopicError as error:
            raise InvalidFieldError(error.message, field="topic") from error
        found = await self._hub.inquiries.subscribers(
            self._hub.edge_links,
            instance_id=request.instance_id,
            topic=request.topic,
            after_client_id=request.after_client_id,
            limit=_page_size(request.page_size),
        )
        return presence_pb2.ListSubscribersResponse(
            subscribers=[
                presence_pb2.Subscriber(
                    client_id=each.client_id, edge_id=edge_link.edge_id, subscriptions=each.subscriptions
                )
                for edge_link, each in found
            ]
        )

    def _check(self, **names: str) -> None:
        for field, name in names.items():
            if not name:
                raise InvalidFieldError("must not be empty", field=field)
        if not self._hub.is_started:
            raise NotServingError("the session service is reading its events")

    def _presence(self, instance_id: str, client_id: str) -> presence_pb2.ClientPresence:
        return presence_pb2.ClientPresence(
            client_id=client_id,
            connections=[to_message(connection) for connection in self._hub.connections(instance_id, client_id)],
            synchronized=self._hub.is_certain(instance_id, client_id),
        )


async def _changes(watch: Watch) -> AsyncIterator[list[presence_pb2.PresenceChange]]:
    """Yield what changes, and an empty list now and then."""
    while True:
        yield [_change(event) for event in await watch.next(MAX_PAGE, HEARTBEAT_S)]


def _change(event: Event) -> presence_pb2.PresenceChange:
    connected = event.tag == CONNECT
    connection = session_pb2.Connection(
        channel_id=event.channel_id,
        instance_id=event.instance_id,
        client_id=event.client_id,
        address=event.address,
        connect_time_ms=event.time_ms if connected else 0,
        edge_id=event.edge.rpartition("/")[0],
    )
    return presence_pb2.PresenceChange(connection=connection, connected=connected, time_ms=event.time_ms)


def _page_size(given: int) -> int:
    if not 0 <= given <= MAX_PAGE:
        raise InvalidFieldError(f"must be 0 to {MAX_PAGE}", field="page_size")
    return given or MAX_PAGE


def to_message(connection: Connection) -> session_pb2.Connection:
    """Return a connection as the API has it."""
    return session_pb2.Connection(
        channel_id=connection.channel_id,
        instance_id=connection.instance_id,
        client_id=connection.client_id,
        address=connection.address,
        connect_time_ms=connection.connect_time_ms,
        edge_id=connection.edge.edge_id,
    )
