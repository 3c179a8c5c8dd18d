"""The in-memory view of all resources, and the changes that edges are told.

An edge sees an instance unless its deletion has begun, and a parent topic unless its deletion has begun or its
instance is not seen. Records may arrive in any order, such as a topic before its instance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from services.auth.domain.records import AccessKey, Group, Instance, Record, Topic

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class ChangeSet:
    """What changed for the edges; None: it is gone."""

    instances: dict[str, Instance | None] = dataclasses.field(default_factory=dict)
    """By instance id; the topics of one that is gone are gone with it."""
    topics: dict[tuple[str, str], Topic | None] = dataclasses.field(default_factory=dict)
    """By instance id and topic."""

    def __bool__(self) -> bool:
        return bool(self.instances or self.topics)


class Resources:
    """Everything stored, indexed for look-ups. Owned by one event loop; only its store changes it."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._instances: dict[str, Instance] = {}
        self._access_keys: dict[str, dict[str, AccessKey]] = {}
        self._groups: dict[str, dict[str, Group]] = {}
        self._topics: dict[str, dict[str, Topic]] = {}

    def instance(self, instance_id: str) -> Instance | None:
        """Return an instance that exists and is not being deleted."""
        instance = self._instances.get(instance_id)
        return None if instance is None or instance.deleting else instance

    def access_key(self, instance_id: str, access_key_id: str) -> AccessKey | None:
        """Return an AccessKey."""
        return self._access_keys.get(instance_id, {}).get(access_key_id)

    def group(self, instance_id: str, group_id: str) -> Group | None:
        """Return a group."""
        return self._groups.get(instance_id, {}).get(group_id)

    def topic(self, instance_id: str, topic: str) -> Topic | None:
        """Return a parent topic that exists and is not being deleted."""
        record = self._topics.get(instance_id, {}).get(topic)
        return None if record is None or record.deleting else record

    def instances(self) -> list[Instance]:
        """Return the instances that are not being deleted, by id."""
        return sorted((i for i in self._instances.values() if not i.deleting), key=lambda i: i.instance_id)

    def access_keys(self, instance_id: str) -> list[AccessKey]:
        """Return the AccessKeys of an instance, by id."""
        return sorted(self._access_keys.get(instance_id, {}).values(), key=lambda k: k.access_key_id)

    def groups(self, instance_id: str) -> list[Group]:
        """Return the groups of an instance, by id."""
        return sorted(self._groups.get(instance_id, {}).values(), key=lambda g: g.group_id)

    def topics(self, instance_id: str) -> list[Topic]:
        """Return the parent topics of an instance that are not being deleted, by name."""
        topics = self._topics.get(instance_id, {}).values()
        return sorted((t for t in topics if not t.deleting), key=lambda t: t.topic)

    def owned_by(self, instance_id: str) -> list[AccessKey | Group | Topic]:
        """Return what an instance owns, including topics that are being deleted."""
        return [
            *self._topics.get(instance_id, {}).values(),
            *self._groups.get(instance_id, {}).values(),
            *self._access_keys.get(instance_id, {}).values(),
        ]

    def record(self, key: str) -> Record | None:
        """Return what is stored under a key, including what is being deleted."""
        return self._records.get(key)

    def records(self) -> list[Record]:
        """Return everything, including what is being deleted."""
        return list(self._records.values())

    def snapshot(self) -> ChangeSet:
        """Return all that edges see, as additions."""
        changes = ChangeSet()
        for instance in self.instances():
            changes.instances[instance.instance_id] = instance
            for topic in self.topics(instance.instance_id):
                changes.topics[topic.instance_id, topic.topic] = topic
        return changes

    def apply(self, key: str, record: Record | None) -> ChangeSet:
        """Put (or delete, with None) the record of a key and return what changed for the edges."""
        previous = self._records.get(key)
        self._set(key, record)
        changes = ChangeSet()
        # Only these two kinds are marked while they are deleted, and only they are seen by edges.
        was_seen = isinstance(previous, Instance | Topic) and not previous.deleting
        match record or previous:
            case Instance(instance_id=instance_id) if previous != record:
                instance = self.instance(instance_id)
                if instance is not None or was_seen:
                    changes.instances[instance_id] = instance
                if instance is not None and not was_seen:
                    changes.topics.update({(instance_id, t.topic): t for t in self.topics(instance_id)})
            case Topic(instance_id=instance_id, topic=name) if previous != record and self.instance(instance_id):
                topic = self.topic(instance_id, name)
                if topic is not None or was_seen:
                    changes.topics[instance_id, name] = topic
        return changes

    def replace(self, records: Mapping[str, Record]) -> ChangeSet:
        """Make `records` the whole content and return what changed for the edges."""
        before = self.snapshot()
        for key in [key for key in self._records if key not in records]:
            self._set(key, None)
        for key, record in records.items():
            self._set(key, record)
        after = self.snapshot()
        changes = ChangeSet()
        for instance_id in before.instances.keys() | after.instances.keys():
            instance = after.instances.get(instance_id)
            if instance != before.instances.get(instance_id):
                changes.instances[instance_id] = instance
        for name in before.topics.keys() | after.topics.keys():
            topic = after.topics.get(name)
            # The topics of an instance that is gone are gone with it, unnamed.
            if topic != before.topics.get(name) and name[0] in after.instances:
                changes.topics[name] = topic
        return changes

    def _set(self, key: str, record: Record | None) -> None:
        previous = self._records.pop(key, None)
        if previous is not None:
            self._unindex(previous)
        if record is not None:
            self._records[key] = record
            self._index(record)

    def _index(self, record: Record) -> None:
        match record:
            case Instance():
                self._instances[record.instance_id] = record
            case AccessKey():
                self._access_keys.setdefault(record.instance_id, {})[record.access_key_id] = record
            case Group():
                self._groups.setdefault(record.instance_id, {})[record.group_id] = record
            case Topic():
                self._topics.setdefault(record.instance_id, {})[record.topic] = record

    def _unindex(self, record: Record) -> None:
        match record:
            case Instance():
                del self._instances[record.instance_id]
            case AccessKey():
                _remove(self._access_keys, record.instance_id, record.access_key_id)
            case Group():
                _remove(self._groups, record.instance_id, record.group_id)
            case Topic():
                _remove(self._topics, record.instance_id, record.topic)


def _remove(index: dict[str, dict[str, T]], instance_id: str, name: str) -> None:
    names = index[instance_id]
    del names[name]
    if not names:
        del index[instance_id]
