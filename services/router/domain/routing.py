"""From topics to edges: the interests of all edges, and the routes found through them. Pure, hot path.

Edges stand here as small integers, their *slots*. An interest is the pair of a slot and the target id that the
edge gave it, in one integer. Routes are remembered by topic, since topics repeat, until an interest of the
instance changes.
"""

from __future__ import annotations

from services.common.subjects import log_subject
from services.common.topics import validate_topic_name
from services.common.trie import Trie

MAX_ROUTES = 65_536
"""Routes remembered over all instances; beyond, all are forgotten and found anew."""
MAX_REMEMBERED_TOPIC = 512
"""Longest topic whose route is remembered, in characters, so that hostile topics can't fill the memory."""

_TARGET_BITS = 32
_TARGET_MASK = (1 << _TARGET_BITS) - 1


class Leg:
    """The part of a route that goes to one edge."""

    __slots__ = ("batch", "index", "slot", "target_ids", "topic")

    def __init__(self, topic: str, slot: int) -> None:
        self.topic = topic
        self.slot = slot
        self.target_ids: list[int] = []
        # Place of the topic in the batch that the edge's outbox gathers: valid while `batch` is its number.
        self.batch = -1
        self.index = 0


class Route:
    """Where the messages of one topic go."""

    __slots__ = ("_subject", "instance_id", "legs", "second_topic", "topic")

    def __init__(self, instance_id: str, topic: str, legs: list[Leg]) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.legs = legs
        self.second_topic = topic[topic.index("/") :] if "/" in topic else ""
        """What follows the parent topic, with its `/`; empty for the bare parent topic."""
        self._subject = ""

    @property
    def subject(self) -> str:
        """Subject in the log of the parent topic."""
        if not self._subject:
            self._subject = log_subject(self.instance_id, self.topic)
        return self._subject

    def shown_as(self, topic: str) -> Route:
        """Return this route with another topic for the eyes of clients."""
        legs = []
        for leg in self.legs:
            legs.append(shown := Leg(topic, leg.slot))
            shown.target_ids = leg.target_ids
        return Route(self.instance_id, self.topic, legs)


class _Instance:
    """Interests of one instance."""

    __slots__ = ("clients", "routes", "trie")

    def __init__(self) -> None:
        self.trie = Trie()
        self.clients: dict[str, list[int]] = {}
        self.routes: dict[str, Route] = {}


class Routing:
    """Interests of all edges."""

    __slots__ = ("_instances", "_remembered")

    def __init__(self) -> None:
        self._instances: dict[str, _Instance] = {}
        self._remembered = 0

    def add_filter(self, instance_id: str, topic_filter: str, slot: int, target_id: int) -> None:
        """Add the interest of an edge in a valid topic filter."""
        instance = self._instance(instance_id)
        instance.trie.add(topic_filter, slot << _TARGET_BITS | target_id)
        self._forget(instance)

    def remove_filter(self, instance_id: str, topic_filter: str, slot: int, target_id: int) -> None:
        """Remove what `add_filter` added."""
        instance = self._instance(instance_id)
        instance.trie.remove(topic_filter, slot << _TARGET_BITS | target_id)
        self._forget(instance)
        self._drop_empty(instance_id, instance)

    def add_client(self, instance_id: str, client_id: str, slot: int, target_id: int) -> None:
        """Add the interest of an edge in P2P messages to a client."""
        instance = self._instance(instance_id)
        values = instance.clients.setdefault(client_id, [])
        value = slot << _TARGET_BITS | target_id
        if value not in values:
            values.append(value)

    def remove_client(self, instance_id: str, client_id: str, slot: int, target_id: int) -> None:
        """Remove what `add_client` added."""
        instance = self._instance(instance_id)
        values = instance.clients.get(client_id, [])
        value = slot << _TARGET_BITS | target_id
        if value in values:
            values.remove(value)
            if not values:
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
        if is_p2p:  # not remembered: found by one look-up, and clients come and go more often than filters
            levels = topic.split("/", 2)
            if len(levels) != 3 or levels[1] != "p2p":  # noqa: PLR2004 - parent, p2p, client id
                raise ValueError(f"{topic!r} is not a P2P topic")
            validate_topic_name(topic)
            clients = instance.clients.get(levels[2]) if instance is not None else None
            return Route(instance_id, topic, _legs(topic, clients or []))
        if instance is None:
            validate_topic_name(topic)
            return Route(instance_id, topic, [])
        route = instance.routes.get(topic)
        if route is None:
            validate_topic_name(topic)
            route = Route(instance_id, topic, _legs(topic, instance.trie.match(topic)))
            if len(topic) <= MAX_REMEMBERED_TOPIC:
                if self._remembered >= MAX_ROUTES:
                    for each in self._instances.values():
                        self._forget(each)
                instance.routes[topic] = route
                self._remembered += 1
        return route

    def _instance(self, instance_id: str) -> _Instance:
        instance = self._instances.get(instance_id)
        if instance is None:
            instance = self._instances[instance_id] = _Instance()
        return instance

    def _forget(self, instance: _Instance) -> None:
        self._remembered -= len(instance.routes)
        instance.routes.clear()

    def _drop_empty(self, instance_id: str, instance: _Instance) -> None:
        if instance.trie.is_empty and not instance.clients:
            self._forget(instance)
            del self._instances[instance_id]


def _legs(topic: str, values: list[int]) -> list[Leg]:
    """Gather interests by edge."""
    legs: dict[int, Leg] = {}
    for value in values:
        slot = value >> _TARGET_BITS
        leg = legs.get(slot)
        if leg is None:
            leg = legs[slot] = Leg(topic, slot)
        leg.target_ids.append(value & _TARGET_MASK)
    return list(legs.values())
