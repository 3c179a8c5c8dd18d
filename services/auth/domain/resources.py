"""The in-memory view of all resources, and the changes that edges are told.

An edge sees an instance unless its deletion has begun, and what belongs to an instance that it sees; a parent topic
only until its deletion has begun. Records may arrive in any order, such as a topic before its instance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TypeVar

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.auth.domain.records import AccessKey, Group, Instance, Record, TokenKey, Topic

T = TypeVar("T")
K = TypeVar("K")
Owned = AccessKey | Group | Topic
Name = tuple[str, str]
"""Instance id, and the name in it."""

MAX_ITEMS = 10_000
"""A change set with more absorbs no other."""


@dataclasses.dataclass(slots=True)
class ChangeSet:
    """What changed for the edges; None: it is gone."""

    instances: dict[str, Instance | None] = dataclasses.field(default_factory=dict)
    """By instance id; what belongs to one that is gone is gone with it."""
    topics: dict[Name, Topic | None] = dataclasses.field(default_factory=dict)
    groups: dict[Name, Group | None] = dataclasses.field(default_factory=dict)
    access_keys: dict[Name, AccessKey | None] = dataclasses.field(default_factory=dict)
    revoked_token_ids: list[str] = dataclasses.field(default_factory=list)
    removed_device_ids: list[str] = dataclasses.field(default_factory=list)
    """Device credentials that are no longer valid."""

    def __len__(self) -> int:
        return sum(len(getattr(self, field.name)) for field in dataclasses.fields(self))

    def __bool__(self) -> bool:
        """Say whether anything changed."""
        return len(self) > 0

    def copy(self) -> ChangeSet:
        """Return a change set that may absorb others without changing this one."""
        return ChangeSet(**{field.name: getattr(self, field.name).copy() for field in dataclasses.fields(self)})

    def put(self, record: Owned) -> None:
        """Note that something was added or replaced."""
        match record:
            case Topic():
                self.topics[record.instance_id, record.topic] = record
            case Group():
                self.groups[record.instance_id, record.group_id] = record
            case AccessKey():
                self.access_keys[record.instance_id, record.access_key_id] = record

    def remove(self, record: Owned) -> None:
        """Note that something is gone."""
        match record:
            case Topic():
                self.topics[record.instance_id, record.topic] = None
            case Group():
                self.groups[record.instance_id, record.group_id] = None
            case AccessKey():
                self.access_keys[record.instance_id, record.access_key_id] = None

    def absorb(self, later: ChangeSet) -> bool:
        """Take over a later change set when that hides nothing; returns whether it did.

        A removal and what follows it under the same name stay apart: edges close clients at the removal.
        """
        if (
            later.instances
            or len(self) > MAX_ITEMS
            or any(mine.keys() & theirs.keys() for mine, theirs in self._pairs(later))
        ):
            return False
        for mine, theirs in self._pairs(later):
            mine.update(theirs)
        self.revoked_token_ids.extend(later.revoked_token_ids)
        self.removed_device_ids.extend(later.removed_device_ids)
        return True

    def _pairs(self, other: ChangeSet) -> Iterator[tuple[dict[Name, object], dict[Name, object]]]:
        for name in ("topics", "groups", "access_keys"):
            yield getattr(self, name), getattr(other, name)


class Resources:
    """Everything stored, indexed for look-ups. Owned by one event loop; only its store changes it."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._instances: dict[str, Instance] = {}
        self._access_keys: dict[str, dict[str, AccessKey]] = {}
        self._groups: dict[str, dict[str, Group]] = {}
        self._topics: dict[str, dict[str, Topic]] = {}
        self._token_keys: dict[str, TokenKey] = {}

    def instance(self, instance_id: str) -> Instance | None:
        """Return an instance that exists and is not being deleted."""
        instance = self._instances.get(instance_id)
        return None if instance is None or instance.deleting else instance

    def access_key(self, instance_id: str, access_key_id: str) -> AccessKey | None:
        """Return an AccessKey."""
        return self._access_keys.get(instance_id, {}).get(access_key_id)

    def signers(self, access_key_id: str) -> list[AccessKey]:
        """Return the AccessKeys of an id, in whatever instance."""
        return [keys[access_key_id] for keys in self._access_keys.values() if access_key_id in keys]

    def group(self, instance_id: str, group_id: str) -> Group | None:
        """Return a group."""
        return self._groups.get(instance_id, {}).get(group_id)

    def topic(self, instance_id: str, topic: str) -> Topic | None:
        """Return a parent topic that exists and is not being deleted."""
        record = self._topics.get(instance_id, {}).get(topic)
        return None if record is None or record.deleting else record

    def token_keys(self) -> list[TokenKey]:
        """Return the keys that seal tokens."""
        return list(self._token_keys.values())

    def token_cipher(self, key_id: str) -> AESGCM | None:
        """Return what opens the tokens of a token key."""
        key = self._token_keys.get(key_id)
        return None if key is None else key.cipher

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

    def owned_by(self, instance_id: str) -> list[Owned]:
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
            self._put_whole(instance, changes)
        return changes

    def apply(self, key: str, record: Record | None) -> ChangeSet:
        """Put (or delete, with None) the record of a key and return what changed for the edges."""
        previous = self._records.get(key)
        self._set(key, record)
        changes = ChangeSet()
        if previous == record:
            return changes
        was_seen = _is_seen(previous)
        subject = record or previous
        if isinstance(subject, Instance):
            instance = self.instance(subject.instance_id)
            if instance is not None and not was_seen:
                self._put_whole(instance, changes)
            elif instance is not None or was_seen:
                changes.instances[subject.instance_id] = instance
        elif isinstance(subject, AccessKey | Group | Topic) and self.instance(subject.instance_id):
            if _is_seen(record):
                changes.put(subject)
            elif was_seen:
                changes.remove(subject)
        return changes

    def replace(self, records: Mapping[str, Record]) -> ChangeSet:
        """Make `records` the whole content and return what changed for the edges."""
        before = self.snapshot()
        for key in [key for key in self._records if key not in records]:
            self._set(key, None)
        for key, record in records.items():
            self._set(key, record)
        after = self.snapshot()
        return ChangeSet(
            instances=_difference(before.instances, after.instances),
            # What belongs to an instance that is gone is gone with it, unnamed.
            topics=_of(after.instances, _difference(before.topics, after.topics)),
            groups=_of(after.instances, _difference(before.groups, after.groups)),
            access_keys=_of(after.instances, _difference(before.access_keys, after.access_keys)),
        )

    def _put_whole(self, instance: Instance, changes: ChangeSet) -> None:
        """Note an instance with everything that edges see of it."""
        instance_id = instance.instance_id
        changes.instances[instance_id] = instance
        owned: list[Owned] = [
            *self.topics(instance_id),
            *self.groups(instance_id),
            *self.access_keys(instance_id),
        ]
        for record in owned:
            changes.put(record)

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
            case TokenKey():
                self._token_keys[record.key_id] = record

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
            case TokenKey():
                del self._token_keys[record.key_id]


def _is_seen(record: Record | None) -> bool:
    """Say whether edges see a record whose instance they see."""
    # Only instances and topics are marked while they are deleted.
    return record is not None and not (isinstance(record, Instance | Topic) and record.deleting)


def _difference(before: dict[K, T | None], after: dict[K, T | None]) -> dict[K, T | None]:
    return {name: after.get(name) for name in {**before, **after} if after.get(name) != before.get(name)}


def _of(instances: Mapping[str, object], named: dict[Name, T]) -> dict[Name, T]:
    return {name: record for name, record in named.items() if name[0] in instances}


def _remove(index: dict[str, dict[str, T]], instance_id: str, name: str) -> None:
    names = index[instance_id]
    del names[name]
    if not names:
        del index[instance_id]
