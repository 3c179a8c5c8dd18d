"""What exists: instances with their limits, parent topics and groups. Pure.

Messages of clients were checked by their edges. Those of backend applications and other systems are checked here, by
the same rules.
"""

from __future__ import annotations

import dataclasses

from services.common.topics import InvalidTopicError, validate_topic_name
from services.router.domain.columns import KEPT_IF_OFFLINE, LOGGED, P2P

MAX_P2P_TOPIC_CHARACTERS = 128
"""A client id alone may take 64 of them (product.md section 1)."""

P2P_LEVEL = "p2p"
GROUP_END = "@@@"


class RefusedError(Exception):
    """A message that breaks a rule; its text is for whoever published it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The rules of an instance; see `weimq.auth.v1.InstancePolicy`."""

    instance_id: str
    is_standard: bool
    max_topic_characters: int
    max_topic_levels: int
    max_payload_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A parent topic; see `weimq.auth.v1.TopicPolicy`."""

    instance_id: str
    topic: str
    is_logged: bool
    is_ordered: bool


class Catalog:
    """Every instance, parent topic and group. Owned by one event loop."""

    __slots__ = ("groups", "instances", "topics")

    def __init__(self) -> None:
        self.instances: dict[str, Instance] = {}
        """By id."""
        self.topics: dict[tuple[str, str], Topic] = {}
        """By instance id and name."""
        self.groups: set[tuple[str, str]] = set()
        """Instance id and Group ID of each."""

    def remove_instance(self, instance_id: str) -> None:
        """Forget an instance with all it owns."""
        self.instances.pop(instance_id, None)
        for key in [key for key in self.topics if key[0] == instance_id]:
            del self.topics[key]
        self.groups -= {group for group in self.groups if group[0] == instance_id}

    def has_log(self, instance_id: str, parent_topic: str) -> bool:
        """Return whether the messages of a parent topic are logged."""
        topic = self.topics.get((instance_id, parent_topic))
        return topic is not None and topic.is_logged

    def is_ordered(self, instance_id: str, parent_topic: str) -> bool:
        """Return whether a parent topic is of message type `ordered`."""
        topic = self.topics.get((instance_id, parent_topic))
        return topic is not None and topic.is_ordered

    def check(self, instance_id: str, topic: str, payload_bytes: int) -> int:
        """Return the flags of a topic that a message may be published to: `LOGGED`, `P2P`, `KEPT_IF_OFFLINE`.

        Raises:
            RefusedError: the message breaks a rule of its instance.
        """
        instance = self.instances.get(instance_id)
        if instance is None:
            raise RefusedError("unknown instance")
        parent_name, _, rest = topic.partition("/")
        parent = self.topics.get((instance_id, parent_name))
        if parent is None and not instance.is_standard:
            raise RefusedError("unknown parent topic")
        if payload_bytes > instance.max_payload_bytes:
            raise RefusedError(f"the payload has {payload_bytes} bytes, {instance.max_payload_bytes} are allowed")
        flags = LOGGED if parent is not None and parent.is_logged else 0
        kind, _, receiver = rest.partition("/")
        if kind == P2P_LEVEL and receiver and not instance.is_standard:
            flags |= P2P
            if (instance_id, receiver.partition(GROUP_END)[0]) in self.groups:
                flags |= KEPT_IF_OFFLINE
        check_topic(instance, topic, is_p2p=flags & P2P != 0)
        return flags


def check_topic(instance: Instance, topic: str, *, is_p2p: bool = False) -> None:
    """Refuse a topic name that MQTT or the instance does not allow.

    Raises:
        RefusedError: it is not allowed.
    """
    try:
        validate_topic_name(topic)
    except InvalidTopicError as error:
        raise RefusedError(str(error)) from error
    limit = instance.max_topic_characters
    if limit and is_p2p:
        limit = max(limit, MAX_P2P_TOPIC_CHARACTERS)
    if limit and len(topic) > limit:
        raise RefusedError(f"the topic has {len(topic)} characters, {limit} are allowed")
    if instance.max_topic_levels and topic.count("/") >= instance.max_topic_levels:
        raise RefusedError(f"the topic has more than {instance.max_topic_levels} levels")
