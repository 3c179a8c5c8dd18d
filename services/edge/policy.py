"""What exists and who may use it, as auth last told it; checked without a call for every packet. Pure.

`Policies` is the edge's view. A `Grant` is what one account of an instance may do, shared by all its connections,
with a cache of verdicts on topic names that is dropped on any change.
"""

from __future__ import annotations

import dataclasses

from services.common.topics import SHARE_PREFIX, split_share

FLAG_LOGGED = 1
"""The topic's messages are kept in a JetStream log."""
FLAG_P2P = 2
"""The topic names one receiver: `<parent>/p2p/<client id>`."""

MAX_CACHED_TOPICS = 65_536
"""Verdicts that a grant keeps; topic names come from clients, so the cache is dropped when it is full."""

MAX_CACHED_CHARACTERS = 256
"""Longest topic whose verdict is kept, so that hostile topics can't fill the memory."""

P2P_LEVEL = "p2p"
MAX_P2P_TOPIC_CHARACTERS = 128
"""A client id alone may take 64 of them (product.md section 1)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The rules of an instance; see `weimq.auth.v1.InstancePolicy`."""

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


class TopicRule:
    """Verdict on a topic name that may be published to. One object for a grant and topic."""

    __slots__ = ("flags", "instance_id", "router_index", "topic")

    def __init__(self, instance_id: str, topic: str, flags: int) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.flags = flags
        """`FLAG_LOGGED` and `FLAG_P2P`."""
        self.router_index = -1
        """Of the router that the topic belongs to, once a group of routers has looked."""


class Grant:
    """What one account may do in an instance. Owned by `Policies`."""

    __slots__ = ("_account_id", "_rules", "_topics", "instance")

    def __init__(self, instance: Instance, account_id: str, topics: dict[str, ParentTopic]) -> None:
        self.instance = instance
        self._account_id = account_id
        self._topics = topics
        self._rules: dict[str, TopicRule | None] = {}

    def publish_rule(self, topic: str) -> TopicRule | None:
        """Return the verdict on publishing to `topic`, None when it is refused."""
        try:
            return self._rules[topic]
        except KeyError:
            rule = self._judge(topic)
            if len(topic) <= MAX_CACHED_CHARACTERS:
                if len(self._rules) >= MAX_CACHED_TOPICS:
                    self._rules.clear()
                self._rules[topic] = rule
            return rule

    def may_subscribe(self, topic_filter: str) -> bool:
        """Return whether a client may subscribe to `topic_filter`."""
        share_name, topic_filter = split_share(topic_filter)
        if not share_name and topic_filter.startswith(SHARE_PREFIX):
            return False  # misspelt: it would never match anything
        if self.instance.is_standard:
            return True
        limit = self.instance.max_topic_characters
        return self._owns(topic_filter.partition("/")[0]) and (not limit or len(topic_filter) <= limit)

    def may_receive(self, topic: str) -> bool:
        """Return whether a client may have a message that was published to `topic`, now."""
        return self.instance.is_standard or self._owns(topic.partition("/")[0])

    def replace(self, instance: Instance) -> None:
        """Take over changed rules or topics: every verdict is judged anew."""
        self.instance = instance
        self._rules.clear()

    def _judge(self, topic: str) -> TopicRule | None:
        parent_name, _, rest = topic.partition("/")
        parent = self._topics.get(parent_name)
        flags = FLAG_LOGGED if parent is not None and parent.logged else 0
        if self.instance.is_standard:
            return TopicRule(self.instance.instance_id, topic, flags)
        limit = self.instance.max_topic_characters
        kind, _, receiver = rest.partition("/")
        if kind == P2P_LEVEL and receiver:
            flags |= FLAG_P2P
            limit = max(limit, MAX_P2P_TOPIC_CHARACTERS) if limit else 0
        if not self._owns(parent_name) or (limit and len(topic) > limit):
            return None
        return TopicRule(self.instance.instance_id, topic, flags)

    def _owns(self, parent_name: str) -> bool:
        if parent_name.startswith("$"):
            return False  # topics of the server
        parent = self._topics.get(parent_name)
        return parent is not None and parent.account_id == self._account_id


class Policies:
    """Every instance and parent topic. Owned by one event loop."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._topics: dict[str, dict[str, ParentTopic]] = {}
        self._grants: dict[tuple[str, str], Grant] = {}

    def grant(self, instance_id: str, account_id: str) -> Grant | None:
        """Return what an account may do, None when the instance is not known (yet)."""
        instance = self._instances.get(instance_id)
        if instance is None:
            return None
        grant = self._grants.get((instance_id, account_id))
        if grant is None:
            topics = self._topics.setdefault(instance_id, {})
            grant = self._grants[instance_id, account_id] = Grant(instance, account_id, topics)
        return grant

    def put_instance(self, instance: Instance) -> None:
        """Add or replace an instance."""
        self._instances[instance.instance_id] = instance
        self._changed(instance.instance_id)

    def put_topic(self, instance_id: str, topic: ParentTopic) -> None:
        """Add or replace a parent topic."""
        self._topics.setdefault(instance_id, {})[topic.topic] = topic
        self._changed(instance_id)

    def remove_topic(self, instance_id: str, topic: str) -> None:
        """Forget a parent topic."""
        self._topics.get(instance_id, {}).pop(topic, None)
        self._changed(instance_id)

    def remove_instance(self, instance_id: str) -> None:
        """Forget an instance with its topics."""
        self._instances.pop(instance_id, None)
        self._topics.get(instance_id, {}).clear()
        self._changed(instance_id)

    def keep_only(self, instance_ids: set[str], topics: set[tuple[str, str]]) -> None:
        """Forget what a complete snapshot did not name."""
        for instance_id in [known for known in self._instances if known not in instance_ids]:
            self.remove_instance(instance_id)
        for instance_id, known_topics in self._topics.items():
            for topic in [name for name in known_topics if (instance_id, name) not in topics]:
                self.remove_topic(instance_id, topic)

    def _changed(self, instance_id: str) -> None:
        for (owner, _), grant in self._grants.items():
            if owner == instance_id:
                grant.replace(self._instances.get(instance_id, grant.instance))
