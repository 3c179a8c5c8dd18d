"""What one set of credentials may do, checked without a call for every packet. Pure.

A `Grant` is what an AccessKey, or an account, may do in an instance: shared by all its connections, with a cache of
verdicts on topic names that is dropped on any change. `policies.Policies` owns the grants; `tokens.TokenGrant` narrows
one for a connection.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from typing_extensions import override

from services.common.topics import SHARE_PREFIX, covers, split_share

FLAG_LOGGED = 1
"""The topic's messages are kept in a JetStream log."""
FLAG_P2P = 2
"""The topic names one receiver: `<parent>/p2p/<client id>`."""
FLAG_RECEIVER_GROUP = 4
"""The group of that receiver exists, so that the message can be kept for it."""

MAX_CACHED_TOPICS = 65_536
"""Verdicts that a grant keeps."""

MAX_CACHED_CHARACTERS = 256
"""Longest topic whose verdict is kept, so that hostile topics can't fill the memory."""

P2P_LEVEL = "p2p"
MAX_P2P_TOPIC_CHARACTERS = 128
"""A client id alone may take 64 of them (product.md section 1)."""
GROUP_SEPARATOR = "@@@"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The rules of an instance; the fields are those of `weimq.auth.v1.InstancePolicy`."""

    instance_id: str
    is_standard: bool
    """Plain MQTT; otherwise the rules of the product."""
    max_topic_characters: int
    max_payload_bytes: int
    max_subscriptions: int
    takeover: bool
    refuse_filters: bool
    strict_order: bool = False
    offline_batch_messages: int = 0
    offline_batch_interval_ms: int = 0
    acknowledgement_timeout_ms: int = 0
    offline_retention_ms: int = 0
    max_offline_messages: int = 0
    session_expiry_ms: int = 0
    max_topic_levels: int = 0
    max_publish_rate: int = 0
    max_publish_bytes_rate: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParentTopic:
    """A parent topic; see `weimq.auth.v1.TopicPolicy`."""

    topic: str
    account_id: str
    logged: bool
    ordered: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """What an AccessKey is limited to; see `weimq.auth.v1.AccessKeyPolicy`."""

    account_id: str
    publish: bool = True
    subscribe: bool = True
    topic_filters: tuple[str, ...] = ()
    """Empty: no limit."""
    create_time_ms: int = 0
    """A key that is made again under the same id is another."""


UNLIMITED = AccessKey(account_id="")
"""For clients without an AccessKey."""


def is_p2p_to(topic: str, client_id: str) -> bool:
    """Return whether a topic name is `<parent>/p2p/<client_id>`."""
    return topic.partition("/")[2] == f"{P2P_LEVEL}/{client_id}"


class Coverage:
    """A set of topic filters, and whether one of them covers a topic name or filter."""

    __slots__ = ("_by_parent", "_wild")

    def __init__(self, topic_filters: tuple[str, ...]) -> None:
        self._by_parent: dict[str, list[str]] = {}
        self._wild: list[str] = []
        for topic_filter in topic_filters:
            parent = topic_filter.partition("/")[0]
            if parent in ("+", "#"):
                self._wild.append(topic_filter)
            else:
                self._by_parent.setdefault(parent, []).append(topic_filter)

    def covers(self, topic_filter: str) -> bool:
        """Return whether every topic that `topic_filter` selects is in the set."""
        known = self._by_parent.get(topic_filter.partition("/")[0], ())
        return any(covers(outer, topic_filter) for outer in known) or any(
            covers(outer, topic_filter) for outer in self._wild
        )


class TopicRule:
    """Verdict on a topic name that may be published to. One object for a grant and topic."""

    __slots__ = ("flags", "instance_id", "is_ordered", "last_qos0", "route", "router_index", "topic")

    def __init__(self, instance_id: str, topic: str, flags: int, *, is_ordered: bool = False) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.flags = flags
        """`FLAG_LOGGED`, `FLAG_P2P` and `FLAG_RECEIVER_GROUP`."""
        self.is_ordered = is_ordered
        """Whether its log keeps the order of all topics below its parent topic, whatever the QoS of messages."""
        self.last_qos0 = 0
        """Batch of QoS 0 that messages of QoS 1 and 2 must not overtake; see `lanes`."""
        self.router_index = -1
        """Of the router that the topic belongs to, once a group of routers has looked."""
        self.route: Any = None
        """What `routes` knows of the topic; pure code has no name for it."""

    @property
    def log(self) -> str:
        """Parent topic whose log has the messages, as `LogState` names it."""
        return self.topic.partition("/")[0] if self.flags & FLAG_LOGGED else ""


class Permissions:
    """What a connection asks for every packet."""

    __slots__ = ("_rules", "instance", "max_cached_topics")

    def __init__(self, instance: Instance, max_cached_topics: int) -> None:
        self.instance = instance
        self.max_cached_topics = max_cached_topics
        """Verdicts that are kept; topic names come from clients, so the cache is dropped when it is full."""
        self._rules: dict[str, TopicRule | None] = {}

    def publish_rule(self, topic: str) -> TopicRule | None:
        """Return the verdict on publishing to `topic`, None when it is refused."""
        try:
            return self._rules[topic]
        except KeyError:
            rule = self._judge(topic)
            if len(topic) <= MAX_CACHED_CHARACTERS:
                if len(self._rules) >= self.max_cached_topics:
                    self._rules.clear()
                self._rules[topic] = rule
            return rule

    def may_subscribe(self, topic_filter: str) -> bool:
        """Return whether a client may subscribe to `topic_filter`; a shared one is judged by the filter in it."""
        raise NotImplementedError

    def may_receive(self, topic: str, client_id: str) -> bool:
        """Return whether a client may have a message that was published to `topic`, now.

        A P2P message to the client needs no permission to subscribe, but its parent topic must still be there.
        """
        raise NotImplementedError

    def refresh(self) -> None:
        """Take over changes of what these permissions are made of."""

    def _judge(self, topic: str) -> TopicRule | None:
        raise NotImplementedError


class Grant(Permissions):
    """What the clients of one AccessKey, or of one account without a key, may do. Owned by `Policies`."""

    __slots__ = ("_coverage", "_groups", "_key", "_overlays", "_topics", "account_id")

    def __init__(
        self,
        instance: Instance,
        account_id: str,
        key: AccessKey,
        *,
        topics: dict[str, ParentTopic],
        groups: dict[str, str],
    ) -> None:
        """Share the views on topics and groups (Group ID -> account), which change in place."""
        super().__init__(instance, MAX_CACHED_TOPICS)
        self.account_id = account_id
        self._topics = topics
        self._groups = groups
        self._overlays: set[Permissions] = set()
        self._limit(key)

    @override
    def may_subscribe(self, topic_filter: str) -> bool:
        share_name, topic_filter = split_share(topic_filter)
        if not share_name and topic_filter.startswith(SHARE_PREFIX):
            return False  # misspelt: it would never match anything
        if self._is_too_deep(topic_filter) or not self._key.subscribe or not self._is_covered(topic_filter):
            return False
        if self.instance.is_standard:
            return True
        limit = self.instance.max_topic_characters
        return self._owns(topic_filter.partition("/")[0]) and (not limit or len(topic_filter) <= limit)

    @override
    def may_receive(self, topic: str, client_id: str) -> bool:
        if not self.instance.is_standard:
            if not self._owns(topic.partition("/")[0]):
                return False
            if is_p2p_to(topic, client_id):
                return True
        return self._key.subscribe and self._is_covered(topic)

    def share_changes(self, overlay: Permissions) -> None:
        """Have the verdicts of `overlay` dropped with the next change here."""
        self._overlays.add(overlay)

    def forget_overlay(self, overlay: Permissions) -> None:
        """Undo `share_changes`."""
        self._overlays.discard(overlay)

    def change(self, instance: Instance, key: AccessKey | None = None) -> None:
        """Take over changed rules, topics or groups: every verdict is judged anew."""
        self.instance = instance
        if key is not None:
            self._limit(key)
        self._rules.clear()
        overlays, self._overlays = self._overlays, set()
        for overlay in overlays:
            overlay._rules.clear()  # noqa: SLF001 - of the same class

    @override
    def _judge(self, topic: str) -> TopicRule | None:
        if not self._key.publish or not self._is_covered(topic):
            return None
        if self._is_too_deep(topic):
            return None
        parent_name, _, rest = topic.partition("/")
        parent = self._topics.get(parent_name)
        flags = FLAG_LOGGED if parent is not None and parent.logged else 0
        is_ordered = parent is not None and parent.ordered
        if self.instance.is_standard:
            return TopicRule(self.instance.instance_id, topic, flags, is_ordered=is_ordered)
        limit = self.instance.max_topic_characters
        kind, _, receiver = rest.partition("/")
        if kind == P2P_LEVEL and receiver:
            flags |= FLAG_P2P
            if receiver.partition(GROUP_SEPARATOR)[0] in self._groups:
                flags |= FLAG_RECEIVER_GROUP
            limit = max(limit, MAX_P2P_TOPIC_CHARACTERS) if limit else 0
        if not self._owns(parent_name) or (limit and len(topic) > limit):
            return None
        return TopicRule(self.instance.instance_id, topic, flags, is_ordered=is_ordered)

    def _is_too_deep(self, topic: str) -> bool:
        levels = self.instance.max_topic_levels
        return levels > 0 and topic.count("/") >= levels

    def _limit(self, key: AccessKey) -> None:
        self._key = key
        self._coverage = Coverage(key.topic_filters) if key.topic_filters else None

    def _is_covered(self, topic_filter: str) -> bool:
        return self._coverage is None or self._coverage.covers(topic_filter)

    def _owns(self, parent_name: str) -> bool:
        if parent_name.startswith("$"):
            return False  # topics of the server
        parent = self._topics.get(parent_name)
        return parent is not None and parent.account_id == self.account_id
