"""Parameters of the token HTTP API."""

from __future__ import annotations

import pytest

from services.auth.domain import token_queries
from services.auth.domain.token_queries import Code
from services.auth.domain.tokens import TokenType
from services.common.parameters import BadParameterError
from services.common.signature import is_signed

APPLY = {
    "actions": "R,W",
    "resources": "TopicA/+,TopicB/#",
    "accessKey": "AK1",
    "expireTime": "1555329600000",
    "proxyType": "MQTT",
    "serviceName": "mq",
    "instanceId": "mqtt-xxxxx",
    "signature": "/kQqzik/VVdOcHbOhnCN+oIdlVg=",
}
EXISTING = {"token": "ABCDEF123456==", "accessKey": "AK1", "signature": "v6RIfj3BzCNwnGiiKbGewJKj6mI="}


def test_the_vector_of_apply() -> None:
    asked = token_queries.parse_apply(list(APPLY.items()))
    assert asked.signed.signed_text == (
        "actions=R,W&expireTime=1555329600000&instanceId=mqtt-xxxxx&resources=TopicA/+,TopicB/#&serviceName=mq"
    )
    assert is_signed("XXXXX", asked.signed.signed_text, asked.signed.signature)
    assert (asked.actions, asked.resources) == (TokenType.READ_WRITE, ("TopicA/+", "TopicB/#"))
    assert (asked.instance_id, asked.expire_time_ms) == ("mqtt-xxxxx", 1_555_329_600_000)


def test_the_vector_of_revoke_and_query() -> None:
    asked = token_queries.parse_existing(list(EXISTING.items()))
    assert asked.signed.signed_text == "token=ABCDEF123456=="
    assert is_signed("XXXXX", asked.signed.signed_text, asked.signed.signature)
    assert asked.token == "ABCDEF123456=="


def test_order_of_values_and_parameters_does_not_matter() -> None:
    changed = {**APPLY, "actions": "W,R", "resources": "TopicB/#,TopicA/+", "unknown": "x"}
    asked = token_queries.parse_apply(list(reversed(changed.items())))
    assert is_signed("XXXXX", asked.signed.signed_text, asked.signed.signature)


def test_a_plus_that_was_not_escaped_is_put_back() -> None:
    asked = token_queries.parse_apply(list({**APPLY, "signature": APPLY["signature"].replace("+", " ")}.items()))
    assert asked.signed.signature == APPLY["signature"]


@pytest.mark.parametrize("name", APPLY)
def test_apply_without_a_parameter(name: str) -> None:
    for value in ([], [(name, "")]):
        rest = [(other, text) for other, text in APPLY.items() if other != name]
        with pytest.raises(BadParameterError, match=f"{name} is missing"):
            token_queries.parse_apply(rest + value)


@pytest.mark.parametrize("name", EXISTING)
def test_revoke_and_query_without_a_parameter(name: str) -> None:
    with pytest.raises(BadParameterError, match=f"{name} is missing"):
        token_queries.parse_existing([(other, text) for other, text in EXISTING.items() if other != name])


@pytest.mark.parametrize("name", APPLY)
def test_a_parameter_given_twice_or_too_long(name: str) -> None:
    with pytest.raises(BadParameterError, match=f"{name} is given twice"):
        token_queries.parse_apply([*APPLY.items(), (name, "x")])
    with pytest.raises(BadParameterError, match=f"{name} is too long"):
        token_queries.parse_apply(list({**APPLY, name: "1" * 16_385}.items()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actions", "RW"),
        ("actions", "r"),
        ("actions", "R,R"),
        ("expireTime", "soon"),
        ("expireTime", "-1"),
        ("expireTime", "1e12"),
        ("proxyType", "mqtt"),
        ("serviceName", "MQ"),
    ],
)
def test_a_value_that_is_not_allowed(name: str, value: str) -> None:
    with pytest.raises(BadParameterError, match=name):
        token_queries.parse_apply(list({**APPLY, name: value}.items()))


def test_calls_show_no_token_in_their_representation() -> None:
    asked = token_queries.parse_existing(list(EXISTING.items()))
    assert EXISTING["token"] not in repr(asked)
    assert EXISTING["signature"] not in repr(asked)


def test_answers() -> None:
    assert token_queries.answer(Code.OK, "ok", "T") == {
        "success": True,
        "message": "ok",
        "code": 200,
        "tokenData": "T",
    }
    assert token_queries.answer(Code.REVOKED, "gone") == {"success": False, "message": "gone", "code": 3}
