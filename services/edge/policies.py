"""What exists and who may use it, as auth last told it, and which connections lose what when that changes. Pure.

Owned by one event loop. A change takes effect on the grants at once; what it means for connections is left in
`effects`, so that thousands of them can be dealt with in pieces.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from services.edge import roster as rights
from services.edge.policy import MAX_CACHED_TOPICS, UNLIMITED, AccessKey, Grant, Instance, ParentTopic
from services.edge.ports import Client
from services.edge.roster import Roster
from services.edge.tokens import ACCOUNT_NOT_PERMITTED, REVOKED

MAX_WITHDRAWN = 200_000
"""Ids of revoked tokens, and of device credentials, that are kept; the oldest is forgotten."""
MAX_CACHED_TOPICS_TOGETHER = 1 << 20
"""Verdicts that all grants together may keep, beyond `MIN_CACHED_TOPICS` for each."""
MIN_CACHED_TOPICS = 256


@dataclasses.dataclass(slots=True)
class Snapshot:
    """What a complete snapshot has named."""

    instances: set[str] = dataclasses.field(default_factory=set)
    topics: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    groups: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    keys: set[tuple[str, str]] = dataclasses.field(default_factory=set)


class _Tenant:
    """An instance with all that belongs to it."""

    __slots__ = ("grants", "groups", "instance", "keys", "topics")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.topics: dict[str, ParentTopic] = {}
        self.groups: dict[str, str] = {}
        self.keys: dict[str, AccessKey] = {}
        self.grants: dict[tuple[str, str], Grant] = {}
        """By account and AccessKey; the key is empty for clients without one."""


class _Withdrawn:
    """Ids that are not valid any more: an answer of auth may still be on its way when the watch says so."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def add(self, withdrawn_id: str) -> bool:
        """Note an id and return whether it is new."""
        if withdrawn_id in self._ids:
            return False
        if len(self._ids) >= MAX_WITHDRAWN:
            del self._ids[next(iter(self._ids))]
        self._ids[withdrawn_id] = None
        return True

    def __contains__(self, withdrawn_id: str) -> bool:
        return withdrawn_id in self._ids


class Policies:
    """Every instance with its topics, groups and AccessKeys."""

    def __init__(self, roster: Roster, subscribers: Callable[[str, str], Iterable[Client]]) -> None:
        """Start knowing nothing.

        Args:
            roster: whom a change concerns.
            subscribers: returns the connections with a subscription below a parent topic of an instance.
        """
        self._roster = roster
        self._subscribers = subscribers
        self._tenants: dict[str, _Tenant] = {}
        self._grant_count = 0
        self.revoked_tokens = _Withdrawn()
        self.removed_credentials = _Withdrawn()
        self.is_outdated = False
        """Whether auth has been away for so long that nobody may be let in."""
        self.effects: deque[Callable[[], None]] = deque()
        """What the changes mean for connections, to be called in order."""

    def grant(self, instance_id: str, account_id: str, access_key_id: str = "") -> Grant | None:
        """Return what an AccessKey may do, None when it or its instance is not known (yet)."""
        tenant = self._tenants.get(instance_id)
        if tenant is None:
            return None
        key = tenant.keys.get(access_key_id) if access_key_id else UNLIMITED
        # One that changed hands while auth's answer was on its way would be found by nobody any more.
        if key is None or (access_key_id and key.account_id != account_id):
            return None
        grant = tenant.grants.get((account_id, access_key_id))
        if grant is None:
            grant = Grant(tenant.instance, account_id, key, topics=tenant.topics, groups=tenant.groups)
            tenant.grants[account_id, access_key_id] = grant
            self._share_cache(grant)
        return grant

    def has_group(self, instance_id: str, group_id: str, account_id: str) -> bool:
        """Return whether a group exists and is an account's."""
        tenant = self._tenants.get(instance_id)
        return tenant is not None and tenant.groups.get(group_id) == account_id

    # --- changes -------------------------------------------------------------------------------

    def put_instance(self, instance: Instance) -> None:
        """Add or replace an instance."""
        tenant = self._tenants.get(instance.instance_id)
        if tenant is None:
            self._tenants[instance.instance_id] = _Tenant(instance)
        elif tenant.instance != instance:
            tenant.instance = instance
            for grant in tenant.grants.values():
                grant.change(instance)
                self._narrow(self._roster.holders(grant))

    def remove_instance(self, instance_id: str) -> None:
        """Forget an instance with all that belongs to it."""
        tenant = self._tenants.pop(instance_id, None)
        if tenant is not None:
            tenant.topics.clear()
            for grant in tenant.grants.values():
                self._end(tenant, grant)

    def put_topic(self, instance_id: str, topic: ParentTopic) -> None:
        """Add or replace a parent topic; one of an unknown instance is ignored."""
        tenant = self._tenants.get(instance_id)
        if tenant is None:
            return
        known = tenant.topics.get(topic.topic)
        if known != topic:
            tenant.topics[topic.topic] = topic
            self._changed(tenant)
            if known is not None and known.account_id != topic.account_id:
                self._narrow(self._subscribers(instance_id, topic.topic))

    def remove_topic(self, instance_id: str, topic: str) -> None:
        """Forget a parent topic."""
        tenant = self._tenants.get(instance_id)
        if tenant is not None and tenant.topics.pop(topic, None) is not None:
            self._changed(tenant)
            self._narrow(self._subscribers(instance_id, topic))

    def put_group(self, instance_id: str, group_id: str, account_id: str) -> None:
        """Add or replace a group; one of an unknown instance is ignored."""
        tenant = self._tenants.get(instance_id)
        if tenant is None:
            return
        known = tenant.groups.get(group_id)
        if known != account_id:
            tenant.groups[group_id] = account_id
            self._changed(tenant)
            if known is not None:
                self._withdraw(self._roster.holders(rights.group_right(instance_id, group_id)))

    def remove_group(self, instance_id: str, group_id: str) -> None:
        """Forget a group."""
        tenant = self._tenants.get(instance_id)
        if tenant is not None and tenant.groups.pop(group_id, None) is not None:
            self._changed(tenant)
            self._withdraw(self._roster.holders(rights.group_right(instance_id, group_id)))

    def put_key(self, instance_id: str, access_key_id: str, key: AccessKey) -> None:
        """Add or replace an AccessKey; one of an unknown instance is ignored."""
        tenant = self._tenants.get(instance_id)
        if tenant is None:
            return
        known = tenant.keys.get(access_key_id)
        if known is None or (known.account_id, known.create_time_ms) == (key.account_id, key.create_time_ms):
            tenant.keys[access_key_id] = key
            grant = tenant.grants.get((key.account_id, access_key_id))
            if grant is not None and known != key:
                grant.change(tenant.instance, key)
                self._narrow(self._roster.holders(grant))
        else:
            self.remove_key(instance_id, access_key_id)
            tenant.keys[access_key_id] = key

    def remove_key(self, instance_id: str, access_key_id: str) -> None:
        """Forget an AccessKey."""
        tenant = self._tenants.get(instance_id)
        key = tenant.keys.pop(access_key_id, None) if tenant is not None else None
        if tenant is not None and key is not None:
            grant = tenant.grants.pop((key.account_id, access_key_id), None)
            if grant is not None:
                self._end(tenant, grant)

    def revoke_token(self, token_id: str) -> None:
        """Note that a token was revoked."""
        if self.revoked_tokens.add(token_id):
            for client in self._roster.holders(rights.token_right(token_id)):
                self.effects.append(partial(client.on_withdrawn, REVOKED, token_id))

    def remove_credential(self, credential_id: str) -> None:
        """Note that a device credential is not valid any more."""
        self.removed_credentials.add(credential_id)
        self._withdraw(self._roster.holders(rights.device_right(credential_id)))

    def keep_only(self, snapshot: Snapshot) -> None:
        """Forget what a complete snapshot did not name."""
        for instance_id, tenant in list(self._tenants.items()):
            if instance_id not in snapshot.instances:
                self.remove_instance(instance_id)
                continue
            for topic in [name for name in tenant.topics if (instance_id, name) not in snapshot.topics]:
                self.remove_topic(instance_id, topic)
            for group_id in [name for name in tenant.groups if (instance_id, name) not in snapshot.groups]:
                self.remove_group(instance_id, group_id)
            for key_id in [name for name in tenant.keys if (instance_id, name) not in snapshot.keys]:
                self.remove_key(instance_id, key_id)

    def withdraw_all(self) -> None:
        """Close every connection: nobody can say any more what they may do."""
        self._withdraw(self._roster.everybody())

    # --- what they mean ------------------------------------------------------------------------

    def _changed(self, tenant: _Tenant) -> None:
        for grant in tenant.grants.values():
            grant.change(tenant.instance)

    def _end(self, tenant: _Tenant, grant: Grant) -> None:
        """Let a grant allow nothing any more, and close who depends on it."""
        grant.change(tenant.instance, AccessKey(account_id="", publish=False, subscribe=False))
        self._grant_count -= 1
        self._withdraw(self._roster.holders(grant))

    def _withdraw(self, clients: Iterable[Client]) -> None:
        for client in clients:
            self.effects.append(partial(client.on_withdrawn, ACCOUNT_NOT_PERMITTED))

    def _narrow(self, clients: Iterable[Client]) -> None:
        for client in clients:
            self.effects.append(client.on_permissions_changed)

    def _share_cache(self, new: Grant) -> None:
        """Give a new grant its part of the memory for verdicts, and the others less when there are many."""
        self._grant_count = count = self._grant_count + 1
        new.max_cached_topics = each = max(
            MIN_CACHED_TOPICS, min(MAX_CACHED_TOPICS, MAX_CACHED_TOPICS_TOGETHER // count)
        )
        if count & (count - 1) == 0:  # a power of two: seldom
            for tenant in self._tenants.values():
                for grant in tenant.grants.values():
                    grant.max_cached_topics = each
