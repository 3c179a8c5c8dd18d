"""Answers to the session service's questions about connections of this edge."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator

from services.common import topics
from services.edge.hub import Hub, Receiver
from weimq.session.v1 import session_pb2

SLICE = 500
"""Connections looked at in one go, so that messages do not wait for a question."""
MAX_ANSWERS = 1_000
"""Connections in one answer."""
MAX_ANSWER_BYTES = 1 << 20
"""Topic filters in one answer, roughly; what is beyond is cut, and the caller asks for the next page."""

_SHARE = "$share/"


class Inquiries:
    """Looks connections up. Owned by one event loop."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop

    def answer(self, inquiry: session_pb2.Inquiry, give: Callable[[session_pb2.InquiryAnswer], None]) -> None:
        """Have `give` called with the answer, now or in a later turn of the loop."""
        if inquiry.channel_id:
            receiver = self._hub.by_channel.get(inquiry.channel_id)
            found = [(receiver, list(receiver.subscriptions.items()))] if receiver is not None else []
            give(_answer(inquiry.number, found))
        else:
            matching = _matching(list(self._hub.by_channel.values()), inquiry)
            self._search(inquiry, matching, [], give)

    def _search(
        self,
        inquiry: session_pb2.Inquiry,
        matching: Iterator[tuple[Receiver, list[tuple[str, int]]] | None],
        found: list[tuple[Receiver, list[tuple[str, int]]]],
        give: Callable[[session_pb2.InquiryAnswer], None],
    ) -> None:
        for pair in matching:
            if pair is None:
                self._loop.call_soon(self._search, inquiry, matching, found, give)
                return
            found.append(pair)
        limit = min(inquiry.max_connections, MAX_ANSWERS)
        give(_answer(inquiry.number, heapq.nsmallest(limit, found, key=lambda pair: pair[0].client_id)))


def _matching(
    receivers: list[Receiver], inquiry: session_pb2.Inquiry
) -> Iterator[tuple[Receiver, list[tuple[str, int]]] | None]:
    """Yield connections with the subscriptions that match, and None after each slice."""
    for count, receiver in enumerate(receivers, 1):
        if receiver.instance_id == inquiry.instance_id and receiver.client_id > inquiry.after_client_id:
            subscriptions = [
                (topic_filter, qos)
                for topic_filter, qos in receiver.subscriptions.items()
                if topics.matches(_bare(topic_filter), inquiry.topic)
            ]
            if subscriptions:
                yield receiver, subscriptions
        if count % SLICE == 0:
            yield None


def _bare(topic_filter: str) -> str:
    """Return the filter of a shared subscription, `$share/<name>/<filter>`; any other as it is."""
    return topic_filter.split("/", 2)[2] if topic_filter.startswith(_SHARE) else topic_filter


def _answer(number: int, found: list[tuple[Receiver, list[tuple[str, int]]]]) -> session_pb2.InquiryAnswer:
    answer = session_pb2.InquiryAnswer(number=number)
    size = 0
    for receiver, subscriptions in found:
        if size > MAX_ANSWER_BYTES:
            break
        connection = answer.connections.add(channel_id=receiver.channel_id, client_id=receiver.client_id)
        for topic_filter, qos in sorted(subscriptions):
            connection.subscriptions.add(topic_filter=topic_filter, qos=qos)
            size += len(topic_filter)
    return answer
