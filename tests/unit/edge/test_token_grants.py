"""Tokens of a connection: each row of product.md section 2.2 that an edge decides by itself."""

from __future__ import annotations

import pytest

from services.edge.policy import UNLIMITED, Coverage, Grant, ParentTopic
from services.edge.tokens import (
    ACCOUNT_NOT_PERMITTED,
    EXPIRED,
    NOT_COVERED,
    NOTICE_AHEAD_MS,
    READ,
    WRITE,
    WRONG_TYPE,
    Fault,
    Token,
    TokenGrant,
    TokenSet,
)
from tests.unit.edge.test_policy import LMQ, STANDARD

CLIENT = "GID_demo@@@1"
EXPIRY_MS = 10_000_000


def _token(token_type: str, *resources: str, token_id: str = "", expire_time_ms: int = EXPIRY_MS) -> Token:
    return Token(
        token_id=token_id or f"{token_type} {resources}",
        type=token_type,
        coverage=Coverage(resources),
        expire_time_ms=expire_time_ms,
    )


def _base(*, standard: bool = False) -> Grant:
    topics = {
        "Topic1": ParentTopic(topic="Topic1", account_id="default", logged=False),
        "Topic2": ParentTopic(topic="Topic2", account_id="default", logged=False),
        "Foreign": ParentTopic(topic="Foreign", account_id="other", logged=False),
    }
    return Grant(STANDARD if standard else LMQ, "default", UNLIMITED, topics=topics, groups={})


def _grant(*tokens: Token, standard: bool = False) -> TokenGrant:
    held = TokenSet()
    for token in tokens:
        held.put(token)
    return TokenGrant(_base(standard=standard), held)


@pytest.mark.parametrize(
    ("token", "publishes", "subscribes"),
    [
        (_token("W", "Topic1/a"), {"Topic1/a"}, set()),
        (_token("R", "Topic1/a"), set(), {"Topic1/a", "$share/g/Topic1/a"}),
        (_token("RW", "Topic1/a"), {"Topic1/a"}, {"Topic1/a", "$share/g/Topic1/a"}),
        (_token("RW", "Topic1/+"), {"Topic1/a"}, {"Topic1/a", "Topic1/+", "$share/g/Topic1/a"}),
        (
            _token("RW", "Topic1/#"),
            {"Topic1", "Topic1/a", "Topic1/p2p/GID_x@@@2"},
            {"Topic1", "Topic1/a", "Topic1/+", "Topic1/#", "$share/g/Topic1/a"},
        ),
        (_token("RW", "Topic1"), {"Topic1"}, {"Topic1"}),
        (_token("RW", "Topic1/p2p/#"), {"Topic1/p2p/GID_x@@@2"}, set()),
        (_token("RW", "Topic1", "Topic2/#"), {"Topic1", "Topic2/a"}, {"Topic1", "Topic2/a"}),
        (_token("RW", "Foreign/#", "Unknown/#"), set(), set()),
        (_token("RW", "#"), {"Topic1", "Topic1/a", "Topic1/p2p/GID_x@@@2", "Topic2/a"}, {
            "Topic1", "Topic1/a", "Topic1/+", "Topic1/#", "Topic2/a", "$share/g/Topic1/a",
        }),
    ],
)  # fmt: skip
def test_a_token_grants_what_its_resources_cover(token: Token, publishes: set[str], subscribes: set[str]) -> None:
    grant = _grant(token)
    topics = {"Topic1", "Topic1/a", "Topic1/p2p/GID_x@@@2", "Topic2/a", "Foreign/a", "Unknown/a"}
    filters = {"Topic1", "Topic1/a", "Topic1/+", "Topic1/#", "Topic2/a", "Foreign/#", "#", "$share/g/Topic1/a"}
    assert {topic for topic in topics if grant.publish_rule(topic)} == publishes
    assert {topic_filter for topic_filter in filters if grant.may_subscribe(topic_filter)} == subscribes


def test_a_set_grants_what_any_of_its_tokens_grants() -> None:
    grant = _grant(_token("R", "Topic1/#"), _token("W", "Topic2/#"), _token("RW", "Topic1/a"))
    assert grant.publish_rule("Topic2/x")
    assert grant.publish_rule("Topic1/a")
    assert not grant.publish_rule("Topic1/b")
    assert grant.may_subscribe("Topic1/#")
    assert not grant.may_subscribe("Topic2/#")


@pytest.mark.parametrize(
    ("tokens", "topic", "allowed"),
    [
        ([], f"Topic1/p2p/{CLIENT}", False),
        ([_token("W", "Topic2")], f"Topic1/p2p/{CLIENT}", True),
        ([_token("R", "Topic2")], f"Topic1/p2p/{CLIENT}", True),
        ([_token("R", "Topic1/#")], "Topic1/p2p/GID_demo@@@2", True),
        ([_token("R", "Topic1/a")], f"Foreign/p2p/{CLIENT}", False),
        ([_token("W", "Topic1/#")], "Topic1/a", False),
        ([_token("R", "Topic1/a")], "Topic1/a", True),
        ([_token("R", "Topic1/a")], "Topic1/b", False),
        ([_token("R", "Topic1/a")], f"Topic1/a/p2p/{CLIENT}", False),
    ],
)
def test_receiving_p2p_needs_no_resource_and_the_rest_does(tokens: list[Token], topic: str, allowed: bool) -> None:
    assert _grant(*tokens).may_receive(topic, CLIENT) is allowed


def test_p2p_is_an_ordinary_topic_in_the_standard_profile() -> None:
    grant = _grant(_token("R", "Topic1/a"), standard=True)
    assert not grant.may_receive(f"Topic1/p2p/{CLIENT}", CLIENT)
    assert grant.may_receive("Topic1/a", CLIENT)


def test_a_client_without_tokens_may_nothing() -> None:
    grant = _grant()
    assert not grant.publish_rule("Topic1")
    assert not grant.may_subscribe("Topic1")
    assert not grant.may_receive("Topic1", CLIENT)


@pytest.mark.parametrize(
    ("tokens", "needed", "topic", "fault"),
    [
        ([], WRITE, "Topic1", Fault(WRONG_TYPE, "W")),
        ([], READ, "Topic1", Fault(WRONG_TYPE, "R")),
        ([_token("R", "#")], WRITE, "Topic1", Fault(WRONG_TYPE, "W")),
        ([_token("W", "#")], READ, "Topic1", Fault(WRONG_TYPE, "R")),
        ([_token("W", "Topic1")], WRITE, "Topic1/x", Fault(NOT_COVERED, "W")),
        ([_token("RW", "Topic1/+")], READ, "Topic1/#", Fault(NOT_COVERED, "RW")),
        ([_token("RW", "Topic1/+")], READ, "$share/g/Topic1/#", Fault(NOT_COVERED, "RW")),
        ([_token("R", "Topic1"), _token("RW", "Topic1")], READ, "Topic1/a", Fault(NOT_COVERED, "R")),
        ([_token("RW", "Topic1/#")], WRITE, "Topic1/p2p/GID_x@@@1/x", Fault(ACCOUNT_NOT_PERMITTED, "RW")),
        ([_token("W", "Foreign/#")], WRITE, "Foreign/a", Fault(ACCOUNT_NOT_PERMITTED, "W")),
        ([_token("W", "Unknown/#")], WRITE, "Unknown/a", Fault(ACCOUNT_NOT_PERMITTED, "W")),
    ],
)
def test_a_refusal_has_its_code(tokens: list[Token], needed: str, topic: str, fault: Fault) -> None:
    assert _grant(*tokens).fault(needed, topic) == fault


def test_a_token_replaces_the_one_of_its_type() -> None:
    held = TokenSet()
    assert held.put(_token("R", "Topic1", token_id="1")) is None
    assert held.put(_token("W", "Topic1", token_id="2")) is None
    replaced = held.put(_token("R", "Topic2", token_id="3"))
    assert replaced is not None
    assert replaced.token_id == "1"
    assert held.ids() == ["3", "2"]
    assert (held.type_of("3"), held.type_of("1")) == ("R", None)


def test_verdicts_follow_tokens_and_the_grant_below() -> None:
    grant = _grant(_token("W", "Topic1"))
    assert grant.publish_rule("Topic1")
    assert not grant.publish_rule("Topic2")
    grant.tokens.put(_token("W", "Topic2"))
    grant.refresh()
    assert not grant.publish_rule("Topic1")
    assert grant.publish_rule("Topic2")
    grant._base._topics.pop("Topic2")
    grant._base.change(LMQ)
    assert not grant.publish_rule("Topic2")
    grant.close()
    assert not grant._base._overlays


def test_expiry_is_announced_once_five_minutes_ahead_and_then_ends_the_connection() -> None:
    held = TokenSet()
    held.put(_token("R", "Topic1"))
    held.put(_token("W", "Topic1", expire_time_ms=EXPIRY_MS + 1000))
    assert held.due_ms == EXPIRY_MS - NOTICE_AHEAD_MS
    assert held.take_due(EXPIRY_MS - NOTICE_AHEAD_MS - 1) == ([], None)
    announced, fault = held.take_due(EXPIRY_MS - NOTICE_AHEAD_MS)
    assert ([token.type for token in announced], fault) == (["R"], None)
    announced, fault = held.take_due(EXPIRY_MS - NOTICE_AHEAD_MS + 1000)
    assert ([token.type for token in announced], fault) == (["W"], None)
    assert held.take_due(EXPIRY_MS - 1) == ([], None)
    assert held.due_ms == EXPIRY_MS
    assert held.take_due(EXPIRY_MS) == ([], Fault(EXPIRED, "R"))


def test_a_new_token_is_announced_again() -> None:
    held = TokenSet()
    held.put(_token("R", "Topic1"))
    assert held.take_due(EXPIRY_MS - 1)[0]
    held.put(_token("R", "Topic1", expire_time_ms=2 * EXPIRY_MS))
    assert held.take_due(EXPIRY_MS + 1) == ([], None)
    assert held.due_ms == 2 * EXPIRY_MS - NOTICE_AHEAD_MS
    held.clear()
    assert held.take_due(3 * EXPIRY_MS) == ([], None)
