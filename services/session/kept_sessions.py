"""Questions about the sessions that a shard keeps, and their deletion."""

from __future__ import annotations

import asyncio

from services.common.errors import InvalidFieldError, NotFoundError, NotServingError, UnavailableError
from services.session.domain.interests import qos_of
from services.session.domain.sessions import Session
from services.session.keeper import Keeper
from weimq.session.v1 import session_pb2

DEFAULT_PAGE = 100
MAX_PAGE = 1_000
DELETE_S = 5.0
"""How long the deletion of a session may take to be stored."""


class KeptSessions:
    """Answers about sessions. Owned by one event loop."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def page(self, request: session_pb2.ListSessionsRequest) -> session_pb2.ListSessionsResponse:
        """Return sessions of an instance, in the order of their slots, which the token names.

        Raises:
            InvalidFieldError: the request is wrong.
            NotServingError: the sessions are being read.
        """
        self._check()
        if not request.instance_id:
            raise InvalidFieldError("instance_id is empty", field="instance_id")
        if request.page_size < 0:
            raise InvalidFieldError("page_size is below 0", field="page_size")
        if request.page_token and not request.page_token.isdecimal():
            raise InvalidFieldError("page_token is none of ours", field="page_token")
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        after = int(request.page_token or 0)
        response = session_pb2.ListSessionsResponse()
        instance = self._keeper.shard.roster.instances.get(request.instance_id)
        found = [
            session
            for session in (instance.sessions.values() if instance is not None else ())
            if session.slot > after and session.client_id.startswith(request.client_id_prefix)
        ]
        found.sort(key=lambda session: session.slot)
        response.sessions.extend(_message(session, with_subscriptions=False) for session in found[:size])
        if len(found) > size:
            response.next_page_token = str(found[size - 1].slot)
        return response

    def get(self, instance_id: str, client_id: str) -> session_pb2.Session:
        """Return a session.

        Raises:
            NotFoundError: this shard keeps none for the client.
            NotServingError: the sessions are being read.
        """
        return _message(self._find(instance_id, client_id), with_subscriptions=True)

    async def delete(self, instance_id: str, client_id: str) -> int:
        """Delete a session; returns how many messages waited for it.

        Raises:
            NotFoundError: this shard keeps none for the client.
            NotServingError: the sessions are being read.
            UnavailableError: NATS does not answer; it may be deleted.
        """
        session = self._find(instance_id, client_id)
        is_stored = asyncio.Event()
        dropped = self._keeper.delete(session, is_stored.set)
        try:
            async with asyncio.timeout(DELETE_S):
                await is_stored.wait()
        except TimeoutError as error:
            raise UnavailableError("the deletion is not stored", dependency="nats") from error
        return dropped

    def _find(self, instance_id: str, client_id: str) -> Session:
        self._check()
        session = self._keeper.shard.roster.find(instance_id, client_id)
        if session is None or not (session.is_persistent or session.queue):
            raise NotFoundError("there is no session", resource=f"session/{client_id}")
        return session

    def _check(self) -> None:
        if not self._keeper.is_started:
            raise NotServingError("the session service is reading its sessions")


def _message(session: Session, *, with_subscriptions: bool) -> session_pb2.Session:
    subscriptions = session.subscriptions or {}
    return session_pb2.Session(
        instance_id=session.instance.instance_id,
        client_id=session.client_id,
        persistent=session.is_persistent,
        subscriptions=[
            session_pb2.Subscription(topic_filter=topic_filter, qos=qos_of(subscription))
            for topic_filter, subscription in (subscriptions.items() if with_subscriptions else ())
        ],
        subscription_count=len(subscriptions),
        offline_message_count=session.offline_count,
        inflight_message_count=session.inflight_count,
        channel_id=session.channel.channel_id if session.channel is not None else "",
        disconnect_time_ms=session.ended_ms,
        oldest_message_time_ms=session.oldest_s * 1000,
    )
