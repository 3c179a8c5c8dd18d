"""All connections of an edge: who wants what, and the hand-over of deliveries to them.

The router matches; it names *targets*, ids that this edge chose. A target is a topic filter with its
subscribers here, or one client for P2P. Owned by one event loop, hot path.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Mapping

from mypy_extensions import mypyc_attr

from services.edge.channel_ids import ChannelIds
from services.edge.commands import Commands
from services.edge.credentials import Credentials
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import PublishRun
from services.edge.ports import Authenticator, Client, Interest, Router, SessionShards
from services.edge.receipts import Receipt, Receipts
from services.edge.transports.strangers import Strangers

MAX_SEEN = 65_536
"""Message ids of QoS 2 kept for each origin, to drop what comes again after a break."""


MAX_LEFT = 4096
"""Targets of shared subscriptions that are remembered after their end, for messages that were on their way to them."""

MAX_ORIGINS = 256
"""Incarnations of edges whose message ids are kept; the oldest is forgotten."""

logger = logging.getLogger(__name__)


@mypyc_attr(allow_interpreted_subclasses=True)  # fakes in tests
class Receiver(Client):
    """A connection that takes deliveries."""

    look_at: float = 0.0
    """When `check_deadline` is to be called next, in seconds of the loop's clock."""

    @property
    def subscriptions(self) -> Mapping[str, int]:
        """Topic filters as the client sent them, with their granted QoS."""
        raise NotImplementedError

    def deliver(self, message: OutboundMessage, qos: int) -> None:
        """Send a message to the client, at `qos`."""
        raise NotImplementedError

    def deliver_run(self, run: PublishRun, qos: int) -> None:
        """Send messages to the client, each at the QoS of its publication and at most at `qos`."""
        for message in run.messages():
            self.deliver(message, min(run.qos, qos))

    def deliver_kept(self, message: OutboundMessage, qos: int, delivery_id: int, packet_identifier: int) -> None:
        """Send a message of the session shard.

        Args:
            message: shared by all deliveries; an empty topic: it is gone, and so is the use of its packet identifier.
            qos: 1 or 2: of this delivery.
            delivery_id: by which it is acknowledged.
            packet_identifier: under which it was sent on an earlier connection; 0: it was not.
        """
        raise NotImplementedError

    def deliver_watched(self, message: OutboundMessage, qos: int, receipt: Receipt) -> None:
        """Send a message of QoS 1 or 2 whose completion is told to `receipt`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what has gathered; called once for each loop turn in which `Hub.mark_dirty` was."""
        raise NotImplementedError

    def resume(self) -> None:
        """Read again after a pause."""
        raise NotImplementedError

    def check_deadline(self, now: float) -> None:
        """Close the connection if it was silent for too long."""
        raise NotImplementedError

    def stop_reading(self) -> None:
        """Read no more: the edge is stopping."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the connection at once, whatever is to be sent."""
        raise NotImplementedError


class Target(Interest):
    """An interest with those here who have it."""

    __slots__ = ("answers_due", "receivers")

    def __init__(
        self,
        *,
        target_id: int,
        instance_id: str,
        topic_filter: str = "",
        client_id: str = "",
        share_name: str = "",
        skips_acknowledged: bool = False,
    ) -> None:
        super().__init__(
            target_id=target_id,
            instance_id=instance_id,
            topic_filter=topic_filter,
            client_id=client_id,
            share_name=share_name,
            skips_acknowledged=skips_acknowledged,
        )
        self.receivers: dict[Receiver, int] = {}
        """Each receiver with its granted QoS."""
        self.answers_due = 0
        """Of a query, which is there for the retained messages of one new subscription only: answers to come."""


class Hub:
    """The connections of an edge."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.auth: Authenticator
        self.sessions: SessionShards
        self.router: Router
        self.commands = Commands()
        self.receipts = Receipts()
        self.credentials: Credentials
        self.strangers = Strangers()
        self.channel_ids = ChannelIds()
        self.connections: set[Receiver] = set()
        """Every TCP connection, also before CONNECT."""
        self.by_channel: dict[str, Receiver] = {}
        """Connections that were announced to the session service."""
        self._targets: dict[int, Target] = {}
        self._filters: dict[tuple[str, str, bool], Target] = {}
        self._by_parent: defaultdict[tuple[str, str], set[Target]] = defaultdict(set)
        self._left: dict[int, Target] = {}
        self._next_target_id = 1
        self.version = 0
        """Changes whenever the receivers of a topic filter do."""
        self.on_changed: list[Callable[[], None]] = []
        """What `sweep` calls after such changes, so that who remembers receivers lets go of those that are gone."""
        self._swept_version = 0
        self._dirty: list[Receiver] = []
        self._paused: set[Receiver] = set()
        self._seen: dict[str, tuple[set[int], deque[int]]] = {}

    # --- interests -----------------------------------------------------------------------------

    def add_client(self, receiver: Receiver) -> int:
        """Register a client that is to be let in and return its target id; nothing comes until `admit_client`."""
        target = self._add(
            Target(target_id=self._new_id(), instance_id=receiver.instance_id, client_id=receiver.client_id)
        )
        self.router.add_target(target)
        return target.target_id

    def admit_client(self, target_id: int, receiver: Receiver) -> None:
        """Let a client have its P2P messages."""
        self._targets[target_id].receivers[receiver] = 2

    def remove_client(self, target_id: int) -> None:
        """Undo `add_client`."""
        if self._targets.pop(target_id, None) is not None:
            self.router.remove_target(target_id)

    def subscribe(self, receiver: Receiver, topic_filter: str, qos: int, *, skips_acknowledged: bool = False) -> None:
        """Add a subscription or change its QoS.

        With `skips_acknowledged` it gets messages published at QoS 0 alone: the session shard has the others. The same
        receiver may have both kinds for a while.
        """
        key = (receiver.instance_id, topic_filter, skips_acknowledged)
        target = self._filters.get(key)
        if target is None:
            target = self._filters[key] = self._add(
                Target(
                    target_id=self._new_id(),
                    instance_id=receiver.instance_id,
                    topic_filter=topic_filter,
                    skips_acknowledged=skips_acknowledged,
                )
            )
            self._by_parent[_parent(target)].add(target)
            self.router.add_target(target)
        target.receivers[receiver] = qos
        self.version += 1

    def send_retained(self, receiver: Receiver, topic_filter: str, qos: int) -> Target:
        """Have a new subscription get the retained messages [MQTT-3.3.1-6]; returns the query."""
        query = self._add(Target(target_id=self._new_id(), instance_id=receiver.instance_id, topic_filter=topic_filter))
        query.receivers[receiver] = qos
        query.answers_due = self.router.query_retained(query)
        return query

    def end_query(self, query_id: int) -> None:
        """Note that a router has sent a new subscription its retained messages."""
        query = self._targets.get(query_id)
        if query is not None:
            query.answers_due -= 1
            if not query.answers_due:
                del self._targets[query_id]

    def unsubscribe(self, receiver: Receiver, topic_filter: str, *, skips_acknowledged: bool = False) -> None:
        """Remove a subscription of that kind; one that does not exist is no fault."""
        key = (receiver.instance_id, topic_filter, skips_acknowledged)
        target = self._filters.get(key)
        if target is None or target.receivers.pop(receiver, None) is None:
            return
        self.version += 1
        if not target.receivers:
            del self._filters[key]
            del self._targets[target.target_id]
            self._forget_parent(target)
            self.router.remove_target(target.target_id)

    def share(self, instance_id: str, share_name: str, topic_filter: str) -> Target:
        """Add an interest of one member of a shared subscription; the caller adds the receiver, at QoS 2."""
        target = self._add(
            Target(target_id=self._new_id(), instance_id=instance_id, topic_filter=topic_filter, share_name=share_name)
        )
        self._by_parent[_parent(target)].add(target)
        self.router.add_target(target)
        return target

    def unshare(self, target_id: int) -> None:
        """Undo `share`; the receiver still gets what was on its way, within bounds, and returns it."""
        target = self._targets.pop(target_id, None)
        if target is not None:
            self._forget_parent(target)
            if len(self._left) >= MAX_LEFT:
                del self._left[next(iter(self._left))]
            self._left[target_id] = target
            self.router.remove_target(target_id)

    def subscribers(self, instance_id: str, parent: str) -> set[Client]:
        """Return the receivers of topic filters that begin with a parent topic."""
        targets = self._by_parent.get((instance_id, parent), ())
        return {receiver for target in targets for receiver in target.receivers}

    def interests(self) -> list[Target]:
        """Return every target but the queries, for a router that knows none."""
        return [target for target in self._targets.values() if not target.answers_due]

    def _forget_parent(self, target: Target) -> None:
        key = _parent(target)
        targets = self._by_parent[key]
        targets.discard(target)
        if not targets:
            del self._by_parent[key]

    def _new_id(self) -> int:
        target_id = self._next_target_id
        self._next_target_id = target_id + 1
        return target_id

    def _add(self, target: Target) -> Target:
        self._targets[target.target_id] = target
        return target

    # --- deliveries ----------------------------------------------------------------------------

    def route(self, target_ids: list[int], topic: str) -> list[tuple[Receiver, int]]:
        """Return the receivers of a message with their QoS; each once, at the highest that it was granted."""
        if len(target_ids) == 1:
            target = self._targets.get(target_ids[0]) or self._left.get(target_ids[0])
            return _receivers(target, topic) if target is not None else []
        merged: dict[Receiver, int] = {}
        for target_id in target_ids:
            target = self._targets.get(target_id) or self._left.get(target_id)
            if target is not None:
                for receiver, qos in _receivers(target, topic):
                    # [MQTT-3.3.5-1] overlapping subscriptions: the maximum QoS of those that match
                    if merged.get(receiver, -1) < qos:
                        merged[receiver] = qos
        return list(merged.items())

    def known(self, target_ids: list[int]) -> list[int]:
        """Return those of these targets that are still there."""
        return [target_id for target_id in target_ids if target_id in self._targets]

    def is_repeated(self, origin: str, sequence: int) -> bool:
        """Note the id of a message of QoS 2 and return whether it was there before."""
        window = self._seen.get(origin)
        if window is None:
            if len(self._seen) >= MAX_ORIGINS:
                del self._seen[next(iter(self._seen))]
            window = self._seen[origin] = (set(), deque())
        ids, order = window
        if sequence in ids:
            return True
        ids.add(sequence)
        order.append(sequence)
        if len(order) > MAX_SEEN:
            ids.discard(order.popleft())
        return False

    # --- writes and pauses ---------------------------------------------------------------------

    def sweep(self) -> None:
        """Look round, now and then."""
        self.credentials.sweep()
        if self._swept_version != self.version:
            self._swept_version = self.version
            for each in self.on_changed:
                each()

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something called after a while."""
        self._loop.call_later(delay_s, call)

    def mark_dirty(self, receiver: Receiver) -> None:
        """Have `receiver.flush` called at the end of this loop turn."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(receiver)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for receiver in dirty:
            receiver.flush()

    def pause(self, receiver: Receiver) -> None:
        """Note that a publisher stopped reading because the router is congested."""
        self._paused.add(receiver)

    def resume_publishers(self) -> None:
        """Let the paused publishers read again."""
        paused, self._paused = self._paused, set()
        for receiver in paused:
            receiver.resume()

    def close_all(self) -> None:
        """Close every client that is let in: they may have missed messages that were acknowledged."""
        closing = list(self.by_channel.values())
        logger.warning("clients may have missed messages, closing them", extra={"clients": len(closing)})
        for receiver in closing:
            receiver.evict()

    def due(self, now: float) -> list[Receiver]:
        """Return the connections for which it is time to `check_deadline`."""
        return [each for each in self.connections if each.look_at <= now]

    def forget(self, receiver: Receiver) -> None:
        """Drop a connection that is closed; as a stranger it counts until its transport is gone, too."""
        self.receipts.lost(receiver)
        self.strangers.release(receiver)
        self.connections.discard(receiver)
        self._paused.discard(receiver)
        self.by_channel.pop(receiver.channel_id, None)


def _receivers(target: Target, topic: str) -> list[tuple[Receiver, int]]:
    if target.client_id or target.answers_due:
        # Subscriptions are kept in line with what is allowed; P2P and retained messages are judged when they come.
        return [entry for entry in target.receivers.items() if entry[0].may_receive(topic)]
    return list(target.receivers.items())


def _parent(target: Target) -> tuple[str, str]:
    return target.instance_id, target.topic_filter.partition("/")[0]
