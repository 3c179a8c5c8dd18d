"""`weimq.status.v1.StatusService` over session."""

from __future__ import annotations

from typing import Any

from grpc import aio
from typing_extensions import override

from services.common.errors import InvalidFieldError
from services.status.adapters import Sessions
from weimq.status.v1 import status_pb2, status_pb2_grpc

Context = aio.ServicerContext[Any, Any]

UNKNOWN = -1
"""Number of connections when session has not caught up yet."""


class StatusServicer(status_pb2_grpc.StatusServiceServicer):
    """Answers callers with the cluster token."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @override
    async def GetClient(self, request: status_pb2.GetClientRequest, context: Context) -> status_pb2.GetClientResponse:
        _check(request)
        client = await self._sessions.client(request.instance_id, request.client_id)
        return status_pb2.GetClientResponse(
            online=len(client.connections) if client.synchronized else UNKNOWN,
            connections=[
                status_pb2.ClientConnection(
                    channel_id=connection.channel_id,
                    address=connection.address,
                    connect_time_ms=connection.connect_time_ms,
                    edge_id=connection.edge_id,
                )
                for connection in client.connections
            ],
        )

    @override
    async def CloseConnections(
        self, request: status_pb2.CloseConnectionsRequest, context: Context
    ) -> status_pb2.CloseConnectionsResponse:
        _check(request)
        count = await self._sessions.close_connections(request.instance_id, request.client_id)
        return status_pb2.CloseConnectionsResponse(connection_count=count)


def _check(request: status_pb2.GetClientRequest | status_pb2.CloseConnectionsRequest) -> None:
    for field in ("instance_id", "client_id"):
        if not getattr(request, field):
            raise InvalidFieldError(f"{field} must not be empty", field=field)
