"""What an edge allows by itself."""

from __future__ import annotations

import pytest

from services.edge.policy import FLAG_LOGGED, FLAG_P2P, MAX_CACHED_TOPICS, Instance, ParentTopic, Policies


def _instance(*, standard: bool = False) -> Instance:
    return Instance(
        instance_id="mqtt-demo",
        is_standard=standard,
        max_topic_characters=0 if standard else 64,
        max_payload_bytes=65_536,
        max_subscriptions=30,
        takeover=standard,
        refuse_filters=standard,
    )


@pytest.fixture
def policies() -> Policies:
    made = Policies()
    made.put_instance(_instance())
    made.put_topic("mqtt-demo", ParentTopic(topic="demo", account_id="default", logged=True))
    made.put_topic("mqtt-demo", ParentTopic(topic="fast", account_id="default", logged=False))
    made.put_topic("mqtt-demo", ParentTopic(topic="foreign", account_id="other", logged=True))
    return made


@pytest.mark.parametrize(
    ("topic", "flags"),
    [
        ("demo", FLAG_LOGGED),
        ("demo/a/b", FLAG_LOGGED),
        ("demo/", FLAG_LOGGED),
        ("fast/a", 0),
        ("demo/p2p/GID_demo@@@1", FLAG_LOGGED | FLAG_P2P),
        ("fast/p2p/GID_demo@@@1", FLAG_P2P),
        ("demo/p2p", FLAG_LOGGED),
        ("demo/p2p/", FLAG_LOGGED),
        ("demo/" + "x" * 59, FLAG_LOGGED),
        ("demo/" + "x" * 60, None),
        ("demo/p2p/" + "x" * 64, FLAG_LOGGED | FLAG_P2P),
        ("demo/p2p/" + "x" * 120, None),
        ("unknown", None),
        ("foreign/a", None),
        ("/demo", None),
        ("$SYS/x", None),
    ],
)
def test_publish_rules_of_the_lmq_profile(policies: Policies, topic: str, flags: int | None) -> None:
    grant = policies.grant("mqtt-demo", "default")
    assert grant is not None
    rule = grant.publish_rule(topic)
    assert (rule.flags if rule else None) == flags
    assert grant.publish_rule(topic) is rule


@pytest.mark.parametrize(
    ("topic_filter", "allowed"),
    [("demo/#", True), ("demo", True), ("#", False), ("+/a", False), ("foreign/#", False), ("demo/" + "x" * 60, False)],
)
def test_subscribe_rules_of_the_lmq_profile(policies: Policies, topic_filter: str, allowed: bool) -> None:
    grant = policies.grant("mqtt-demo", "default")
    assert grant is not None
    assert grant.may_subscribe(topic_filter) is allowed


def test_the_standard_profile_allows_every_topic() -> None:
    policies = Policies()
    policies.put_instance(_instance(standard=True))
    grant = policies.grant("mqtt-demo", "")
    assert grant is not None
    for topic in ("", "/", "a/p2p/b", "$x", "x" * 60_000):
        rule = grant.publish_rule(topic)
        assert rule is not None
        assert rule.flags == 0
    assert grant.may_subscribe("#")


def test_verdicts_follow_changes(policies: Policies) -> None:
    grant = policies.grant("mqtt-demo", "default")
    assert grant is not None
    assert grant.publish_rule("later/x") is None
    policies.put_topic("mqtt-demo", ParentTopic(topic="later", account_id="default", logged=False))
    assert grant.publish_rule("later/x") is not None
    policies.remove_topic("mqtt-demo", "later")
    assert grant.publish_rule("later/x") is None
    policies.remove_instance("mqtt-demo")
    assert grant.publish_rule("demo/x") is None
    assert policies.grant("mqtt-demo", "default") is None


def test_a_snapshot_replaces_what_it_does_not_name(policies: Policies) -> None:
    grant = policies.grant("mqtt-demo", "default")
    assert grant is not None
    policies.keep_only({"mqtt-demo"}, {("mqtt-demo", "demo")})
    assert grant.publish_rule("demo") is not None
    assert grant.publish_rule("fast") is None
    policies.keep_only(set(), set())
    assert policies.grant("mqtt-demo", "default") is None


def test_the_cache_of_verdicts_is_bounded(policies: Policies) -> None:
    grant = policies.grant("mqtt-demo", "default")
    assert grant is not None
    for n in range(MAX_CACHED_TOPICS + 10):
        grant.publish_rule(f"demo/{n}")
    assert len(grant._rules) <= MAX_CACHED_TOPICS
