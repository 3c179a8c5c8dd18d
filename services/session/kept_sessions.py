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
SCAN = 100_000
"""Slots that are looked at for one page."""
DELETE_S = 5.0
"""How long the deletion of a session may take to be stored."""


class KeptSessions:
    """Answers about sessions. Owned by one event loop."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def page(self, request: session_pb2.ListSessionsRequest) -> session_pb2.ListSessionsResponse:
        """Return sessions of an instance, in the order of their slots, which the token names.

        It looks at `SCAN` slots at the most, so a page may be short, but all pages together look at each slot once.

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
        roster = self._keeper.shard.roster
        instance = roster.instances.get(request.instance_id)
        end = roster.next_slot if instance is not None else 0
        for slot in range(after + 1, min(end, after + 1 + SCAN)):
            session = roster.sessions.get(slot)
            after = slot
            if session is None or session.instance is not instance:
                continue
            if session.client_id.startswith(request.client_id_prefix):
                response.sessions.append(_message(session, with_subscriptions=False))
                if len(response.sessions) == size:
                    break
        if after + 1 < end:
            response.next_page_token = str(after)
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
            raise NotFoundError(f"there is no session of {client_id}", resource=f"session/{client_id}")
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
