"""Between the frames of edges and the sessions: openings, closings, and what clients of persistent sessions do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.session.domain.effects import Decide
from services.session.domain.events import Event
from services.session.domain.outbox import Outbox
from services.session.domain.presence import Presence
from services.session.domain.sessions import Carried, Channel
from services.session.domain.shard import NOTHING, Attached
from services.session.edge_link import EdgeLink, FrameEvents
from services.session.frames import Closing, Opening
from services.session.keeper import Keeper
from weimq.session.v1 import session_pb2

COMPLETED = 0
"""Outcome of a delivery in `Acknowledgements`: the client has it."""
_NOTHING_IN_USE = Carried([], [])


class Admission:
    """Gives connections their sessions. Owned by one event loop.

    Args:
        keeper: owns the sessions.
        presence: knows the connections.
        link_of: returns the link of an edge.
        now_ms: tells the time.
    """

    def __init__(
        self,
        *,
        keeper: Keeper,
        presence: Presence,
        link_of: Callable[[str], EdgeLink | None],
        now_ms: Callable[[], int],
    ) -> None:
        self._keeper = keeper
        self._shard = keeper.shard
        self._presence = presence
        self._link_of = link_of
        self._now_ms = now_ms
        self._held: set[str] = set()  # channel ids of connections that get nothing yet
        # Held ones that would discard or make a session, which they must not before they have proved who they are.
        self._to_attach: dict[str, Opening] = {}
        self._carried: dict[str, Carried] = {}  # by channel id, of the frame that is being taken

    def open(self, edge_link: EdgeLink, opening: Opening) -> None:
        """Take an opening that the presence took before."""
        if not opening.established_ms:
            edge_link.openings[opening.channel_id] = opening
            return
        if not self._is_current(opening):
            return
        self._attach(edge_link, opening)
        edge_link.restored.append(opening.channel_id)

    def decide(self, edge_link: EdgeLink, effect: Decide) -> None:
        """Answer an opening, with the session of a connection that was let in."""
        channel_id = effect.channel_id
        opening = edge_link.openings.pop(channel_id, None)
        if opening is None or not effect.accepted:
            edge_link.decide(session_pb2.Decision(channel_id=channel_id, admission=session_pb2.ADMISSION_DUPLICATE))
            return
        attached = self._attach(edge_link, opening)
        if attached is NOTHING:
            edge_link.admit(channel_id, effect.connect_time_ms)
            return
        decision = session_pb2.Decision(
            channel_id=channel_id,
            connect_time_ms=effect.connect_time_ms,
            admission=session_pb2.ADMISSION_ACCEPTED,
            session_present=attached.session_present,
        )
        for topic_filter, subscription in attached.subscriptions.items():
            decision.subscriptions.add(topic_filter=topic_filter, qos=subscription & 3)
        if attached.carried is not None:
            _fill(decision.inflight, attached.carried)
        edge_link.decide(decision)

    def take(
        self, edge_link: EdgeLink, request: session_pb2.LinkRequest, closings: Iterable[Closing], events: FrameEvents
    ) -> None:
        """Take what clients of sessions did; closings come after."""
        shard, pump = self._shard, self._shard.pump
        now_ms = self._now_ms()
        self._attach_released(edge_link, request.released_channel_ids)
        for change in request.subscription_changes:
            added = [(each.topic_filter, each.qos) for each in change.added]
            shard.change(change.channel_id, change.number, added, change.removed_topic_filters, now_ms)
        if request.HasField("acknowledgements"):
            self._take_acknowledgements(edge_link, request.acknowledgements)
            events.pending += 1
            edge_link.hold_for_deliveries(events)
            edge_link.orphaned.append(events)
        for channel_id in request.released_channel_ids:
            self._held.discard(channel_id)
            if channel_id not in edge_link.restored:
                shard.release(channel_id)
        for pull in request.offline_pulls:
            pump.pull(pull.channel_id, pull.max_messages, now_ms, descending=pull.descending)
        for closing in closings:
            self._take_closing(edge_link, closing, events)
        if not edge_link.orphans or request.snapshot_complete:
            for each in edge_link.orphaned:
                self._keeper.checkpointer.keep_until_stored(each)
            edge_link.orphaned.clear()

    def _take_closing(self, edge_link: EdgeLink, closing: Closing, events: FrameEvents) -> None:
        channel_id = closing.channel_id
        edge_link.openings.pop(channel_id, None)
        for delivery_id, completed in edge_link.orphans.pop(channel_id, ()):
            self._shard.acknowledge(closing.instance_id, closing.client_id, delivery_id, completed=completed)
        if closing.carried is not None:
            self._carried[channel_id] = closing.carried
            events.pending += 1
            self._keeper.checkpointer.keep_until_stored(events)
        elif not closing.connect_time_ms:  # its edge had no decision: the next one has what it brought
            channel = self._shard.pump.channels.get(channel_id)
            if channel is not None and channel.carried is not None:
                self._carried[channel_id] = channel.carried
        else:
            self._carried[channel_id] = _NOTHING_IN_USE

    def _take_acknowledgements(self, edge_link: EdgeLink, done: session_pb2.Acknowledgements) -> None:
        acknowledge = self._shard.pump.acknowledge
        channel_ids = list(done.channel_ids)
        for index, delivery_id, outcome in zip(done.channel_indexes, done.delivery_ids, done.outcomes, strict=True):
            completed = outcome == COMPLETED
            if not acknowledge(channel_ids[index], delivery_id, completed=completed):
                self._acknowledge(edge_link, channel_ids[index], delivery_id, completed=completed)

    def _acknowledge(self, edge_link: EdgeLink, channel_id: str, delivery_id: int, *, completed: bool) -> None:
        """Take the end of a delivery by a connection without a session here: of the process before this one."""
        connection = self._presence.connection(edge_link.edge_id, channel_id)
        if connection is not None:
            self._shard.acknowledge(connection.instance_id, connection.client_id, delivery_id, completed=completed)
        else:  # it ended; its closing says whose it was
            edge_link.orphans.setdefault(channel_id, []).append((delivery_id, completed))

    def complete_snapshot(self, edge_link: EdgeLink) -> None:
        """Let established connections get their messages."""
        for channel_id in edge_link.restored:
            if channel_id not in self._held:
                self._shard.release(channel_id)
        edge_link.restored = []

    def end(self, event: Event) -> None:
        """Take the end of a connection."""
        self._held.discard(event.channel_id)
        was_attached = self._to_attach.pop(event.channel_id, None) is None
        carried = self._carried.pop(event.channel_id, None)
        shard = self._shard
        if event.channel_id in shard.pump.channels:
            shard.detach(event.channel_id, carried, self._now_ms())
        elif was_attached:
            shard.note_ended(event.instance_id, event.client_id, carried, self._now_ms())

    def flush(self) -> None:
        """Carry out what the shard wants, after a frame."""
        self._carried.clear()
        self._keeper.flush()

    def locate(self, instance_id: str, client_id: str) -> tuple[str, Outbox[Channel], bool] | None:
        """Return the connection of a client: channel id, outbox of its edge, whether it is held."""
        connections = self._presence.connections(instance_id, client_id)
        if not connections or connections[-1].is_evicted:
            return None
        channel_id = connections[-1].channel_id
        edge_link = self._link_of(connections[-1].edge.edge_id)
        if edge_link is None or edge_link.incarnation != connections[-1].edge.incarnation:
            return None
        return channel_id, edge_link.outbox, channel_id in self._held

    def _is_current(self, opening: Opening) -> bool:
        """Say whether a connection neither ended nor lost its place to another one."""
        held = self._presence.connections(opening.instance_id, opening.client_id)
        return bool(held) and held[-1].channel_id == opening.channel_id and not held[-1].is_evicted

    def _attach(self, edge_link: EdgeLink, opening: Opening) -> Attached:
        if opening.is_held:
            self._held.add(opening.channel_id)
            session = self._shard.roster.find(opening.instance_id, opening.client_id)
            if opening.clean_session or session is None or not session.is_persistent:
                self._to_attach[opening.channel_id] = opening
                return NOTHING
        return self._attach_now(edge_link, opening)

    def _attach_released(self, edge_link: EdgeLink, channel_ids: Iterable[str]) -> None:
        for channel_id in channel_ids:
            opening = self._to_attach.pop(channel_id, None)
            if opening is not None and self._is_current(opening):
                self._attach_now(edge_link, opening)

    def _attach_now(self, edge_link: EdgeLink, opening: Opening) -> Attached:
        if not self._keeper.is_ours(opening.instance_id, opening.client_id):
            return NOTHING  # the edge was told of another number of shards
        is_established = opening.established_ms > 0
        return self._shard.attach(
            opening.instance_id,
            opening.client_id,
            opening.channel_id,
            edge_link.outbox,
            opening.rules,
            clean_session=opening.clean_session,
            is_held=opening.is_held or is_established,
            is_established=is_established,
        )


def _fill(state: session_pb2.InflightState, carried: Carried) -> None:
    for delivery_id, packet_identifier, stage in carried.deliveries:
        state.delivery_ids.append(delivery_id)
        state.packet_identifiers.append(packet_identifier)
        state.stages += bytes((stage,))
    state.received_packet_identifiers.extend(carried.received)
    state.retained.extend(session_pb2.Subscription(topic_filter=name, qos=qos) for name, qos in carried.retained)
