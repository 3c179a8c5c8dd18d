"""The link of one edge process: frames in both directions, and which of them may be confirmed."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

from services.common.link import Link
from services.session.domain.outbox import Batch, Outbox
from services.session.domain.sessions import Channel
from services.session.frames import Opening
from weimq.session.v1 import session_pb2

MAX_DECISIONS = 16_384
"""Decisions in one frame, some 1 MB; also what may wait for an edge that reads slowly before its frames go unconfirmed,
so that it stops sending."""
MAX_NAMES = 16_384
"""Connections to probe, and to evict, in one frame."""


class FrameEvents:
    """A frame of the edge, and how many of the events that follow from it are not stored."""

    __slots__ = ("_edge_link", "after", "frame", "is_news", "pending")

    def __init__(self, edge_link: EdgeLink, frame: int) -> None:
        self._edge_link = edge_link
        self.frame = frame
        self.is_news = edge_link.brings_news
        self.pending = 1  # the frame itself, while it is being taken
        self.after = 0  # frame of ours that the edge must have before this one is confirmed

    def on_stored(self) -> None:
        """Note that one more event is stored, or the frame has been taken."""
        self.pending -= 1
        if self.pending == 0:
            self._edge_link.settle()


class EdgeLink:
    """What is kept for one process of an edge over successive streams.

    Args:
        edge_id: name of the edge.
        incarnation: of its process.
        take: called with each frame and what its events are counted by.
        on_room: called when deliveries were taken from the outbox.
    """

    def __init__(
        self,
        edge_id: str,
        incarnation: str,
        take: Callable[[EdgeLink, session_pb2.LinkRequest, FrameEvents], None],
        on_room: Callable[[], None],
    ) -> None:
        self.edge_id = edge_id
        self.incarnation = incarnation
        self.link: Link[session_pb2.LinkResponse, session_pb2.LinkRequest] = Link(
            build=self._build, bare=session_pb2.LinkResponse, take=self._on_frame, confirmed=self._on_confirmed
        )
        self._take = take
        self._frames: deque[FrameEvents] = deque()
        self._settled_through = 0
        self._edge_has = 0  # frame of ours through which the edge has confirmed
        self._decisions: deque[session_pb2.Decision] = deque()
        self._admitted: list[str] = []  # channel ids
        self._admitted_ms: list[int] = []  # for each, when
        # In order and once each; bounded by the connections of the edge.
        self._probes: dict[str, None] = {}
        self._evictions: dict[str, None] = {}
        self._inquiries: dict[int, session_pb2.Inquiry] = {}  # by number; bounded by `Inquiries`
        self._stored_changes: list[session_pb2.StoredChange] = []  # bounded by what the edge has unanswered
        self._on_room = on_room
        self.outbox: Outbox[Channel] = Outbox(edge_id, self.link.wake)
        """Deliveries for its clients."""
        self.openings: dict[str, Opening] = {}
        """Openings that are not decided, by channel id."""
        self.orphans: dict[str, list[tuple[int, bool]]] = {}
        """Ends of deliveries to connections that nobody here knows, until their closings come: by channel id, delivery
        id and whether the client completed it. Bounded by what the process before had given to the edge."""
        self.orphaned: list[FrameEvents] = []
        """Frames that brought them."""
        self.brings_news = False
        """Whether its snapshot is complete: no frame brings what the process before this one may have announced."""
        self.restored: list[str] = []
        """Established connections whose messages wait for the end of the snapshot."""

    def admit(self, channel_id: str, connect_time_ms: int) -> None:
        """Let a connection in that has no session."""
        self._admitted.append(channel_id)
        self._admitted_ms.append(connect_time_ms)
        self.link.wake()

    def decide(self, decision: session_pb2.Decision) -> None:
        """Answer an opening in another way."""
        self._decisions.append(decision)
        self.link.wake()

    def answer_change(self, channel_id: str, number: int) -> None:
        """Tell that a change of subscriptions is stored."""
        self._stored_changes.append(session_pb2.StoredChange(channel_id=channel_id, number=number))
        self.link.wake()

    def probe(self, channel_id: str) -> None:
        """Ask whether the peer of a connection still answers."""
        self._probes[channel_id] = None
        self.link.wake()

    def evict(self, channel_id: str) -> None:
        """Ask to close a connection."""
        self._evictions[channel_id] = None
        self.link.wake()

    def inquire(self, inquiry: session_pb2.Inquiry) -> None:
        """Ask about connections of the edge."""
        self._inquiries[inquiry.number] = inquiry
        self.link.wake()

    def forget_inquiry(self, number: int) -> None:
        """Drop a question that was not sent yet: nobody waits for its answer."""
        self._inquiries.pop(number, None)

    def settle(self) -> None:
        """Confirm the frames whose events, and those of all frames before, are stored."""
        frames = self._frames
        while frames and frames[0].pending == 0 and frames[0].after <= self._edge_has:
            self._settled_through = frames.popleft().frame
        if len(self._decisions) + len(self._admitted) < MAX_DECISIONS:
            self.link.confirm(self._settled_through, lazily=True)

    def hold_for_deliveries(self, events: FrameEvents) -> None:
        """Confirm a frame with acknowledgements only after the edge has all deliveries that were made before it came.

        One of them may be a repeat, sent by a process that did not know better. An edge drops those as long as the
        acknowledgement is not confirmed.
        """
        events.after = self.link.next_frame - 1 + self.outbox.frames

    def _on_confirmed(self, through: int) -> None:
        self._edge_has = through
        self.settle()

    def _on_frame(self, request: session_pb2.LinkRequest) -> None:
        events = FrameEvents(self, request.frame)
        self._frames.append(events)
        self._take(self, request, events)
        events.on_stored()

    def _build(self) -> session_pb2.LinkResponse | None:
        batch = self.outbox.take()
        told = self._admitted or self._decisions or self._probes or self._evictions
        if not (batch or told or self._inquiries or self._stored_changes):
            return None
        response = session_pb2.LinkResponse(
            decisions=[self._decisions.popleft() for _ in range(min(len(self._decisions), MAX_DECISIONS))],
            probe_channel_ids=_first(self._probes),
            evicted_channel_ids=_first(self._evictions),
            inquiries=self._inquiries.values(),
            stored_changes=self._stored_changes[:MAX_NAMES],
            admitted_channel_ids=self._admitted[:MAX_DECISIONS],
            admitted_times_ms=self._admitted_ms[:MAX_DECISIONS],
        )
        del self._admitted[:MAX_DECISIONS]
        del self._admitted_ms[:MAX_DECISIONS]
        del self._stored_changes[:MAX_NAMES]
        self._inquiries.clear()
        self.settle()
        if batch is not None:
            _fill(response.deliveries, batch)
            self._on_room()
        return response


def _fill(deliveries: session_pb2.Deliveries, batch: Batch) -> None:
    deliveries.topics.extend(batch.topic_index)
    deliveries.channel_ids.extend(batch.channel_index)
    deliveries.topic_indexes.extend(batch.topic_indexes)
    deliveries.payloads.extend(batch.payloads)
    deliveries.message_indexes.extend(batch.message_indexes)
    deliveries.channel_indexes.extend(batch.channel_indexes)
    deliveries.delivery_ids.extend(batch.delivery_ids)
    deliveries.flags = bytes(batch.flags)
    deliveries.packet_identifiers.extend(batch.packet_identifiers)


def _first(names: dict[str, None]) -> list[str]:
    """Take up to `MAX_NAMES` names out, oldest first."""
    first = list(itertools.islice(names, MAX_NAMES))
    for name in first:
        del names[name]
    return first
