"""The persistent sessions of one shard: their life, their subscriptions, and the messages that come for them. Pure.

What it wants done waits in `stores`, `pump.fetching.wanted`, `pump.dropped`, `interests` (targets) and the outboxes of
the edges; `pump.changes` is what a checkpoint has to store. Call `flush` after each round of calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.session.domain.fanout import Fanout, IsOurs, Locate
from services.session.domain.identifiers import presumed_identifiers
from services.session.domain.interests import Interests, pack_subscription, qos_of, since_ms_of
from services.session.domain.losses import SESSION_DELETED, SESSION_EXPIRED
from services.session.domain.outbox import Outbox
from services.session.domain.positions import FLAG_BITS, P2P, Queue
from services.session.domain.pump import Pump
from services.session.domain.roster import Roster
from services.session.domain.rules import Rules
from services.session.domain.sessions import WAITS_COMPLETION, Carried, Channel, Session

MAX_FLIPPED = 100
"""Of the clients that changed their cleanSession flag, how many are named until they are taken out."""
MAX_RECENT = 65_536
"""Of the clients with cleanSession 1, so many are remembered, and up to as many before them, to notice when they change
it."""


class Store(NamedTuple):
    """Write the subscriptions of a session, then answer a change."""

    instance_id: str
    client_id: str
    subscriptions: dict[str, int] | None
    """By topic filter, packed; None: the session is gone."""
    rules: Rules
    channel_id: str = ""
    number: int = 0
    """Of the change to be answered; 0: none."""
    has_losses: bool = False
    """Losses of the session are to be stored before."""


class Attached(NamedTuple):
    """What a connection that was let in is told."""

    session_present: bool
    subscriptions: dict[str, int]
    carried: Carried | None


NOTHING = Attached(session_present=False, subscriptions={}, carried=None)


class Shard:
    """Sessions of one shard. Owned by one event loop.

    Args:
        count: of shards; each keeps its part of what an instance may have.
        locate: finds the connection of a client, for kept P2P messages to clients without a session.
        is_ours: says which clients this shard serves.
    """

    def __init__(self, *, count: int, locate: Locate, is_ours: IsOurs) -> None:
        self.pump = Pump()
        self.interests: Interests[Session] = Interests()
        self.roster = Roster(self.pump, count=count, expire_session=self._expire)
        self.fanout = Fanout(self.roster, self.interests, self.pump, locate=locate, is_ours=is_ours)
        self.logs = self.fanout.logs
        self.stores: list[Store] = []
        """What is to be written, in order."""
        self.flips = 0
        """Clients that changed their cleanSession flag."""
        self.flipped: list[tuple[str, str, bool]] = []
        """Instance, client and new flag of some of them, for whoever takes them out."""
        self._recent_clean: set[tuple[str, str]] = set()
        self._earlier_clean: set[tuple[str, str]] = set()

    # Sessions

    def restore(self, instance_id: str, client_id: str, subscriptions: dict[str, int], rules: Rules) -> None:
        """Enter a persistent session whose subscriptions were stored."""
        instance = self.roster.instance(instance_id, rules)
        session = instance.sessions.get(client_id) or self.roster.make(instance, client_id)
        session.is_persistent = True
        session.rules = self.roster.intern(rules)
        self._subscribe(session, subscriptions)

    def begin(self, now_ms: int) -> None:
        """Start from what was restored: what a session had that was deleted meanwhile is forgotten."""
        for session in list(self.roster.sessions.values()):
            if session.queue:
                session.queue.sort()
            if not session.is_persistent:
                self._forget_subscribed(session)
                self.roster.drop_if_empty(session)
            elif not session.ended_ms:
                session.ended_ms = now_ms  # unless its connection is still there, which its edge tells

    def restore_row(self, slot: int, instance_id: str, client_id: str, ended_ms: int, carried: Carried | None) -> None:
        """Enter what the last checkpoint says of a session, before `restore`; its positions follow."""
        session = self.roster.make(self.roster.instance(instance_id, None), client_id, slot)
        session.ended_ms = ended_ms
        session.carried = carried

    def restore_position(self, slot: int, position: int, time_s: int) -> None:
        """Enter a position of a session, in the order of delivery; one of no session is forgotten."""
        session = self.roster.sessions.get(slot)
        if session is None:
            self.pump.changes.remove_position(slot, position)
            return
        if session.queue is None:
            session.queue = Queue()
        session.queue.append(position, time_s)
        session.instance.count += 1

    def attach(
        self,
        instance_id: str,
        client_id: str,
        channel_id: str,
        outbox: Outbox[Channel],
        rules: Rules | None,
        *,
        clean_session: bool,
        is_held: bool,
        is_established: bool = False,
    ) -> Attached:
        """Take a connection that was let in.

        Args:
            instance_id: instance of the client.
            client_id: its client identifier.
            channel_id: of the connection.
            outbox: of its edge.
            rules: of the session; None: those that the instance had last.
            clean_session: flag of CONNECT: what was kept is discarded but for kept P2P messages, and nothing is kept.
            is_held: it gets nothing until `release`.
            is_established: it was let in by the process before, and its edge knows better what it has under way.
        """
        session = self.roster.find(instance_id, client_id)
        was_present = session is not None and session.is_persistent
        known = session.channel if session is not None else None
        if session is not None and known is not None:
            if known.channel_id == channel_id:
                was_present = known.session_present
            elif session.is_persistent:
                session.carried = presumed_identifiers(known)
            self.roster.disconnect(known)
        self._note_flip(instance_id, client_id, was_persistent=was_present, clean_session=clean_session)
        if clean_session:
            if session is None:
                return NOTHING
            self._discard(session)
            if not session.queue:
                self.roster.drop_if_empty(session)
                return NOTHING
        else:
            instance = self.roster.instance(instance_id, rules)
            session = session or self.roster.make(instance, client_id)
            used = self.roster.intern(rules or instance.rules)
            if not session.is_persistent or session.rules != used:
                session.is_persistent = True
                session.rules = used
                self._subscribe(session, session.subscriptions or {})  # other rules keep others
                self._store(session)
        if is_established:
            session.carried = None
        carried = session.carried = session.carried if self.pump.is_rebuilding else _still_kept(session)
        self.roster.connect(session, channel_id, outbox, is_held=is_held, session_present=was_present)
        if clean_session:
            return NOTHING
        return Attached(was_present, session.subscriptions or {}, carried)

    def detach(self, channel_id: str, carried: Carried | None, now_ms: int) -> None:
        """Note that a connection ended; what it had under way waits for the next one.

        Args:
            channel_id: of the connection.
            carried: packet identifiers that it left in use; None: its edge is gone and did not tell.
            now_ms: the time.
        """
        channel = self.pump.channels.get(channel_id)
        if channel is None:
            return
        session = channel.session
        if session.is_persistent:
            session.carried = (presumed_identifiers(channel) if carried is None else carried) or None
        self.roster.disconnect(channel)
        session.ended_ms = now_ms
        self.pump.changes.touch_session(session)
        self.roster.drop_if_empty(session)

    def change(
        self, channel_id: str, number: int, added: Iterable[tuple[str, int]], removed: Iterable[str], now_ms: int
    ) -> None:
        """Take a change of subscriptions; a `Store` with its number follows, also when it was taken before."""
        channel = self.pump.channels.get(channel_id)
        if channel is None or not channel.session.is_persistent:
            return  # closed meanwhile
        session = channel.session
        if number > channel.last_change:
            channel.last_change = number
            subscriptions = dict(session.subscriptions or {})
            for topic_filter, qos in added:
                before = subscriptions.get(topic_filter)
                kept_before = before is not None and session.rules.keeps(topic_filter, qos_of(before))
                since_ms = since_ms_of(before) if before is not None and kept_before else now_ms
                subscriptions[topic_filter] = pack_subscription(qos, since_ms)
            for topic_filter in removed:
                subscriptions.pop(topic_filter, None)
            self._subscribe(session, subscriptions)
        self._store(session, channel_id, number)

    def acknowledge(self, instance_id: str, client_id: str, delivery_id: int, *, completed: bool) -> None:
        """Take the end of a delivery by a connection that this process does not know, or whose place was taken."""
        session = self.roster.find(instance_id, client_id)
        if session is not None:
            self.pump.end(session, delivery_id, completed=completed)
        else:
            self.pump.note_early(instance_id, client_id, delivery_id, completed=completed)

    def note_ended(self, instance_id: str, client_id: str, carried: Carried | None, now_ms: int) -> None:
        """Note the end of a connection whose opening was lost with the process before: what it left is the latest."""
        session = self.roster.find(instance_id, client_id)
        if session is None or session.channel is not None or not session.is_persistent:
            return
        session.carried = carried or None
        session.ended_ms = now_ms
        self.pump.changes.touch_session(session)

    def release(self, channel_id: str) -> None:
        """Let a connection that was held get its messages."""
        channel = self.pump.channels.get(channel_id)
        if channel is not None:
            self.pump.release(channel)

    def delete(self, session: Session, reason: str = SESSION_DELETED) -> int:
        """Delete a session with all that waits for it; returns how many messages that is."""
        if session.channel is not None:
            self.roster.disconnect(session.channel)
        dropped = self._drop_positions(session, reason)
        self._discard(session, has_losses=dropped > 0)
        self.roster.drop_if_empty(session)
        return dropped

    def forget(self, session: Session) -> None:
        """Forget a session of an instance that is gone, with all that waits for it; nobody is left to be told."""
        if session.channel is not None:
            self.roster.disconnect(session.channel)
        for position, _ in session.queue or ():
            self.pump.forget(session, position)
        session.queue = session.carried = None
        session.is_persistent = False
        self._subscribe(session, {})
        self.roster.drop_if_empty(session)

    def flush(self, now_ms: int) -> None:
        """Send what can be sent."""
        self.pump.flush(now_ms)

    @property
    def is_due_soon(self) -> bool:
        """Whether `expire` may have something to do at any moment."""
        return self.pump.is_timing or self.roster.bounds.is_sweeping

    def expire(self, now_ms: int) -> None:
        """Do what is due."""
        self.pump.expire(now_ms)
        self.roster.bounds.sweep(now_ms)

    # Inside

    def _subscribe(self, session: Session, subscriptions: dict[str, int]) -> None:
        """Replace the subscriptions of a session."""
        instance_id = session.instance.instance_id
        keeps = session.rules.keeps
        for topic_filter in session.subscriptions or ():
            if topic_filter not in subscriptions or not keeps(topic_filter, qos_of(subscriptions[topic_filter])):
                self.interests.remove(instance_id, topic_filter, session)
        for topic_filter, subscription in subscriptions.items():
            if keeps(topic_filter, qos_of(subscription)):
                self.interests.add(instance_id, topic_filter, session, subscription)
        session.subscriptions = subscriptions or None

    def _store(self, session: Session, channel_id: str = "", number: int = 0, *, has_losses: bool = False) -> None:
        subscriptions = session.subscriptions or {} if session.is_persistent else None
        instance_id, client_id = session.instance.instance_id, session.client_id
        self.stores.append(
            Store(instance_id, client_id, subscriptions, session.rules, channel_id, number, has_losses=has_losses)
        )

    def _discard(self, session: Session, *, has_losses: bool = False) -> None:
        """Delete what a session is but for its kept P2P messages [MQTT-3.1.2-6]."""
        if not session.is_persistent:
            return
        session.is_persistent = False
        session.carried = None
        self._subscribe(session, {})
        self._store(session, has_losses=has_losses)
        self.pump.changes.touch_session(session)
        self._forget_subscribed(session)

    def _forget_subscribed(self, session: Session) -> None:
        """Forget what waits but for kept P2P messages."""
        items = list(session.queue or ())
        session.queue = None
        for position, time_s in items:
            if position & P2P:
                session.queue = session.queue or Queue()
                session.queue.append(position, time_s)
            else:
                self.pump.forget(session, position)

    def _drop_positions(self, session: Session, reason: str) -> int:
        items = list(session.queue or ())
        session.queue = None
        for position, _ in items:
            self.pump.forget(session, position)
            self.pump.note_dropped(session, position, reason)
        return len(items)

    def _expire(self, session: Session) -> None:
        self.delete(session, SESSION_EXPIRED)

    def _note_flip(self, instance_id: str, client_id: str, *, was_persistent: bool, clean_session: bool) -> None:
        key = (instance_id, client_id)
        if clean_session:
            has_flipped = was_persistent
            if len(self._recent_clean) >= MAX_RECENT:
                self._recent_clean, self._earlier_clean = set(), self._recent_clean
            self._recent_clean.add(key)
        else:
            has_flipped = key in self._recent_clean or key in self._earlier_clean
            self._recent_clean.discard(key)
            self._earlier_clean.discard(key)
        if has_flipped:
            self.flips += 1
            if len(self.flipped) < MAX_FLIPPED:
                self.flipped.append((instance_id, client_id, clean_session))


def _still_kept(session: Session) -> Carried | None:
    """Return what a session carries, without the packet identifiers of messages that were dropped meanwhile.

    Those would wait at the edge for what never comes, on every connection, until its window has no room.
    """
    carried = session.carried
    if carried is None:
        return None
    kept = {position >> FLAG_BITS for position, _ in session.queue or ()}
    deliveries = [each for each in carried.deliveries if each[2] == WAITS_COMPLETION or each[0] in kept]
    return Carried(deliveries, carried.received, carried.retained) or None
