"""What one set of credentials may do."""

from __future__ import annotations

import dataclasses

import pytest

from services.edge.policy import (
    FLAG_LOGGED,
    FLAG_P2P,
    FLAG_RECEIVER_GROUP,
    UNLIMITED,
    AccessKey,
    Grant,
    Instance,
    ParentTopic,
)

LMQ = Instance(
    instance_id="mqtt-demo",
    is_standard=False,
    max_topic_characters=64,
    max_payload_bytes=65_536,
    max_subscriptions=30,
    takeover=False,
    refuse_filters=False,
)
STANDARD = dataclasses.replace(LMQ, is_standard=True, max_topic_characters=0, takeover=True, refuse_filters=True)
TOPICS = {
    "demo": ParentTopic(topic="demo", account_id="default", logged=True),
    "ordered": ParentTopic(topic="ordered", account_id="default", logged=True, ordered=True),
    "fast": ParentTopic(topic="fast", account_id="default", logged=False),
    "foreign": ParentTopic(topic="foreign", account_id="other", logged=True),
    "$SYS": ParentTopic(topic="$SYS", account_id="default", logged=True),
}
GROUPS = {"GID_demo": "default"}
KEPT = FLAG_P2P | FLAG_RECEIVER_GROUP


def _grant(instance: Instance = LMQ, account_id: str = "default", key: AccessKey = UNLIMITED) -> Grant:
    return Grant(instance, account_id, key, topics=dict(TOPICS), groups=dict(GROUPS))


def _limited(*topic_filters: str, publish: bool = True, subscribe: bool = True) -> AccessKey:
    return AccessKey(account_id="default", publish=publish, subscribe=subscribe, topic_filters=topic_filters)


@pytest.mark.parametrize(
    ("topic", "flags"),
    [
        ("demo", FLAG_LOGGED),
        ("demo/a/b", FLAG_LOGGED),
        ("demo/", FLAG_LOGGED),
        ("fast/a", 0),
        ("demo/p2p/GID_demo@@@1", FLAG_LOGGED | KEPT),
        ("fast/p2p/GID_demo@@@1", KEPT),
        ("fast/p2p/GID_other@@@1", FLAG_P2P),
        ("fast/p2p/GID_demo", KEPT),
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
def test_publish_rules_of_the_lmq_profile(topic: str, flags: int | None) -> None:
    grant = _grant()
    rule = grant.publish_rule(topic)
    assert (rule.flags if rule else None) == flags
    assert grant.publish_rule(topic) is rule


@pytest.mark.parametrize("instance", [LMQ, STANDARD])
@pytest.mark.parametrize(("topic", "is_ordered"), [("ordered/a", True), ("demo/a", False)])
def test_rules_tell_topics_whose_log_keeps_the_order(instance: Instance, topic: str, *, is_ordered: bool) -> None:
    rule = _grant(instance).publish_rule(topic)
    assert rule is not None
    assert (rule.flags, rule.is_ordered) == (FLAG_LOGGED, is_ordered)


@pytest.mark.parametrize(
    ("topic_filter", "allowed"),
    [
        ("demo/#", True),
        ("demo", True),
        ("#", False),
        ("+/a", False),
        ("foreign/#", False),
        ("demo/" + "x" * 60, False),
        ("$SYS/#", False),
        ("$share/g/demo/#", True),
        ("$share/g/demo/" + "x" * 59, True),
        ("$share/g/demo/" + "x" * 60, False),
        ("$share/g/foreign/#", False),
        ("$share/g/#", False),
        ("$share/demo", False),
    ],
)
def test_subscribe_rules_of_the_lmq_profile(topic_filter: str, allowed: bool) -> None:
    assert _grant().may_subscribe(topic_filter) is allowed


@pytest.mark.parametrize("instance", [LMQ, STANDARD])
def test_levels_are_counted_of_topics_and_of_the_filters_of_shares(instance: Instance) -> None:
    grant = _grant(dataclasses.replace(instance, max_topic_levels=3))
    assert grant.publish_rule("demo/b/c") is not None
    assert grant.publish_rule("demo/b/c/") is None
    assert grant.may_subscribe("demo/+/#")
    assert grant.may_subscribe("$share/g/demo/+/#")
    assert not grant.may_subscribe("demo/+/+/#")
    assert not grant.may_subscribe("$share/g/demo/+/+/#")


def test_the_standard_profile_allows_every_topic() -> None:
    grant = _grant(STANDARD, "")
    for topic in ("", "/", "a/p2p/b", "$x", "x" * 60_000, "$SYS/uploadToken"):
        rule = grant.publish_rule(topic)
        assert rule is not None
        assert not rule.flags & FLAG_P2P
    for topic_filter in ("#", "$SYS/#", "$share/g/#"):
        assert grant.may_subscribe(topic_filter)
    assert grant.may_receive("any/thing", "c")


@pytest.mark.parametrize(
    ("key", "publishes", "subscribes"),
    [
        (_limited(), {"demo/a", "demo/b", "fast/a"}, {"demo/#", "demo/a", "fast/a", "$share/g/demo/a"}),
        (_limited(publish=False), set(), {"demo/#", "demo/a", "fast/a", "$share/g/demo/a"}),
        (_limited(subscribe=False), {"demo/a", "demo/b", "fast/a"}, set()),
        (_limited("demo/a"), {"demo/a"}, {"demo/a", "$share/g/demo/a"}),
        (_limited("demo/#"), {"demo/a", "demo/b"}, {"demo/#", "demo/a", "$share/g/demo/a"}),
        (_limited("demo/+", "fast/a"), {"demo/a", "demo/b", "fast/a"}, {"demo/a", "fast/a", "$share/g/demo/a"}),
        (_limited("+/a"), {"demo/a", "fast/a"}, {"demo/a", "fast/a", "$share/g/demo/a"}),
        (_limited("foreign/#"), set(), set()),
    ],
)
def test_an_access_key_may_be_limited(key: AccessKey, publishes: set[str], subscribes: set[str]) -> None:
    grant = _grant(key=key)
    topics = {"demo/a", "demo/b", "fast/a", "foreign/a"}
    filters = {"demo/#", "demo/a", "fast/a", "foreign/#", "#", "$share/g/demo/a"}
    assert {topic for topic in topics if grant.publish_rule(topic)} == publishes
    assert {topic_filter for topic_filter in filters if grant.may_subscribe(topic_filter)} == subscribes


def test_a_limited_key_is_limited_in_the_standard_profile_too() -> None:
    grant = _grant(STANDARD, key=_limited("a/#", publish=False))
    assert grant.publish_rule("a/b") is None
    assert grant.may_subscribe("a/b")
    assert not grant.may_subscribe("#")
    assert grant.may_receive("a/b", "c")
    assert not grant.may_receive("b", "c")


@pytest.mark.parametrize(
    ("topic", "key", "allowed"),
    [
        ("demo/a", _limited(), True),
        ("foreign/a", _limited(), False),
        ("unknown/a", _limited(), False),
        ("demo/b", _limited("demo/a"), False),
        ("demo/a", _limited(subscribe=False), False),
        ("demo/p2p/GID_demo@@@1", _limited(subscribe=False), True),
        ("demo/p2p/GID_demo@@@2", _limited(subscribe=False), False),
        ("foreign/p2p/GID_demo@@@1", _limited(), False),
    ],
)
def test_a_message_is_judged_when_it_comes(topic: str, key: AccessKey, allowed: bool) -> None:
    assert _grant(key=key).may_receive(topic, "GID_demo@@@1") is allowed


def test_the_cache_of_verdicts_is_bounded() -> None:
    grant = _grant()
    grant.max_cached_topics = 100
    for n in range(150):
        grant.publish_rule(f"demo/{n}")
    assert len(grant._rules) <= 100


def test_long_topics_are_judged_without_a_cache() -> None:
    grant = _grant(STANDARD)
    assert grant.publish_rule("x" * 60_000) is not None
    assert not grant._rules
