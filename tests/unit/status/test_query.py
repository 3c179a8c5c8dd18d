"""Parameters and bodies of the online query."""

from __future__ import annotations

import pytest

from services.common.parameters import BadParameterError
from services.common.signature import is_signed, sign
from services.status.query import WINDOW_MS, Answer, Code, parse

GOOD = {
    "accessKey": "YYYYY",
    "instanceId": "mqtt-xxxxx",
    "resource": "GID_Test@@@0001",
    "timestamp": "1555329600000",
    "signature": "ALOU2dqDzIiEoCeadsMbmxR16nI=",
}


def test_the_vector_of_the_product() -> None:
    query = parse(list(GOOD.items()))
    assert query.signed_text == (
        "accessKey=YYYYY&instanceId=mqtt-xxxxx&resource=GID_Test@@@0001&timestamp=1555329600000"
    )
    assert is_signed("XXXXX", query.signed_text, query.signature)
    assert (query.access_key_id, query.instance_id, query.client_id) == ("YYYYY", "mqtt-xxxxx", "GID_Test@@@0001")
    assert query.timestamp_ms == 1_555_329_600_000


def test_order_and_unknown_parameters_do_not_matter() -> None:
    parameters = [("other", "1"), *reversed(GOOD.items()), ("other", "2")]
    assert parse(parameters) == parse(list(GOOD.items()))


@pytest.mark.parametrize("name", GOOD)
def test_each_parameter_is_required(name: str) -> None:
    for parameters in ({k: v for k, v in GOOD.items() if k != name}, GOOD | {name: ""}):
        with pytest.raises(BadParameterError, match=f"{name} is missing"):
            parse(list(parameters.items()))


@pytest.mark.parametrize("name", GOOD)
def test_no_parameter_may_be_given_twice(name: str) -> None:
    with pytest.raises(BadParameterError, match=f"{name} is given twice"):
        parse([*GOOD.items(), (name, GOOD[name])])


@pytest.mark.parametrize("name", GOOD)
def test_the_length_of_each_parameter_is_bounded(name: str) -> None:
    with pytest.raises(BadParameterError, match=f"{name} is too long"):
        parse(list((GOOD | {name: "1" * 5_000}).items()))


@pytest.mark.parametrize("timestamp", ["now", "1.5", "1e12", "0x10", "١٢٣", " 1", "+1", "1\n", "--1"])
def test_a_timestamp_must_be_a_number(timestamp: str) -> None:
    with pytest.raises(BadParameterError, match="timestamp must be"):
        parse(list((GOOD | {"timestamp": timestamp}).items()))


def test_the_timestamp_is_signed_as_it_was_written() -> None:
    query = parse(list((GOOD | {"timestamp": "0001"}).items()))
    assert query.timestamp_ms == 1
    assert query.signed_text.endswith("timestamp=0001")


def test_a_plus_that_arrived_as_a_space_is_taken_back() -> None:
    signature = sign("secretKey", "GID_XXXX@@@00001")
    assert "+" in signature
    assert parse(list((GOOD | {"signature": signature.replace("+", " ")}).items())).signature == signature


@pytest.mark.parametrize(
    ("off", "fresh"),
    [(0, True), (WINDOW_MS, True), (-WINDOW_MS, True), (WINDOW_MS + 1, False), (-WINDOW_MS - 1, False)],
)
def test_the_window_of_the_timestamp(off: int, fresh: bool) -> None:
    assert parse(list(GOOD.items())).is_fresh(1_555_329_600_000 + off) is fresh


def test_bodies() -> None:
    assert Answer(200, Code.OK, "ok", 2).body() == {"code": 0, "success": True, "online": 2, "message": "ok"}
    assert Answer(403, Code.BAD_SIGNATURE, "m").body() == {
        "code": 2,
        "success": False,
        "online": -1,
        "message": "m",
    }
    assert [type(value) for value in Answer(200, Code.OK, "ok", 2).body().values()] == [int, bool, int, str]
