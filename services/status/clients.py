"""Questions about clients to all session shards; with the adapters and the servicer the only module that sees stubs."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence

from grpc import aio

from services.common.errors import DomainError, InvalidFieldError, UnavailableError
from services.common.runtime import background
from services.common.sharding import shard_of
from services.status.adapters import SESSION, TIMEOUT_S, rpc_faults
from weimq.session.v1 import presence_pb2, presence_pb2_grpc, session_pb2, session_pb2_grpc

DESCRIBE_S = 5.0
"""Deadline of questions that the session service passes on to edges, which have 3 s."""
WATCH_BUFFER = 8
"""Messages of the shards that wait for the caller of a watch; then the shards wait, and give up in their turn."""


class Clients:
    """What all session shards know.

    Args:
        channels: to the session shards, in the order of their index.
    """

    def __init__(self, channels: Sequence[aio.Channel]) -> None:
        self._presence = [presence_pb2_grpc.PresenceServiceStub(channel) for channel in channels]
        self._sessions = [session_pb2_grpc.SessionServiceStub(channel) for channel in channels]

    async def describe(self, instance_id: str, client_id: str) -> presence_pb2.DescribeClientResponse:
        """Return the connections of a client with their subscriptions.

        Raises:
            UnavailableError: its shard or one of its edges does not answer.
        """
        request = presence_pb2.DescribeClientRequest(instance_id=instance_id, client_id=client_id)
        with rpc_faults(SESSION):
            return await self._presence[self._shard(instance_id, client_id)].DescribeClient(request, timeout=DESCRIBE_S)

    async def session(self, instance_id: str, client_id: str) -> session_pb2.Session:
        """Return what is kept for a client.

        Raises:
            NotFoundError: nothing is.
            UnavailableError: its shard does not answer.
        """
        request = session_pb2.GetSessionRequest(instance_id=instance_id, client_id=client_id)
        with rpc_faults(SESSION):
            answer = await self._sessions[self._shard(instance_id, client_id)].GetSession(request, timeout=TIMEOUT_S)
        return answer.session

    async def sessions(
        self, instance_id: str, client_id_prefix: str, page_token: str, page_size: int
    ) -> tuple[list[session_pb2.Session], str]:
        """Return a page of the sessions of an instance, shard after shard, and the token of the next page.

        Raises:
            InvalidFieldError: the token is of something else.
            UnavailableError: a shard does not answer.
        """
        text, _, token = page_token.partition(":")
        if page_token and not (
            text.isdecimal() and int(text) < len(self._sessions) and (not token or token.isdecimal())
        ):
            raise InvalidFieldError("page_token is none of ours", field="page_token")
        shard = int(text or 0)
        request = session_pb2.ListSessionsRequest(
            instance_id=instance_id, page_size=page_size, page_token=token, client_id_prefix=client_id_prefix
        )
        with rpc_faults(SESSION):
            answer = await self._sessions[shard].ListSessions(request, timeout=TIMEOUT_S)
        if answer.next_page_token:
            return list(answer.sessions), f"{shard}:{answer.next_page_token}"
        return list(answer.sessions), f"{shard + 1}:" if shard + 1 < len(self._sessions) else ""

    async def delete_session(self, instance_id: str, client_id: str) -> int:
        """Delete the session of a client; returns how many messages waited for it.

        Raises:
            NotFoundError: there is none.
            UnavailableError: its shard does not answer.
        """
        request = session_pb2.DeleteSessionRequest(instance_id=instance_id, client_id=client_id)
        with rpc_faults(SESSION):
            stub = self._sessions[self._shard(instance_id, client_id)]
            answer = await stub.DeleteSession(request, timeout=DESCRIBE_S)
        return answer.dropped_message_count

    async def batch(self, instance_id: str, client_ids: Sequence[str]) -> list[presence_pb2.ClientPresence]:
        """Return clients in request order.

        Raises:
            UnavailableError: a shard does not answer.
        """
        by_shard: dict[int, list[str]] = {}
        for client_id in client_ids:
            by_shard.setdefault(self._shard(instance_id, client_id), []).append(client_id)
        requests = {
            shard: presence_pb2.BatchGetClientsRequest(instance_id=instance_id, client_ids=ids)
            for shard, ids in by_shard.items()
        }
        with rpc_faults(SESSION):
            answers = {
                shard: await call
                for shard, call in [
                    (shard, self._presence[shard].BatchGetClients(request, timeout=TIMEOUT_S))
                    for shard, request in requests.items()
                ]
            }
        found = {shard: iter(answer.clients) for shard, answer in answers.items()}
        return [next(found[self._shard(instance_id, client_id)]) for client_id in client_ids]

    async def group(
        self, instance_id: str, group_id: str, after_client_id: str, page_size: int
    ) -> tuple[list[presence_pb2.ClientPresence], int]:
        """Return a page of the clients of a group that are online, by client id, and how many there are; -1: unknown.

        Raises:
            UnavailableError: a shard does not answer.
        """
        request = presence_pb2.ListGroupClientsRequest(
            instance_id=instance_id, group_id=group_id, after_client_id=after_client_id, page_size=page_size
        )
        with rpc_faults(SESSION):
            calls = [stub.ListGroupClients(request, timeout=TIMEOUT_S) for stub in self._presence]
            answers = [await call for call in calls]
        merged = heapq.merge(*(answer.clients for answer in answers), key=lambda client: client.client_id)
        is_certain = all(answer.synchronized for answer in answers)
        return list(merged)[:page_size], sum(answer.online_count for answer in answers) if is_certain else -1

    async def subscribers(
        self, instance_id: str, topic: str, after_client_id: str, page_size: int
    ) -> list[presence_pb2.Subscriber]:
        """Return a page of the clients that are online with a matching subscription, by client id.

        Raises:
            UnavailableError: a shard or an edge does not answer.
        """
        request = presence_pb2.ListSubscribersRequest(
            instance_id=instance_id, topic=topic, after_client_id=after_client_id, page_size=page_size
        )
        with rpc_faults(SESSION):  # any shard asks all edges
            answer = await self._presence[0].ListSubscribers(request, timeout=DESCRIBE_S)
        return list(answer.subscribers)

    async def watch(
        self, instance_id: str, group_id: str, give: Callable[[presence_pb2.WatchGroupResponse], Awaitable[None]]
    ) -> None:
        """Give the presence of a group over all shards, as `PresenceService.WatchGroup` does over one, until cancelled.

        Raises:
            UnavailableError: a shard does not answer any more.
            LimitReachedError: the caller is too slow, or there are too many watches.
        """
        request = presence_pb2.WatchGroupRequest(instance_id=instance_id, group_id=group_id)
        queue: asyncio.Queue[presence_pb2.WatchGroupResponse | DomainError] = asyncio.Queue(WATCH_BUFFER)
        waiting = len(self._presence)  # shards whose snapshot is not complete
        async with background(*(_pump(stub.WatchGroup(request), queue) for stub in self._presence)):
            while not isinstance(message := await queue.get(), DomainError):
                if message.snapshot_complete:
                    waiting -= 1
                    message.snapshot_complete = waiting == 0
                    if waiting:
                        continue
                await give(message)
        raise message

    def _shard(self, instance_id: str, client_id: str) -> int:
        return shard_of(instance_id, client_id, len(self._presence))


async def _pump(
    call: aio.UnaryStreamCall[presence_pb2.WatchGroupRequest, presence_pb2.WatchGroupResponse],
    queue: asyncio.Queue[presence_pb2.WatchGroupResponse | DomainError],
) -> None:
    """Put what a shard tells into the queue, and last why it ends."""
    try:
        with rpc_faults(SESSION):
            async for message in call:
                await queue.put(message)
        raise UnavailableError("a session shard ended the watch: watch again", dependency=SESSION)
    except DomainError as error:
        await queue.put(error)
