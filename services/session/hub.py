"""The presence at work: frames of the edges in, its effects out."""

from __future__ import annotations

from typing import Protocol, assert_never

from services.common.errors import NotServingError, StreamContractError
from services.session.admission import Admission
from services.session.clock import Clock
from services.session.domain.effects import Decide, Evict, Forget, Probe, PublishWills
from services.session.domain.events import TCPCLEAN, Event, Fold
from services.session.domain.outbox import Outbox
from services.session.domain.presence import SLICE, Presence
from services.session.domain.records import Connection
from services.session.domain.sessions import Channel
from services.session.edge_link import EdgeLink, FrameEvents
from services.session.event_log import Waiter
from services.session.frames import Closing, Opening
from services.session.inquiries import Inquiries
from services.session.keeper import Keeper
from services.session.watches import Watches
from services.session.wills import WillPublisher
from weimq.session.v1 import session_pb2


class Events(Protocol):
    """Where events are stored; see `EventLog`."""

    @property
    def has_room(self) -> bool:
        """Whether events that no link bounds may be written."""

    def write(self, event: Event, waiter: Waiter | None, *, may_repeat: bool) -> None:
        """Have an event stored; `waiter.on_stored` is called when it is."""


class Hub:
    """Owns the presence and the links of all edges; serves once `start` was called. Owned by one event loop.

    Args:
        edge_grace_s: how long the connections of an edge outlive its link.
        clock: tells the time.
        place: index of this shard, and the number of shards.
    """

    def __init__(self, *, edge_grace_s: float, clock: Clock, place: tuple[int, int] = (0, 1)) -> None:
        self._clock = clock
        self._presence = Presence(edge_grace_ms=int(edge_grace_s * 1000))
        self._links: dict[str, EdgeLink] = {}
        self._events: Events | None = None
        self._wills: WillPublisher | None = None
        self.watches = Watches()
        """Who watches groups."""
        self.inquiries = Inquiries()
        """Questions to edges."""
        self.keeper = Keeper(
            place=place, clock=clock, locate=self._locate, answer=self._answer_change, evict=self._evict_channel
        )
        """Owns the persistent sessions."""
        self._admission = Admission(
            keeper=self.keeper, presence=self._presence, link_of=self._links.get, now_ms=clock.now_ms
        )

    @property
    def presence(self) -> Presence:
        """What is known; to be read only."""
        return self._presence

    @property
    def is_started(self) -> bool:
        """Whether what the events of the past tell is known."""
        return self._events is not None

    def start(self, events: Events, wills: WillPublisher, fold: Fold) -> None:
        """Start from what the events of the past left behind."""
        self._events = events
        self._wills = wills
        self._presence.restore(fold, self._clock.now_ms())
        self._apply(None)

    def tick(self) -> bool:
        """Do what is due; returns whether more of it is to be done at once."""
        if self._events is None:
            return False
        limit = SLICE if self._events.has_room else 0
        self._presence.expire(self._clock.now_ms(), limit)
        self._apply(None)
        return limit > 0 and self._presence.is_clearing

    # Links

    def open(self, opening: session_pb2.LinkOpen, session_incarnation: str) -> tuple[EdgeLink, bool]:
        """Return the link of an edge, and whether its frames go on; the edge has no other stream.

        Raises:
            NotServingError: the presence is not known yet.
            StreamContractError: the edge has frames that were never sent.
        """
        if self._events is None:
            raise NotServingError("the session service is reading its events")
        edge_link = self._links.get(opening.edge_id)
        is_known = edge_link is not None and edge_link.incarnation == opening.edge_incarnation
        if edge_link is not None and is_known and opening.session_incarnation == session_incarnation:
            if opening.received_through >= edge_link.link.next_frame:
                raise StreamContractError("received_through names a frame that was not sent", rule="resumption")
            edge_link.link.resume(opening.received_through)
            resumed = True
        else:
            edge_link = EdgeLink(opening.edge_id, opening.edge_incarnation, take=self._take, on_room=self.keeper.flush)
            resumed = False
        self._presence.open_edge(opening.edge_id, opening.edge_incarnation, self._clock.now_ms(), resumed=resumed)
        self._apply(None)  # may forget the old link
        self._links[opening.edge_id] = edge_link
        return edge_link, resumed

    def break_link(self, edge_link: EdgeLink) -> None:
        """Note that the stream of a link ended."""
        if self._links.get(edge_link.edge_id) is edge_link:
            self._presence.break_edge(edge_link.edge_id, edge_link.incarnation, self._clock.now_ms())

    def edge_link(self, edge_id: str) -> EdgeLink | None:
        """Return the link of an edge, None when it has none."""
        return self._links.get(edge_id)

    @property
    def edge_links(self) -> list[EdgeLink]:
        """The links of all edges."""
        return list(self._links.values())

    # Calls

    def connections(self, instance_id: str, client_id: str) -> list[Connection]:
        """Return the connections of a client, oldest first."""
        return self._presence.connections(instance_id, client_id)

    def is_certain(self, instance_id: str, client_id: str) -> bool:
        """Say whether `connections` is the truth."""
        return self.is_started and self._presence.is_certain(instance_id, client_id)

    def evict(self, instance_id: str, client_id: str) -> int:
        """Have every connection of a client closed; returns how many there are.

        Raises:
            NotServingError: the presence is not known yet.
        """
        if not self.is_started:
            raise NotServingError("the session service is reading its events")
        count = self._presence.evict(instance_id, client_id)
        self._apply(None)
        return count

    # Inside

    def _take(self, edge_link: EdgeLink, request: session_pb2.LinkRequest, events: FrameEvents) -> None:
        if self._links.get(edge_link.edge_id) is not edge_link:
            return  # the edge said goodbye
        try:
            openings = [Opening(each) for each in request.openings]
            closings = [Closing(each) for each in request.closings]
        except StreamContractError:
            del self._links[edge_link.edge_id]  # the next link starts anew: the numbering of this one has a hole
            self._presence.break_edge(edge_link.edge_id, edge_link.incarnation, self._clock.now_ms())
            raise
        now_ms = self._clock.now_ms()
        presence = self._presence
        edge_id = edge_link.edge_id
        for opening in openings:
            presence.open(
                edge_id,
                opening.instance_id,
                opening.client_id,
                opening.channel_id,
                opening.address,
                now_ms,
                established_ms=opening.established_ms,
                takeover=opening.takeover,
                will=opening.will,
            )
            self._admission.open(edge_link, opening)
        self._admission.take(edge_link, request, closings, events)
        for closing in closings:
            presence.close(
                edge_id,
                closing.instance_id,
                closing.client_id,
                closing.channel_id,
                closing.address,
                now_ms,
                connect_time_ms=closing.connect_time_ms,
                disconnected=closing.disconnected,
            )
        for result in request.probe_results:
            presence.probed(edge_id, result.channel_id, now_ms, alive=result.alive)
        for answer in request.inquiry_answers:
            self.inquiries.answered(answer)
        if request.snapshot_complete:
            presence.complete_snapshot(edge_id, now_ms)
            self._admission.complete_snapshot(edge_link)
        if request.goodbye:
            presence.close_edge(edge_id, now_ms)
        self._apply(events)
        if request.snapshot_complete:
            edge_link.brings_news = True
        self._admission.flush()

    def _apply(self, frame: FrameEvents | None) -> None:
        """Carry out what the presence asks for; `frame` is what it follows from."""
        events = self._events
        if events is None or self._wills is None:
            raise AssertionError("effects follow from frames, which come after the start")
        may_repeat = frame is None or not frame.is_news
        for effect in self._presence.take_effects():
            match effect:
                case Event():
                    if frame is not None:
                        frame.pending += 1
                    events.write(effect, frame, may_repeat=may_repeat)
                    self.watches.tell(effect)
                    if effect.tag == TCPCLEAN:
                        self._admission.end(effect)
                case PublishWills():
                    self._wills.add(effect.wills)
                case Forget():
                    edge_link = self._links.get(effect.edge_id)
                    if edge_link is not None and edge_link.incarnation == effect.incarnation:
                        del self._links[effect.edge_id]
                case _:
                    self._tell(effect)

    def _tell(self, effect: Decide | Probe | Evict) -> None:
        # Without a link there is nobody to tell: the edge's snapshot brings the question up again.
        edge_link = self._links.get(effect.edge_id)
        if edge_link is None:
            return
        match effect:
            case Decide():
                self._admission.decide(edge_link, effect)
            case Probe():
                edge_link.probe(effect.channel_id)
            case Evict():
                edge_link.evict(effect.channel_id)
            case _:
                assert_never(effect)

    def _locate(self, instance_id: str, client_id: str) -> tuple[str, Outbox[Channel], bool] | None:
        return self._admission.locate(instance_id, client_id)

    def _link_of_channel(self, channel_id: str) -> EdgeLink | None:
        channel = self.keeper.shard.pump.channels.get(channel_id)
        return self._links.get(channel.outbox.edge_id) if channel is not None else None

    def _answer_change(self, channel_id: str, number: int) -> None:
        edge_link = self._link_of_channel(channel_id)
        if edge_link is not None:  # else it closed meanwhile
            edge_link.answer_change(channel_id, number)

    def _evict_channel(self, channel_id: str) -> None:
        edge_link = self._link_of_channel(channel_id)
        if edge_link is not None:
            edge_link.evict(channel_id)
