from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.topics import (
    MAX_TOPIC_BYTES,
    InvalidTopicError,
    covers,
    matches,
    split,
    split_share,
    validate_topic_filter,
    validate_topic_name,
)

LEVEL = st.sampled_from(["", "a", "b", "$x", "a b", "é", "\ufeff"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=5).map("/".join).filter(bool)
FILTER = (
    st.tuples(
        st.lists(st.one_of(LEVEL, st.just("+")), max_size=5),
        st.booleans(),
    )
    .map(lambda parts: "/".join([*parts[0], "#"] if parts[1] else parts[0]))
    .filter(bool)
)


@pytest.mark.parametrize(
    ("topic", "requirement"),
    [
        ("", "MQTT-4.7.3-1"),
        ("a\0b", "MQTT-4.7.3-2"),
        ("a" * (MAX_TOPIC_BYTES + 1), "MQTT-4.7.3-3"),
        ("é" * (MAX_TOPIC_BYTES // 2 + 1), "MQTT-4.7.3-3"),
        ("a/\ud800", "MQTT-1.5.3-1"),
    ],
)
@pytest.mark.spec("MQTT-4.7.3-1")
@pytest.mark.spec("MQTT-4.7.3-2")
@pytest.mark.spec("MQTT-4.7.3-3")
def test_text_that_is_no_topic_is_refused(topic: str, requirement: str) -> None:
    for validate in (validate_topic_name, validate_topic_filter):
        with pytest.raises(InvalidTopicError) as caught:
            validate(topic)
        assert caught.value.requirement == requirement


@pytest.mark.parametrize("topic", ["+", "#", "a/+", "a/#", "a+b", "a#"])
@pytest.mark.spec("MQTT-4.7.1-1")
@pytest.mark.spec("MQTT-3.3.2-2")
def test_topic_name_with_wildcard_is_refused(topic: str) -> None:
    with pytest.raises(InvalidTopicError) as caught:
        validate_topic_name(topic)
    assert caught.value.requirement == "MQTT-3.3.2-2"


@pytest.mark.parametrize("topic", ["/", "a", "/a", "a/", "a//b", " ", "$SYS/x", "é", "a" * 65_535])
def test_topic_name_is_accepted(topic: str) -> None:
    validate_topic_name(topic)
    validate_topic_filter(topic)


@pytest.mark.parametrize("topic_filter", ["a#", "#/a", "a/#/b", "##", "a/b#", "#a", "a/##"])
@pytest.mark.spec("MQTT-4.7.1-2")
def test_misplaced_multi_level_wildcard_is_refused(topic_filter: str) -> None:
    with pytest.raises(InvalidTopicError) as caught:
        validate_topic_filter(topic_filter)
    assert caught.value.requirement == "MQTT-4.7.1-2"


@pytest.mark.parametrize("topic_filter", ["a+", "+a", "a/b+/c", "++", "a/+b/#"])
@pytest.mark.spec("MQTT-4.7.1-3")
def test_misplaced_single_level_wildcard_is_refused(topic_filter: str) -> None:
    with pytest.raises(InvalidTopicError) as caught:
        validate_topic_filter(topic_filter)
    assert caught.value.requirement == "MQTT-4.7.1-3"


@pytest.mark.parametrize("topic_filter", ["#", "+", "/#", "+/+", "a/+/b/#", "/+", "+/#", "$SYS/#"])
def test_topic_filter_is_accepted(topic_filter: str) -> None:
    validate_topic_filter(topic_filter)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/player1/#", "sport/tennis/player12", False),
        ("sport/#", "sport", True),
        ("sport/#", "sporty", False),
        ("#", "a/b", True),
        ("#", "/", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("a", "A", False),
        ("a", "a/", False),
        ("a/b", "a", False),
        ("+/a/#", "x/a", True),
        ("\ufeffa", "a", False),
    ],
)
@pytest.mark.spec("MQTT-4.7.3-4")
def test_matches_examples_of_the_standard(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("#", "$SYS/x", False),
        ("+/monitor", "$SYS/monitor", False),
        ("+", "$SYS", False),
        ("$SYS/#", "$SYS/x", True),
        ("$SYS/#", "$SYS", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("a/#", "a/$b", True),
        ("a/+", "a/$b", True),
    ],
)
@pytest.mark.spec("MQTT-4.7.2-1")
def test_leading_wildcard_never_selects_dollar_topics(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@given(FILTER, TOPIC)
def test_matches_agrees_with_a_regular_expression(topic_filter: str, topic: str) -> None:
    levels = topic_filter.split("/")
    pattern = "/".join("[^/]*" if level == "+" else re.escape(level) for level in levels)
    if levels[-1] == "#":
        parent = "/".join(pattern.split("/")[:-1]) if len(levels) > 1 else ""
        pattern = f"{parent}(/.*)?" if len(levels) > 1 else ".*"
    expected = re.fullmatch(pattern, topic, re.DOTALL) is not None
    if topic[0] == "$" and topic_filter[0] in "+#":
        expected = False
    assert matches(topic_filter, topic) is expected


@given(TOPIC)
def test_topic_selects_itself_and_splits_back(topic: str) -> None:
    assert matches(topic, topic)
    assert "/".join(split(topic)) == topic


@given(st.text(max_size=20))
def test_validation_is_total(text: str) -> None:
    for validate in (validate_topic_name, validate_topic_filter):
        with contextlib.suppress(InvalidTopicError):
            validate(text)
            text.encode()


@pytest.mark.parametrize(
    ("topic_filter", "expected"),
    [
        ("$share/g/a/#", ("g", "a/#")),
        ("$share/g/#", ("g", "#")),
        ("$share/g//a", ("g", "/a")),
        ("$share/g", ("", "$share/g")),
        ("$share/g/", ("", "$share/g/")),
        ("$share//a", ("", "$share//a")),
        ("$share/+/a", ("", "$share/+/a")),
        ("$share/#", ("", "$share/#")),
        ("a/$share/g/b", ("", "a/$share/g/b")),
    ],
)
def test_a_shared_subscription_has_a_name_and_a_filter(topic_filter: str, expected: tuple[str, str]) -> None:
    assert split_share(topic_filter) == expected


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("a/#", "a", True),
        ("a/#", "a/#", True),
        ("a/#", "a/+/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/+", True),
        ("a/+", "a/#", False),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/b", "a/+", False),
        ("a/+/#", "a/#", False),
        ("a/+/#", "a/+/#", True),
        ("+/#", "#", True),
        ("#", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/p2p/#", "a/p2p/GID_x@@@1", True),
        ("a/+", "a/p2p/GID_x@@@1", False),
    ],
)
def test_a_filter_covers_another(outer: str, inner: str, expected: bool) -> None:
    assert covers(outer, inner) is expected


@given(FILTER, FILTER, TOPIC)
def test_what_covers_selects_all_that_is_covered(outer: str, inner: str, topic: str) -> None:
    if covers(outer, inner) and matches(inner, topic):
        assert matches(outer, topic)


@given(FILTER, TOPIC)
def test_covering_a_topic_name_is_selecting_it(outer: str, topic: str) -> None:
    assert covers(outer, topic) is matches(outer, topic)
