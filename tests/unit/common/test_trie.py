"""The trie against the plain reading of the standard."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from services.common.topics import matches
from services.common.trie import Trie

LEVEL = st.sampled_from(["", "a", "b", "c", "$a", "é"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=5).map("/".join).filter(bool)
FILTER = (
    st.tuples(
        st.lists(st.one_of(LEVEL, st.just("+")), max_size=5),
        st.booleans(),
    )
    .map(lambda parts: "/".join([*parts[0], "#"] if parts[1] or not parts[0] else parts[0]))
    .filter(bool)
)
FILTERS = st.lists(FILTER, max_size=30)


@hypothesis.given(FILTERS, TOPIC)
def test_finds_exactly_the_filters_that_match(filters: list[str], topic: str) -> None:
    trie = Trie()
    for value, topic_filter in enumerate(filters):
        trie.add(topic_filter, value)
    expected = [value for value, topic_filter in enumerate(filters) if matches(topic_filter, topic)]
    assert sorted(trie.match(topic)) == expected


@hypothesis.given(FILTERS, st.data())
def test_removed_filters_are_as_if_never_added(filters: list[str], data: st.DataObject) -> None:
    trie = Trie()
    for value, topic_filter in enumerate(filters):
        trie.add(topic_filter, value)
    removed = data.draw(st.sets(st.sampled_from(range(len(filters))))) if filters else set()
    for value in removed:
        trie.remove(filters[value], value)
        trie.remove(filters[value], value)
    topic = data.draw(TOPIC)
    kept = [value for value in range(len(filters)) if value not in removed]
    assert sorted(trie.match(topic)) == [value for value in kept if matches(filters[value], topic)]
    for value in kept:
        trie.remove(filters[value], value)
    assert trie.is_empty


@pytest.mark.spec("MQTT-4.7.2-1")
@pytest.mark.parametrize("topic_filter", ["#", "+", "+/a", "+/#"])
def test_leading_wildcard_selects_no_server_topic(topic_filter: str) -> None:
    trie = Trie()
    trie.add(topic_filter, 1)
    assert not trie.match("$SYS/a")
    assert not trie.match("$SYS")


def test_wildcards_below_a_server_topic_select() -> None:
    trie = Trie()
    trie.add("$SYS/#", 1)
    trie.add("$SYS/+", 2)
    assert sorted(trie.match("$SYS/a")) == [1, 2]


def test_many_level_wildcard_selects_its_parent() -> None:
    trie = Trie()
    trie.add("a/#", 1)
    assert trie.match("a") == [1]
    assert trie.match("a/b/c") == [1]
    assert not trie.match("b")


def test_value_of_several_filters_is_found_once_for_each() -> None:
    trie = Trie()
    trie.add("a", 1)
    trie.add("a", 1)
    trie.add("+", 1)
    assert trie.match("a") == [1, 1]


def test_removing_what_is_not_there_changes_nothing() -> None:
    trie = Trie()
    trie.add("a/b", 1)
    for topic_filter in ("a", "a/b/c", "a/+", "a/#", "b", "a/b"):
        trie.remove(topic_filter, 2)
    assert trie.match("a/b") == [1]
