"""Questions to edges about their connections, which only they know in full."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Generator, Iterable
from typing import TypeAlias

from services.common.errors import LimitReachedError, UnavailableError
from services.session.edge_link import EdgeLink
from weimq.session.v1 import session_pb2

ANSWER_S = 3.0
"""How long an edge may take."""
MAX_WAITING = 1_000
"""Questions without an answer, all edges together; one more is refused."""

_Answer: TypeAlias = "asyncio.Future[session_pb2.InquiryAnswer]"


class Inquiries:
    """Asks edges, and hands their answers to whoever waits. Owned by one event loop."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, _Answer] = {}

    def answered(self, answer: session_pb2.InquiryAnswer) -> None:
        """Take the answer of an edge; one that comes too late is dropped."""
        future = self._waiting.get(answer.number)
        if future is not None and not future.done():
            future.set_result(answer)

    async def connection(self, edge_link: EdgeLink, channel_id: str) -> session_pb2.InquiredConnection | None:
        """Return a connection with its subscriptions; None when it is gone.

        Raises:
            UnavailableError: the edge does not answer.
            LimitReachedError: too many questions wait.
        """
        inquiry = session_pb2.Inquiry(channel_id=channel_id, max_connections=1)
        with self._asking(edge_link, inquiry) as future:
            answer = await _answer(edge_link, future)
        return next(iter(answer.connections), None)

    async def subscribers(
        self, edge_links: Iterable[EdgeLink], *, instance_id: str, topic: str, after_client_id: str, limit: int
    ) -> list[tuple[EdgeLink, session_pb2.InquiredConnection]]:
        """Return up to `limit` connections whose subscriptions match a topic, by client id, each with its edge.

        Raises:
            UnavailableError: an edge does not answer.
            LimitReachedError: too many questions wait.
        """
        with contextlib.ExitStack() as stack:
            asked = []
            for edge_link in edge_links:
                inquiry = session_pb2.Inquiry(
                    instance_id=instance_id, topic=topic, after_client_id=after_client_id, max_connections=limit
                )
                asked.append((edge_link, stack.enter_context(self._asking(edge_link, inquiry))))
            answers = [(edge_link, await _answer(edge_link, future)) for edge_link, future in asked]
        found = [[(edge_link, each) for each in answer.connections] for edge_link, answer in answers]
        return list(heapq.merge(*found, key=lambda pair: pair[1].client_id))[:limit]

    @contextlib.contextmanager
    def _asking(self, edge_link: EdgeLink, inquiry: session_pb2.Inquiry) -> Generator[_Answer]:
        if len(self._waiting) >= MAX_WAITING:
            raise LimitReachedError("too many questions wait for edges", limit="inquiries")
        self._number += 1
        inquiry.number = self._number
        future: _Answer = asyncio.get_running_loop().create_future()
        self._waiting[inquiry.number] = future
        edge_link.inquire(inquiry)
        try:
            yield future
        finally:
            del self._waiting[inquiry.number]
            edge_link.forget_inquiry(inquiry.number)


async def _answer(edge_link: EdgeLink, future: _Answer) -> session_pb2.InquiryAnswer:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await future
    except TimeoutError as error:
        raise UnavailableError(f"edge {edge_link.edge_id} does not answer", dependency="edge") from error
