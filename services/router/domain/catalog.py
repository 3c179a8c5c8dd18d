"""What exists: instances with their limits, parent topics, groups and AccessKeys. Pure.

Messages of clients were checked by their edges. Those of backend applications and other systems are checked here, by
the same rules; so are the wills of clients whose edge is lost, which are also judged by what their client may do now.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from services.common.topics import InvalidTopicError, covers, validate_topic_name
from services.router.domain.columns import KEPT_IF_OFFLINE, LOGGED, P2P

MAX_P2P_TOPIC_CHARACTERS = 128
"""A client id alone may take 64 of them (product.md section 1)."""

MAX_REVOKED = 200_000
"""Ids of revoked tokens that are kept; the oldest is forgotten."""

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
    account_id: str
    is_logged: bool
    is_ordered: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """What clients with an AccessKey may publish; see `weimq.auth.v1.AccessKeyPolicy`."""

    account_id: str
    may_publish: bool
    topic_filters: tuple[str, ...]
    """Empty: no limit."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """A client by whose rights a message is judged; see `weimq.router.v1.PublisherIdentity`."""

    client_id: str
    account_id: str
    access_key_id: str
    token_ids: tuple[str, ...]


class Catalog:
    """Every instance, parent topic, group and AccessKey. Owned by one event loop."""

    __slots__ = ("_revoked", "groups", "instances", "keys", "topics")

    def __init__(self) -> None:
        self.instances: dict[str, Instance] = {}
        """By id."""
        self.topics: dict[tuple[str, str], Topic] = {}
        """By instance id and name."""
        self.groups: dict[tuple[str, str], str] = {}
        """Account of each, by instance id and Group ID."""
        self.keys: dict[tuple[str, str], AccessKey] = {}
        """By instance id and AccessKey id."""
        self._revoked: dict[str, None] = {}

    def remove_instance(self, instance_id: str) -> None:
        """Forget an instance with all it owns."""
        self.instances.pop(instance_id, None)
        owned: tuple[dict[tuple[str, str], Any], ...] = (self.topics, self.groups, self.keys)
        for things in owned:
            for key in [key for key in things if key[0] == instance_id]:
                del things[key]

    def revoke_token(self, token_id: str) -> None:
        """Note that a token is not valid any more."""
        self._revoked.pop(token_id, None)
        if len(self._revoked) >= MAX_REVOKED:
            del self._revoked[next(iter(self._revoked))]
        self._revoked[token_id] = None

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

    def judge(self, publisher: Publisher, instance_id: str, topic: str) -> None:
        """Refuse a message, which `check` accepted, of a client that may not publish it now.

        Raises:
            RefusedError: the group, the AccessKey, the tokens or the owner of the parent topic do not allow it.
        """
        if publisher.access_key_id:
            key = self.keys.get((instance_id, publisher.access_key_id))
            if key is None or key.account_id != publisher.account_id or not key.may_publish:
                raise RefusedError("the AccessKey may not publish")
            if key.topic_filters and not any(covers(each, topic) for each in key.topic_filters):
                raise RefusedError("the AccessKey does not cover the topic")
        if publisher.token_ids and all(each in self._revoked for each in publisher.token_ids):
            raise RefusedError("the token is revoked")
        if self.instances[instance_id].is_standard:
            return
        group_id = publisher.client_id.partition(GROUP_END)[0]
        if self.groups.get((instance_id, group_id)) != publisher.account_id:
            raise RefusedError("the group is gone")
        if self.topics[instance_id, topic.partition("/")[0]].account_id != publisher.account_id:
            raise RefusedError("the parent topic is another account's")


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
