"""What callers may ask about clients, over gRPC and HTTP; requests and responses are those of `weimq.status.v1`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from google.protobuf.message import Message

from services.common.errors import InvalidFieldError, NotFoundError
from services.common.topics import InvalidTopicError, validate_topic_name
from services.status.adapters import Sessions
from services.status.clients import Clients
from weimq.session.v1 import presence_pb2, session_pb2
from weimq.status.v1 import status_pb2

UNKNOWN = -1
"""Number of connections when session has not caught up yet."""
MAX_PAGE = 1_000
DEFAULT_PAGE = 100
"""Clients in one answer: at the most, and unless told otherwise."""


class Queries:
    """Checks requests and asks the session shards. Every method raises what the comment of its RPC says."""

    def __init__(self, sessions: Sessions, clients: Clients) -> None:
        self._sessions = sessions
        self._clients = clients

    async def get_client(self, request: status_pb2.GetClientRequest) -> status_pb2.GetClientResponse:
        """Return whether a client is online, and its connections."""
        _check(request, "instance_id", "client_id")
        client = await self._sessions.client(request.instance_id, request.client_id)
        return status_pb2.GetClientResponse(
            online=len(client.connections) if client.synchronized else UNKNOWN,
            connections=[_connection(connection) for connection in client.connections],
        )

    async def close_connections(
        self, request: status_pb2.CloseConnectionsRequest
    ) -> status_pb2.CloseConnectionsResponse:
        """Close every connection of a client."""
        _check(request, "instance_id", "client_id")
        count = await self._sessions.close_connections(request.instance_id, request.client_id)
        return status_pb2.CloseConnectionsResponse(connection_count=count)

    async def describe_client(self, request: status_pb2.DescribeClientRequest) -> status_pb2.DescribeClientResponse:
        """Return all that is known of a client."""
        _check(request, "instance_id", "client_id")
        described = await self._clients.describe(request.instance_id, request.client_id)
        response = status_pb2.DescribeClientResponse(
            online=len(described.connections) if described.synchronized else UNKNOWN,
            connections=[_connection(each.connection, each.subscriptions) for each in described.connections],
        )
        try:
            session = await self._clients.session(request.instance_id, request.client_id)
        except NotFoundError:
            return response
        response.session.persistent = session.persistent
        response.session.subscriptions.extend(_subscriptions(session.subscriptions))
        response.session.offline_message_count = session.offline_message_count
        response.session.inflight_message_count = session.inflight_message_count
        response.session.disconnect_time_ms = session.disconnect_time_ms
        return response

    async def batch_get_clients(self, request: status_pb2.BatchGetClientsRequest) -> status_pb2.BatchGetClientsResponse:
        """Return whether clients are online, in request order."""
        _check(request, "instance_id")
        if not 1 <= len(request.client_ids) <= MAX_PAGE:
            raise InvalidFieldError(f"must hold 1 to {MAX_PAGE} client ids", field="client_ids")
        clients = await self._clients.batch(request.instance_id, request.client_ids)
        return status_pb2.BatchGetClientsResponse(clients=[_client(client) for client in clients])

    async def list_group_clients(
        self, request: status_pb2.ListGroupClientsRequest
    ) -> status_pb2.ListGroupClientsResponse:
        """Return a page of the clients of a group that are online."""
        _check(request, "instance_id", "group_id")
        size = _page_size(request.page_size)
        page, online_count = await self._clients.group(request.instance_id, request.group_id, request.page_token, size)
        return status_pb2.ListGroupClientsResponse(
            clients=[_client(client) for client in page],
            online_count=online_count,
            next_page_token=page[-1].client_id if len(page) == size else "",
        )

    async def list_subscribers(self, request: status_pb2.ListSubscribersRequest) -> status_pb2.ListSubscribersResponse:
        """Return a page of the clients with a subscription that matches a topic."""
        _check(request, "instance_id")
        try:
            validate_topic_name(request.topic)
        except InvalidTopicError as error:
            raise InvalidFieldError(error.message, field="topic") from error
        size = _page_size(request.page_size)
        page = await self._clients.subscribers(request.instance_id, request.topic, request.page_token, size)
        return status_pb2.ListSubscribersResponse(
            subscribers=[
                status_pb2.Subscriber(
                    client_id=each.client_id, edge_id=each.edge_id, subscriptions=_subscriptions(each.subscriptions)
                )
                for each in page
            ],
            next_page_token=page[-1].client_id if len(page) == size else "",
        )

    async def list_sessions(self, request: status_pb2.ListSessionsRequest) -> status_pb2.ListSessionsResponse:
        """Return a page of the sessions of an instance."""
        _check(request, "instance_id")
        page, token = await self._clients.sessions(
            request.instance_id, request.client_id_prefix, request.page_token, _page_size(request.page_size)
        )
        return status_pb2.ListSessionsResponse(
            sessions=[
                status_pb2.SessionSummary(
                    client_id=each.client_id,
                    persistent=each.persistent,
                    subscription_count=each.subscription_count,
                    offline_message_count=each.offline_message_count,
                    oldest_message_time_ms=each.oldest_message_time_ms,
                    connected=bool(each.channel_id),
                    disconnect_time_ms=each.disconnect_time_ms,
                )
                for each in page
            ],
            next_page_token=token,
        )

    async def delete_session(self, request: status_pb2.DeleteSessionRequest) -> status_pb2.DeleteSessionResponse:
        """Delete the session of a client."""
        _check(request, "instance_id", "client_id")
        count = await self._clients.delete_session(request.instance_id, request.client_id)
        return status_pb2.DeleteSessionResponse(dropped_message_count=count)

    async def watch_group(
        self,
        request: status_pb2.WatchGroupRequest,
        give: Callable[[status_pb2.WatchGroupResponse], Awaitable[None]],
    ) -> None:
        """Give the presence of a group until cancelled."""
        _check(request, "instance_id", "group_id")

        async def pass_on(message: presence_pb2.WatchGroupResponse) -> None:
            await give(
                status_pb2.WatchGroupResponse(
                    changes=[
                        status_pb2.PresenceChange(
                            client_id=change.connection.client_id,
                            connection=_connection(change.connection),
                            connected=change.connected,
                            time_ms=change.time_ms,
                        )
                        for change in message.changes
                    ],
                    snapshot_complete=message.snapshot_complete,
                )
            )

        await self._clients.watch(request.instance_id, request.group_id, pass_on)


def _check(request: Message, *fields: str) -> None:
    for field in fields:
        if not getattr(request, field):
            raise InvalidFieldError(f"{field} must not be empty", field=field)


def _page_size(given: int) -> int:
    if not 0 <= given <= MAX_PAGE:
        raise InvalidFieldError(f"must be 0 to {MAX_PAGE}", field="page_size")
    return given or DEFAULT_PAGE


def _client(client: presence_pb2.ClientPresence) -> status_pb2.ClientStatus:
    return status_pb2.ClientStatus(
        client_id=client.client_id,
        online=len(client.connections) if client.synchronized else UNKNOWN,
        connections=[_connection(connection) for connection in client.connections],
    )


def _connection(
    connection: session_pb2.Connection, subscriptions: Iterable[session_pb2.Subscription] = ()
) -> status_pb2.ClientConnection:
    return status_pb2.ClientConnection(
        channel_id=connection.channel_id,
        address=connection.address,
        connect_time_ms=connection.connect_time_ms,
        edge_id=connection.edge_id,
        subscriptions=_subscriptions(subscriptions),
    )


def _subscriptions(subscriptions: Iterable[session_pb2.Subscription]) -> list[status_pb2.Subscription]:
    return [status_pb2.Subscription(topic_filter=each.topic_filter, qos=each.qos) for each in subscriptions]
