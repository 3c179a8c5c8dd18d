"""From topics to edges and session shards: their interests, and the routes found through them. Pure, hot path.

Edges and shards stand here as small integers, their *slots*. An interest is the slot, what kind of messages it wants,
and the target id that the edge gave it, in one integer. Routes are remembered by topic, since topics repeat, until
an interest of the instance changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from services.common.subjects import MAX_SUBJECT, encode_topic, log_stream, log_subject
from services.common.topics import validate_topic_name
from services.common.trie import Trie
from services.router.domain.shared_groups import SLOT_SHIFT, Group, SharedGroups

MAX_ROUTES = 65_536
"""Routes remembered over all instances; beyond, all are forgotten and found anew."""
MAX_REMEMBERED_TOPIC = 512
"""Longest topic whose route is remembered, in characters, so that hostile topics can't fill the memory."""

SKIPS_QOS0 = 1 << 32
SKIPS_ACKNOWLEDGED = 1 << 33
"""Kinds of an interest: not in messages published at QoS 0, or not in those of QoS 1 and 2."""
OF_SHARD = 1 << 34
"""Kind of an interest: of a session shard, which never gets messages of QoS 0."""
_TARGET_MASK = (1 << 32) - 1


class Leg:
    """The part of a route that goes to one edge."""

    __slots__ = ("batch", "index", "qos0_batch", "qos0_index", "slot", "target_ids", "topic")

    def __init__(self, topic: str, slot: int, target_ids: list[int]) -> None:
        self.topic = topic
        self.slot = slot
        self.target_ids = target_ids
        # Place of the topic in the batches that the edge's outbox gathers: valid while these are their numbers.
        self.batch = -1
        self.index = 0
        self.qos0_batch = -1
        self.qos0_index = 0


class Share:
    """A shared subscription that selects the topic of a route."""

    __slots__ = ("_legs", "_topic", "group")

    def __init__(self, topic: str, group: Group) -> None:
        self.group = group
        self._topic = topic
        self._legs: dict[int, Leg] = {}

    def next(self, blocked: AbstractSet[int]) -> Leg | None:
        """Return where the next message goes; see `Group.next`."""
        member = self.group.next(blocked)
        if not member:
            return None
        leg = self._legs.get(member)
        if leg is None:
            leg = self._legs[member] = Leg(self._topic, member >> SLOT_SHIFT, [member & _TARGET_MASK])
        return leg


_NO_LEGS: Sequence[Leg] = ()
_NO_SHARES: Sequence[Share] = ()


class Route:
    """Where the messages of one topic go."""

    __slots__ = (
        "_log",
        "_subject",
        "acknowledged_legs",
        "instance_id",
        "is_kept",
        "is_plain",
        "legs",
        "second_topic",
        "shard_legs",
        "shares",
        "topic",
        "topic_header",
    )

    def __init__(
        self,
        instance_id: str,
        topic: str,
        legs: Sequence[Leg],
        acknowledged_legs: Sequence[Leg] | None = None,
        shard_legs: Sequence[Leg] = _NO_LEGS,
        shares: Sequence[Share] = _NO_SHARES,
        *,
        is_kept: bool = False,
    ) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.legs = legs
        """To edges, of messages of QoS 0."""
        self.acknowledged_legs = legs if acknowledged_legs is None else acknowledged_legs
        """To edges, of messages of QoS 1 and 2."""
        self.shard_legs = shard_legs
        """To session shards, of messages of QoS 1 and 2."""
        self.shares = shares
        self.is_plain = not shard_legs and not shares
        """Whether it goes to edges only, to all of them."""
        self.is_kept = is_kept
        """Whether it is that of a P2P message that the receiver's shard keeps."""
        self.second_topic = topic[topic.index("/") :] if "/" in topic else ""
        """What follows the parent topic, with its `/`; empty for the bare parent topic."""
        self.topic_header = ""
        """The topic for `subjects.TOPIC_HEADER`, when `subject` does not hold it."""
        self._subject = ""
        self._log = ""

    @property
    def subject(self) -> str:
        """Subject in the log of the parent topic; that of the bare parent topic when the topic is too long for one."""
        if not self._subject:
            self._subject = log_subject(self.instance_id, self.topic)
            if len(self._subject) > MAX_SUBJECT:
                self._subject = log_subject(self.instance_id, self.parent_topic)
                self.topic_header = encode_topic(self.topic)
        return self._subject

    def shown_as(self, topic: str) -> Route:
        """Return this route with another topic for the eyes of clients."""
        return Route(
            self.instance_id,
            self.topic,
            [Leg(topic, leg.slot, leg.target_ids) for leg in self.legs],
            [Leg(topic, leg.slot, leg.target_ids) for leg in self.acknowledged_legs],
            # the topic of a kept P2P message says whose it is
            self.shard_legs if self.is_kept else [Leg(topic, leg.slot, leg.target_ids) for leg in self.shard_legs],
            [Share(topic, share.group) for share in self.shares],
            is_kept=self.is_kept,
        )

    @property
    def parent_topic(self) -> str:
        """First level of the topic."""
        return self.topic.partition("/")[0]

    @property
    def log(self) -> str:
        """Stream of the parent topic."""
        if not self._log:
            self._log = log_stream(self.instance_id, self.parent_topic)
        return self._log


class _Instance:
    """Interests of one instance."""

    __slots__ = ("clients", "groups", "p2p_routes", "p2p_topics", "routes", "trie")

    def __init__(self, instance_id: str) -> None:
        self.trie = Trie()
        self.groups = SharedGroups(instance_id)
        self.clients: dict[str, tuple[int, ...]] = {}
        self.routes: dict[str, Route] = {}
        self.p2p_routes: dict[str, Route] = {}
        self.p2p_topics: dict[str, list[str]] = {}  # of those, by client id


class Routing:
    """Interests of all edges and shards."""

    __slots__ = ("_instances", "_remembered")

    def __init__(self) -> None:
        self._instances: dict[str, _Instance] = {}
        self._remembered = 0

    def add_filter(self, instance_id: str, topic_filter: str, slot: int, target_id: int, kind: int = 0) -> None:
        """Add the interest of an edge or a shard in a valid topic filter; `kind` is made of the flags above."""
        instance = self._instance(instance_id)
        instance.trie.add(topic_filter, slot << SLOT_SHIFT | kind | target_id)
        self._forget(instance)

    def remove_filter(self, instance_id: str, topic_filter: str, slot: int, target_id: int, kind: int = 0) -> None:
        """Remove what `add_filter` added."""
        instance = self._instance(instance_id)
        instance.trie.remove(topic_filter, slot << SLOT_SHIFT | kind | target_id)
        self._forget(instance)
        self._drop_empty(instance_id, instance)

    def add_member(self, instance_id: str, share_name: str, topic_filter: str, slot: int, target_id: int) -> None:
        """Add a target of an edge to a shared subscription with a valid topic filter."""
        instance = self._instance(instance_id)
        instance.groups.add(share_name, topic_filter, slot << SLOT_SHIFT | target_id)
        self._forget(instance)

    def remove_member(self, instance_id: str, share_name: str, topic_filter: str, slot: int, target_id: int) -> None:
        """Remove what `add_member` added."""
        instance = self._instance(instance_id)
        instance.groups.remove(share_name, topic_filter, slot << SLOT_SHIFT | target_id)
        self._forget(instance)
        self._drop_empty(instance_id, instance)

    def share(self, instance_id: str, share_name: str, topic_filter: str, topic: str) -> Share | None:
        """Return a shared subscription as the only way of a message; None when it has no member."""
        instance = self._instances.get(instance_id)
        group = instance.groups.get(share_name, topic_filter) if instance is not None else None
        return Share(topic, group) if group is not None else None

    def add_client(self, instance_id: str, client_id: str, slot: int, target_id: int) -> None:
        """Add the interest of an edge in P2P messages to a client."""
        instance = self._instance(instance_id)
        values = instance.clients.get(client_id, ())
        value = slot << SLOT_SHIFT | target_id
        if value not in values:
            instance.clients[client_id] = (*values, value)
            self._forget_client(instance, client_id)

    def remove_client(self, instance_id: str, client_id: str, slot: int, target_id: int) -> None:
        """Remove what `add_client` added."""
        instance = self._instance(instance_id)
        values = instance.clients.get(client_id, ())
        value = slot << SLOT_SHIFT | target_id
        if value in values:
            self._forget_client(instance, client_id)
            if len(values) > 1:
                instance.clients[client_id] = tuple(each for each in values if each != value)
            else:
                del instance.clients[client_id]
        self._drop_empty(instance_id, instance)

    def route(self, instance_id: str, topic: str, *, is_p2p: bool) -> Route:
        """Return the route of a topic; valid until an interest changes.

        Args:
            instance_id: of the publisher.
            topic: name that the message was published to.
            is_p2p: the topic is `<parent>/p2p/<client id>`, and only that client gets the message.

        Raises:
            InvalidTopicError: the topic is not a topic name.
            ValueError: `is_p2p` and the topic has no such form.
        """
        instance = self._instances.get(instance_id)
        if is_p2p:
            route = instance.p2p_routes.get(topic) if instance is not None else None
            return route if route is not None else self._p2p_route(instance_id, topic, instance)
        if instance is None:
            validate_topic_name(topic)
            return Route(instance_id, topic, _NO_LEGS)
        route = instance.routes.get(topic)
        if route is None:
            validate_topic_name(topic)
            route = _route(instance_id, topic, instance)
            if self._may_remember(topic):
                instance.routes[topic] = route
        return route

    def _p2p_route(self, instance_id: str, topic: str, instance: _Instance | None) -> Route:
        client_id = p2p_receiver(topic)
        validate_topic_name(topic)
        values = instance.clients.get(client_id, ()) if instance is not None else ()
        route = Route(instance_id, topic, _legs(topic, _by_slot(values)))
        if instance is not None and values and self._may_remember(topic):
            instance.p2p_routes[topic] = route
            instance.p2p_topics.setdefault(client_id, []).append(topic)
        return route

    def _may_remember(self, topic: str) -> bool:
        if len(topic) > MAX_REMEMBERED_TOPIC:
            return False
        if self._remembered >= MAX_ROUTES:
            for each in self._instances.values():
                self._forget(each)
                self._remembered -= len(each.p2p_routes)
                each.p2p_routes.clear()
                each.p2p_topics.clear()
        self._remembered += 1
        return True

    def _forget_client(self, instance: _Instance, client_id: str) -> None:
        for topic in instance.p2p_topics.pop(client_id, ()):
            del instance.p2p_routes[topic]
            self._remembered -= 1

    def _instance(self, instance_id: str) -> _Instance:
        instance = self._instances.get(instance_id)
        if instance is None:
            instance = self._instances[instance_id] = _Instance(instance_id)
        return instance

    def _forget(self, instance: _Instance) -> None:
        self._remembered -= len(instance.routes)
        instance.routes.clear()

    def _drop_empty(self, instance_id: str, instance: _Instance) -> None:
        if instance.trie.is_empty and instance.groups.is_empty and not instance.clients:
            self._forget(instance)
            del self._instances[instance_id]


def p2p_receiver(topic: str) -> str:
    """Return the client id of a topic `<parent>/p2p/<client id>`.

    Raises:
        ValueError: the topic has no such form.
    """
    levels = topic.split("/", 2)
    if len(levels) != 3 or levels[1] != "p2p":  # noqa: PLR2004 - parent, p2p, client id
        raise ValueError(f"{topic!r} is not a P2P topic")
    return levels[2]


def _route(instance_id: str, topic: str, instance: _Instance) -> Route:
    values = instance.trie.match(topic)
    groups = [] if instance.groups.is_empty else instance.groups.match(topic)
    edges = [value for value in values if not value & OF_SHARD]
    by_slot = _by_slot([value for value in edges if not value & SKIPS_QOS0])
    acknowledged_by_slot = _by_slot([value for value in edges if not value & SKIPS_ACKNOWLEDGED])
    legs = _legs(topic, by_slot)
    acknowledged_legs = legs
    if acknowledged_by_slot != by_slot:
        same = {leg.slot: leg for leg in legs if acknowledged_by_slot.get(leg.slot) == leg.target_ids}
        acknowledged_legs = [
            same.get(slot) or Leg(topic, slot, target_ids) for slot, target_ids in acknowledged_by_slot.items()
        ]
    return Route(
        instance_id,
        topic,
        legs,
        acknowledged_legs,
        _legs(topic, _by_slot([value for value in values if value & OF_SHARD])),
        [Share(topic, group) for group in groups],
    )


def _by_slot(values: Sequence[int]) -> dict[int, list[int]]:
    """Gather target ids by edge."""
    slots: dict[int, list[int]] = {}
    for value in values:
        slots.setdefault(value >> SLOT_SHIFT, []).append(value & _TARGET_MASK)
    return slots


def _legs(topic: str, by_slot: dict[int, list[int]]) -> list[Leg]:
    return [Leg(topic, slot, target_ids) for slot, target_ids in by_slot.items()]
