"""`weimq.status.v1.StatusService` over the queries."""

from __future__ import annotations

from typing import Any

from grpc import aio
from typing_extensions import override

from services.status.queries import Queries
from weimq.status.v1 import status_pb2, status_pb2_grpc

Context = aio.ServicerContext[Any, Any]


class StatusServicer(status_pb2_grpc.StatusServiceServicer):
    """Answers callers with the cluster token."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    @override
    async def GetClient(self, request: status_pb2.GetClientRequest, context: Context) -> status_pb2.GetClientResponse:
        return await self._queries.get_client(request)

    @override
    async def CloseConnections(
        self, request: status_pb2.CloseConnectionsRequest, context: Context
    ) -> status_pb2.CloseConnectionsResponse:
        return await self._queries.close_connections(request)

    @override
    async def DescribeClient(
        self, request: status_pb2.DescribeClientRequest, context: Context
    ) -> status_pb2.DescribeClientResponse:
        return await self._queries.describe_client(request)

    @override
    async def BatchGetClients(
        self, request: status_pb2.BatchGetClientsRequest, context: Context
    ) -> status_pb2.BatchGetClientsResponse:
        return await self._queries.batch_get_clients(request)

    @override
    async def ListGroupClients(
        self, request: status_pb2.ListGroupClientsRequest, context: Context
    ) -> status_pb2.ListGroupClientsResponse:
        return await self._queries.list_group_clients(request)

    @override
    async def ListSubscribers(
        self, request: status_pb2.ListSubscribersRequest, context: Context
    ) -> status_pb2.ListSubscribersResponse:
        return await self._queries.list_subscribers(request)

    @override
    async def WatchGroup(  # type: ignore[override]  # writes through its context
        self, request: status_pb2.WatchGroupRequest, context: Context
    ) -> None:
        await self._queries.watch_group(request, context.write)

    @override
    async def ListSessions(
        self, request: status_pb2.ListSessionsRequest, context: Context
    ) -> status_pb2.ListSessionsResponse:
        return await self._queries.list_sessions(request)

    @override
    async def DeleteSession(
        self, request: status_pb2.DeleteSessionRequest, context: Context
    ) -> status_pb2.DeleteSessionResponse:
        return await self._queries.delete_session(request)
