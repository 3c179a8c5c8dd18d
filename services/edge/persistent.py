"""The edge's part of persistent sessions: what the session shard delivers to a connection, and its subscriptions there.

The shard keeps the messages. A connection gets them as `deliver_kept` and tells of each that the client has completed;
the packet identifiers in use at its end go to the shard, so that the next connection goes on with them, on any edge.
Clients with a clean session get kept P2P messages in the same way, and nothing else.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Sequence

from typing_extensions import override

from services.common.topics import split_share
from services.edge.acknowledgements import COMPLETED, WITHDRAWN
from services.edge.countdown import countdown
from services.edge.hub import Hub, Receiver, Target
from services.edge.mqtt.inflight import UNKEPT, Identifiers, SessionState
from services.edge.mqtt.machine import ServerConnection
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Unsubscribe
from services.edge.policy import Permissions
from services.edge.ports import KeptMessages, Sessions
from services.edge.shared import GONE, SharingClient
from services.edge.subscriptions import Subscriptions

ENDING_S = 1.0
"""How long the end of a connection waits for the routers' answers to its QoS 2 publications."""

MAX_RETAINED_CHARACTERS = 65_536
"""Topics of retained messages that a connection leaves to the next one; beyond, its subscriptions stand for them."""

_QOS_2 = 2


class KeptDeliveries(KeptMessages):
    """Messages that the session shard has given to one connection."""

    __slots__ = ("_client", "_expected", "_known", "_machine", "_sessions")

    def __init__(self, client: Receiver, machine: ServerConnection, sessions: Sessions) -> None:
        self._client = client
        self._machine = machine
        self._sessions = sessions
        # Under way, or completed and not yet stored as such: the shard sends those again after a restart.
        self._known: set[int] = set()
        # Packet identifiers that an earlier connection left in use, by delivery: a restarted shard does not know them.
        self._expected: dict[int, int] = {}
        self.channel_id = client.channel_id

    def restore(self, identifiers: Identifiers) -> None:
        """Go on with the packet identifiers that an earlier connection left in use."""
        self._machine.session.restore(identifiers)
        for packet_identifier, token in identifiers.unacknowledged:
            if isinstance(token, int):
                self._expected[token] = packet_identifier
        self._known.update(token for _, token in identifiers.released if isinstance(token, int))

    def send(self, message: OutboundMessage, qos: int, delivery_id: int, packet_identifier: int) -> bool:
        """Send a message unless the client has it or may not have it; see `Receiver.deliver_kept`.

        Returns:
            False: there is no room for it.
        """
        packet_identifier = self._expected.pop(delivery_id, 0) or packet_identifier
        if not message.topic:  # the shard does not have it any more
            self._machine.give_up(qos, delivery_id, packet_identifier)
        elif not self._client.may_receive(message.topic.decode()):
            self.withdraw(delivery_id)
            self._machine.give_up(qos, delivery_id, packet_identifier)
        elif packet_identifier:
            # Otherwise the client has completed it before it came again.
            if self._machine.deliver_again(message, qos, delivery_id, packet_identifier):
                self._known.add(delivery_id)
        elif delivery_id not in self._known:
            if not self._machine.deliver(message, qos, delivery_id):
                return False
            self._known.add(delivery_id)
        return True

    def withdraw(self, delivery_id: int) -> None:
        """Note that the client may not have a delivery."""
        self._known.add(delivery_id)
        self._sessions.acknowledge(self, delivery_id, WITHDRAWN)

    def complete(self, delivery_id: int) -> None:
        """Note that the client has completed a delivery."""
        if delivery_id == UNKEPT:
            return
        self._expected.pop(delivery_id, None)
        self._known.add(delivery_id)
        self._sessions.acknowledge(self, delivery_id, COMPLETED)

    def end(self) -> None:
        """Note that the connection ends; nothing is sent any more."""
        self._client = GONE

    @override
    def on_stored(self, delivery_id: int) -> None:
        self._known.discard(delivery_id)


class PersistentSubscriptions(Subscriptions):
    """Subscriptions of a connection with cleanSession 0: the session shard stores them.

    Those that it keeps messages for are targets of the edge for QoS 0 alone. When a subscription becomes one of the
    other kind, both are there until the shard has stored the change: rather a repeat than a gap [MQTT-3.8.4-3].
    """

    __slots__ = ("_keeps_qos2", "_leaving", "_left", "_queries", "_sessions", "_unasked")

    def __init__(self, hub: Hub, receiver: SharingClient, sessions: Sessions, *, keeps_qos2: bool) -> None:
        super().__init__(hub, receiver)
        self._sessions = sessions
        self._keeps_qos2 = keeps_qos2
        self._leaving: set[str] = set()
        self._queries: deque[tuple[Target, int]] = deque()  # for retained messages, in order, with the QoS
        self._unasked: Sequence[tuple[str, int]] = ()
        self._left: Sequence[tuple[str, int]] = ()  # what was subscribed to when the connection ended

    def expect_retained(self, retained: Sequence[tuple[str, int]]) -> None:
        """Have `restore` ask for retained messages that an earlier connection has not got, by topic or topic filter."""
        self._unasked = retained

    @override
    def unanswered(self, sent: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        retained = [*sent, *self._unasked]
        if sum(len(name) for name, _ in retained) <= MAX_RETAINED_CHARACTERS:
            return retained
        return [
            (name, qos) for name, qos in self._left if qos and not split_share(name)[0]
        ]  # rather repeats than a gap

    def restore(self, subscriptions: Sequence[tuple[str, int]], grant: Permissions) -> None:
        """Go on with the subscriptions of the session; those that are not allowed any more are removed from it."""
        denied = []
        for topic_filter, qos in subscriptions:
            if grant.may_subscribe(topic_filter):
                self._filters[topic_filter] = qos
                self._subscribe(topic_filter, qos)
            else:
                denied.append(topic_filter)
        self._on_denied(denied)
        unasked, self._unasked = self._unasked, ()
        for topic_filter, qos in unasked:
            self._send_retained(topic_filter, qos)

    @override
    def _send_retained(self, topic_filter: str, qos: int) -> None:
        while self._queries and not self._queries[0][0].answers_due:
            self._queries.popleft()
        if qos and not split_share(topic_filter)[0]:
            self._queries.append((self._hub.send_retained(self._receiver, topic_filter, qos), qos))
        else:
            super()._send_retained(topic_filter, qos)

    @override
    def _on_denied(self, denied: Sequence[str]) -> None:
        super()._on_denied(denied)
        if denied:
            self._sessions.change_subscriptions(self._receiver, (), denied, _nothing)

    @override
    def remove(self, packet: Unsubscribe, done: Callable[[], None]) -> None:
        removed = [topic_filter for topic_filter in packet.filters if self._filters.pop(topic_filter, None) is not None]
        if not removed:
            done()
            return
        self._leaving.update(removed)
        finish = functools.partial(self._removed, removed, done)
        self._sessions.change_subscriptions(self._receiver, (), removed, finish)

    @override
    def clear(self, session: SessionState) -> None:
        # Now: what comes for a query from here on finds nobody.
        asked = [(query.topic_filter, qos) for query, qos in self._queries if query.answers_due]
        self._unasked = [*self._unasked, *asked]
        self._left = list(self._filters.items())
        for topic_filter in self._leaving - self._filters.keys():
            self._unsubscribe(topic_filter)
        super().clear(session)

    @override
    def _put_in_force(self, added: Sequence[tuple[str, int]], done: Callable[[], None]) -> None:
        if not added:
            super()._put_in_force(added, done)
            return
        step = countdown(2, functools.partial(self._stored, added, done))
        self._hub.router.notify(step)
        self._sessions.change_subscriptions(self._receiver, added, (), step)

    @override
    def _subscribe_own(self, topic_filter: str, qos: int) -> None:
        self._hub.subscribe(self._receiver, topic_filter, qos, skips_acknowledged=self._is_kept(qos))

    @override
    def _unsubscribe_own(self, topic_filter: str) -> None:
        for is_kept in (False, True):
            self._hub.unsubscribe(self._receiver, topic_filter, skips_acknowledged=is_kept)

    def _is_kept(self, qos: int) -> bool:
        return qos == 1 or (qos == _QOS_2 and self._keeps_qos2)

    def _stored(self, added: Sequence[tuple[str, int]], done: Callable[[], None]) -> None:
        for topic_filter, _ in added:
            qos = self._filters.get(topic_filter)
            if qos is not None:
                self._hub.unsubscribe(self._receiver, topic_filter, skips_acknowledged=not self._is_kept(qos))
        done()

    def _removed(self, removed: Sequence[str], done: Callable[[], None]) -> None:
        if self._receiver is GONE:  # `clear` has dropped them
            return
        for topic_filter in removed:
            self._leaving.discard(topic_filter)
            if topic_filter not in self._filters:  # not subscribed again meanwhile
                self._unsubscribe(topic_filter)
        done()


def left_in_use(session: SessionState, subscriptions: Subscriptions) -> Identifiers:
    """Return what a connection that ended leaves to the next one of its session; its subscriptions are cleared."""
    used = session.identifiers()
    used.retained = subscriptions.unanswered(used.retained)
    return used


class Ending:
    """The end of a connection with cleanSession 0, told once it is known which QoS 2 publications were taken over.

    The client sends those that were not answered again on its next connection. Had the mesh taken one over, and were
    its identifier not known there, it would be published twice.
    """

    def __init__(self, session: SessionState, tell: Callable[[], None]) -> None:
        self._session = session
        self._tell: Callable[[], None] | None = tell

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell now, or at the latest after `ENDING_S`."""
        self.check()
        if self._tell is not None:
            loop.call_later(ENDING_S, self.finish)

    def check(self) -> None:
        """Tell if every publication is answered."""
        if not self._session.received.forwarded_count:
            self.finish()

    def finish(self) -> None:
        """Tell, unless that was done."""
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()


def _nothing() -> None:
    """Take note of something that nobody waits for."""
