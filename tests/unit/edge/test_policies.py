"""The edge's view of auth, and what its changes mean for connections."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import pytest
from typing_extensions import override

from services.edge import policies as policies_module
from services.edge import roster as rights
from services.edge.policies import Policies, Snapshot
from services.edge.policy import FLAG_RECEIVER_GROUP, AccessKey, Grant, Instance, ParentTopic
from services.edge.ports import Client
from services.edge.roster import Roster
from services.edge.tokens import ACCOUNT_NOT_PERMITTED, REVOKED
from tests.unit.edge.test_policy import LMQ, STANDARD

I = LMQ.instance_id  # noqa: E741 - as short as it is used often
KEY = AccessKey(account_id="default")
DEMO = ParentTopic(topic="demo", account_id="default", logged=True)


class FakeClient(Client):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str] | str] = []

    @override
    def on_withdrawn(self, code: int, token_id: str = "") -> None:
        self.told.append((code, token_id))

    @override
    def on_permissions_changed(self) -> None:
        self.told.append("changed")


class World:
    """Policies with a key, a topic and a group, and clients that depend on them."""

    def __init__(self) -> None:
        self.roster = Roster()
        self.subscribers: dict[tuple[str, str], list[Client]] = {}
        self.policies = Policies(self.roster, lambda instance, parent: self.subscribers.get((instance, parent), []))
        self.policies.put_instance(LMQ)
        self.policies.put_topic(I, DEMO)
        self.policies.put_group(I, "GID_demo", "default")
        self.policies.put_key(I, "K", KEY)
        self.account = self.grant("")
        self.keyed = self.grant("K")
        self.by_account = self.client(self.account)
        self.by_key = self.client(self.keyed)
        self.by_group = self.client(rights.group_right(I, "GID_demo@@@1"))
        self.by_token = self.client(rights.token_right("t"))
        self.by_device = self.client(rights.device_right("d"))

    def grant(self, key_id: str, account_id: str = "default") -> Grant:
        grant = self.policies.grant(I, account_id, key_id)
        assert grant is not None
        return grant

    def client(self, *held: Hashable) -> FakeClient:
        client = FakeClient()
        self.roster.add(client, *held)
        return client

    def told(self) -> dict[str, list[tuple[int, str] | str]]:
        """Carry out the effects and return who was told what."""
        effects = self.policies.effects
        while effects:
            effects.popleft()()
        clients = {name: value for name, value in vars(self).items() if isinstance(value, FakeClient)}
        heard = {name: client.told for name, client in clients.items() if client.told}
        for client in clients.values():
            client.told = []
        return heard


WITHDRAWN: list[tuple[int, str] | str] = [(ACCOUNT_NOT_PERMITTED, "")]
CHANGED: list[tuple[int, str] | str] = ["changed"]


def test_a_deleted_access_key_closes_its_clients_alone() -> None:
    world = World()
    world.policies.remove_key(I, "K")
    assert world.told() == {"by_key": WITHDRAWN}
    assert world.keyed.publish_rule("demo") is None
    assert world.policies.grant(I, "default", "K") is None
    assert world.account.publish_rule("demo") is not None
    world.policies.put_key(I, "K", KEY)
    assert world.keyed.publish_rule("demo") is None
    assert world.grant("K") is not world.keyed


def test_a_narrowed_access_key_has_its_clients_judged_anew() -> None:
    world = World()
    world.policies.put_key(I, "K", KEY)
    assert world.told() == {}
    world.policies.put_key(I, "K", AccessKey(account_id="default", publish=False))
    assert world.told() == {"by_key": CHANGED}
    assert world.keyed.publish_rule("demo") is None
    assert world.keyed.may_subscribe("demo")


def test_an_access_key_of_another_account_is_another_key() -> None:
    world = World()
    world.policies.put_key(I, "K", AccessKey(account_id="other"))
    assert world.told() == {"by_key": WITHDRAWN}
    assert world.grant("K", "other").publish_rule("demo") is None
    assert world.policies.grant(I, "default", "K") is None  # auth's answer is older than the watch


def test_an_access_key_that_was_made_again_is_another_key() -> None:
    world = World()
    world.policies.put_key(I, "K", dataclasses.replace(KEY, create_time_ms=1))
    assert world.told() == {"by_key": WITHDRAWN}
    assert world.keyed.publish_rule("demo") is None
    assert world.grant("K").publish_rule("demo") is not None


def test_a_deleted_group_closes_its_clients_alone() -> None:
    world = World()
    assert world.policies.has_group(I, "GID_demo", "default")
    rule = world.account.publish_rule("demo/p2p/GID_demo@@@1")
    assert rule is not None
    assert rule.flags & FLAG_RECEIVER_GROUP
    world.policies.remove_group(I, "GID_demo")
    assert world.told() == {"by_group": WITHDRAWN}
    assert not world.policies.has_group(I, "GID_demo", "default")
    rule = world.account.publish_rule("demo/p2p/GID_demo@@@1")
    assert rule is not None
    assert not rule.flags & FLAG_RECEIVER_GROUP
    world.policies.put_group(I, "GID_demo", "default")
    rule = world.account.publish_rule("demo/p2p/GID_demo@@@1")
    assert rule is not None
    assert rule.flags & FLAG_RECEIVER_GROUP


def test_a_group_that_changes_hands_closes_its_clients() -> None:
    world = World()
    world.policies.put_group(I, "GID_demo", "other")
    assert world.told() == {"by_group": WITHDRAWN}
    assert not world.policies.has_group(I, "GID_demo", "default")  # auth's answer is older than the watch


def test_a_deleted_topic_is_lost_by_its_subscribers_alone() -> None:
    world = World()
    world.subscribers[I, "demo"] = [world.by_account]
    assert world.account.publish_rule("demo") is not None
    world.policies.remove_topic(I, "demo")
    assert world.told() == {"by_account": CHANGED}
    assert world.account.publish_rule("demo") is None
    assert not world.account.may_subscribe("demo")
    world.policies.remove_topic(I, "demo")
    world.policies.put_topic(I, DEMO)
    assert world.told() == {}
    assert world.account.publish_rule("demo") is not None


def test_a_topic_that_changes_hands_is_lost_by_its_subscribers() -> None:
    world = World()
    world.subscribers[I, "demo"] = [world.by_account]
    world.policies.put_topic(I, dataclasses.replace(DEMO, logged=False))
    assert world.told() == {}
    rule = world.account.publish_rule("demo")
    assert rule is not None
    assert rule.flags == 0
    world.policies.put_topic(I, dataclasses.replace(DEMO, account_id="other"))
    assert world.told() == {"by_account": CHANGED}
    assert world.account.publish_rule("demo") is None


def test_a_deleted_instance_closes_its_clients() -> None:
    world = World()
    world.policies.remove_instance(I)
    assert world.told() == {"by_account": WITHDRAWN, "by_key": WITHDRAWN}
    assert world.account.publish_rule("demo") is None
    assert world.policies.grant(I, "default") is None


def test_changed_rules_of_an_instance_reach_every_grant() -> None:
    world = World()
    world.policies.put_instance(LMQ)
    assert world.told() == {}
    changed = dataclasses.replace(LMQ, max_payload_bytes=1, max_topic_characters=5)
    world.policies.put_instance(changed)
    assert world.told() == {"by_account": CHANGED, "by_key": CHANGED}
    assert world.keyed.instance is changed
    assert world.keyed.publish_rule("demo/a") is None


def test_a_revoked_token_closes_its_clients_alone() -> None:
    world = World()
    world.policies.revoke_token("t")
    world.policies.revoke_token("t")
    world.policies.revoke_token("other")
    assert world.told() == {"by_token": [(REVOKED, "t")]}
    assert "t" in world.policies.revoked_tokens


def test_a_removed_device_credential_closes_its_clients_alone() -> None:
    world = World()
    assert world.roster.device_credentials() == ["d"]
    world.policies.remove_credential("d")
    assert world.told() == {"by_device": WITHDRAWN}
    assert "d" in world.policies.removed_credentials


def test_a_snapshot_removes_what_it_does_not_name() -> None:
    world = World()
    everything = Snapshot(instances={I}, topics={(I, "demo")}, groups={(I, "GID_demo")}, keys={(I, "K")})
    world.policies.keep_only(everything)
    assert world.told() == {}
    world.subscribers[I, "demo"] = [world.by_account]
    world.policies.keep_only(Snapshot(instances={I}))
    assert world.told() == {"by_account": CHANGED, "by_key": WITHDRAWN, "by_group": WITHDRAWN}
    world.policies.keep_only(Snapshot())
    assert world.told() == {"by_account": WITHDRAWN}


def test_a_view_that_is_too_old_closes_everybody() -> None:
    world = World()
    world.policies.withdraw_all()
    assert sorted(world.told()) == ["by_account", "by_device", "by_group", "by_key", "by_token"]


def test_who_has_left_is_told_nothing() -> None:
    world = World()
    world.roster.discard(world.by_token, rights.token_right("t"))
    world.roster.remove(world.by_key)
    world.roster.remove(world.by_key)
    world.policies.revoke_token("t")
    world.policies.remove_key(I, "K")
    assert world.told() == {}


def test_what_belongs_to_an_unknown_instance_is_ignored() -> None:
    world = World()
    world.policies.put_topic("x", DEMO)
    world.policies.put_group("x", "GID_demo", "default")
    world.policies.put_key("x", "K", KEY)
    world.policies.remove_topic("x", "demo")
    world.policies.remove_group("x", "GID_demo")
    world.policies.remove_key("x", "K")
    world.policies.remove_instance("x")
    assert world.policies.grant("x", "default") is None
    assert world.told() == {}


def test_many_grants_share_the_memory_for_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies_module, "MAX_CACHED_TOPICS_TOGETHER", 4096)
    world = World()
    for n in range(64):
        world.policies.put_key(I, f"K{n}", KEY)
        world.grant(f"K{n}")
    assert world.account.max_cached_topics == policies_module.MIN_CACHED_TOPICS


def test_withdrawn_ids_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies_module, "MAX_WITHDRAWN", 3)
    world = World()
    for n in range(5):
        world.policies.revoke_token(str(n))
    assert [str(n) in world.policies.revoked_tokens for n in range(5)] == [False, False, True, True, True]


def test_the_standard_profile_knows_no_owner_of_a_topic() -> None:
    policies = Policies(Roster(), lambda *_: ())
    instance: Instance = STANDARD
    policies.put_instance(instance)
    grant = policies.grant(I, "")
    assert grant is not None
    assert grant.publish_rule("any/thing") is not None
