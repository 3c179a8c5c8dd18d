"""Topic filters of the sessions of a shard, each a target at the routers however many sessions have it. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

from services.common.trie import Trie

QOS_BITS = 2
_QOS_MASK = 3

S = TypeVar("S")


def pack_subscription(qos: int, since_ms: int) -> int:
    """Return QoS and time of a subscription in one integer."""
    return since_ms << QOS_BITS | qos


def qos_of(subscription: int) -> int:
    """Return the QoS of a packed subscription."""
    return subscription & _QOS_MASK


def since_ms_of(subscription: int) -> int:
    """Return since when a packed subscription exists, milliseconds since 1970."""
    return subscription >> QOS_BITS


class Interest(Generic[S]):
    """A topic filter, and the sessions that have it."""

    __slots__ = ("instance_id", "subscribers", "target_id", "topic_filter")

    def __init__(self, instance_id: str, topic_filter: str, target_id: int) -> None:
        self.instance_id = instance_id
        self.topic_filter = topic_filter
        self.target_id = target_id
        self.subscribers: dict[S, int] = {}  # session -> packed subscription


class Interests(Generic[S]):
    """All topic filters with kept subscriptions. Target ids rise and are not used again."""

    def __init__(self) -> None:
        self._tries: dict[str, Trie] = {}
        self._by_filter: dict[tuple[str, str], Interest[S]] = {}
        self._last_id = 0
        self.by_target: dict[int, Interest[S]] = {}
        """Interests by target id."""
        self.added: list[Interest[S]] = []
        """Interests that routers have yet to be told of."""
        self.removed: list[int] = []
        """Target ids that routers have yet to forget."""

    def add(self, instance_id: str, topic_filter: str, session: S, subscription: int) -> None:
        """Add the subscription of a session, or replace it."""
        key = (instance_id, topic_filter)
        interest = self._by_filter.get(key)
        if interest is None:
            self._last_id += 1
            interest = self._by_filter[key] = Interest(instance_id, topic_filter, self._last_id)
            self.by_target[self._last_id] = interest
            trie = self._tries.get(instance_id)
            if trie is None:
                trie = self._tries[instance_id] = Trie()
            trie.add(topic_filter, self._last_id)
            self.added.append(interest)
        interest.subscribers[session] = subscription

    def remove(self, instance_id: str, topic_filter: str, session: S) -> None:
        """Remove the subscription of a session; nothing happens when there is none."""
        key = (instance_id, topic_filter)
        interest = self._by_filter.get(key)
        if interest is None or interest.subscribers.pop(session, None) is None or interest.subscribers:
            return
        del self._by_filter[key]
        del self.by_target[interest.target_id]
        trie = self._tries[instance_id]
        trie.remove(topic_filter, interest.target_id)
        if trie.is_empty:
            del self._tries[instance_id]
        self.removed.append(interest.target_id)

    def match(self, instance_id: str, topic: str) -> list[int]:
        """Return the target ids whose filter selects a topic."""
        trie = self._tries.get(instance_id)
        return trie.match(topic) if trie is not None else []

    def take_changes(self) -> tuple[list[Interest[S]], list[int]]:
        """Return what the routers have yet to be told, once."""
        changes = self.added, self.removed
        self.added, self.removed = [], []
        return changes
