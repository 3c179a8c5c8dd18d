"""Auth and session as status needs them; with the servicer the only modules that see stubs."""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Generator, Sequence

from grpc import aio

from services.common import grpc_errors, healthcheck
from services.common.errors import LimitReachedError, NotFoundError, UnavailableError
from services.common.readiness import Readiness
from services.common.sharding import shard_of
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc
from weimq.session.v1 import session_pb2, session_pb2_grpc

logger = logging.getLogger(__name__)

AUTH = "auth"
SESSION = "session"

TIMEOUT_S = 2.0
"""Deadline of every call."""


class Permission(enum.Enum):
    """Whether a query may be answered."""

    ALLOWED = enum.auto()
    BAD_SIGNATURE = enum.auto()
    GROUP_NOT_OWNED = enum.auto()


_PERMISSIONS = {
    auth_pb2.QUERY_OUTCOME_ALLOWED: Permission.ALLOWED,
    auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE: Permission.BAD_SIGNATURE,
    auth_pb2.QUERY_OUTCOME_GROUP_NOT_OWNED: Permission.GROUP_NOT_OWNED,
}


class Auth:
    """Checks signed queries."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = auth_pb2_grpc.AuthServiceStub(channel)

    async def authorize(
        self,
        *,
        instance_id: str,
        access_key_id: str,
        signed_text: str,
        signature: str,
        client_id: str = "",
        group_id: str = "",
        topic: str = "",
        address: str = "",
    ) -> Permission:
        """Check a query about a client, a group or a topic.

        Raises:
            UnavailableError: auth does not answer.
        """
        request = auth_pb2.AuthorizeQueryRequest(
            instance_id=instance_id,
            access_key_id=access_key_id,
            client_id=client_id,
            group_id=group_id,
            topic=topic,
            signed_text=signed_text,
            signature=signature,
            address=address,
        )
        with rpc_faults(AUTH):
            response = await self._stub.AuthorizeQuery(request, timeout=TIMEOUT_S)
        # An outcome that this version does not know yet is a refusal.
        return _PERMISSIONS.get(response.outcome, Permission.BAD_SIGNATURE)


class Sessions:
    """Presence of clients.

    Args:
        channels: to the session shards, in the order of their index.
    """

    def __init__(self, channels: Sequence[aio.Channel]) -> None:
        self._stubs = [session_pb2_grpc.SessionServiceStub(channel) for channel in channels]

    def _shard(self, instance_id: str, client_id: str) -> session_pb2_grpc.SessionServiceStub:
        return self._stubs[shard_of(instance_id, client_id, len(self._stubs))]

    async def client(self, instance_id: str, client_id: str) -> session_pb2.GetClientResponse:
        """Return the connections of a client.

        Raises:
            UnavailableError: session does not answer.
        """
        request = session_pb2.GetClientRequest(instance_id=instance_id, client_id=client_id)
        with rpc_faults(SESSION):
            return await self._shard(instance_id, client_id).GetClient(request, timeout=TIMEOUT_S)

    async def close_connections(self, instance_id: str, client_id: str) -> int:
        """Close every connection of a client and return how many there were.

        Raises:
            NotFoundError: there is none.
            UnavailableError: session does not answer.
        """
        request = session_pb2.CloseConnectionsRequest(instance_id=instance_id, client_id=client_id)
        with rpc_faults(SESSION):
            response = await self._shard(instance_id, client_id).CloseConnections(request, timeout=TIMEOUT_S)
        return response.connection_count


@contextlib.contextmanager
def rpc_faults(dependency: str) -> Generator[None]:
    """Turn a failed call into what our caller is told: it isn't there, there is too much, or it can't be asked."""
    try:
        yield
    except aio.AioRpcError as error:
        domain_error = grpc_errors.from_rpc_error(error)
        if isinstance(domain_error, NotFoundError | LimitReachedError):
            raise domain_error from error
        logger.warning(
            "call failed", extra={"dependency": dependency, "code": error.code().name, "cause": error.details()}
        )
        raise UnavailableError(f"{dependency} does not answer: retry", dependency=dependency) from error


async def follow_health(channel: aio.Channel, dependency: str, readiness: Readiness) -> None:
    """Keep `readiness` equal to the health that a dependency reports, for ever."""
    async with contextlib.aclosing(healthcheck.following(channel)) as answers:
        async for is_serving in answers:
            readiness.mark(dependency, present=is_serving)
