"""Interests of edges to routes."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from services.common.subjects import log_subject, message_topic
from services.common.topics import InvalidTopicError, matches
from services.router.domain import routing
from services.router.domain.routing import Routing
from services.router.domain.shared_groups import SLOT_SHIFT, SharedGroups


def legs(routes: Routing, topic: str, *, instance_id: str = "i", is_p2p: bool = False) -> dict[int, list[int]]:
    route = routes.route(instance_id, topic, is_p2p=is_p2p)
    return {leg.slot: sorted(leg.target_ids) for leg in route.legs}


def test_targets_are_gathered_by_edge() -> None:
    routes = Routing()
    routes.add_filter("i", "a/+", 0, 1)
    routes.add_filter("i", "a/#", 0, 2)
    routes.add_filter("i", "a/b", 3, 4_294_967_295)
    routes.add_filter("other", "a/b", 5, 1)
    assert legs(routes, "a/b") == {0: [1, 2], 3: [4_294_967_295]}
    assert legs(routes, "a") == {0: [2]}
    assert legs(routes, "a/b", instance_id="other") == {5: [1]}
    assert legs(routes, "a/b", instance_id="third") == {}


def test_remembered_route_is_the_same_object_until_an_interest_changes() -> None:
    routes = Routing()
    routes.add_filter("i", "a", 0, 1)
    first = routes.route("i", "a", is_p2p=False)
    assert routes.route("i", "a", is_p2p=False) is first
    routes.add_filter("i", "+", 1, 1)
    assert legs(routes, "a") == {0: [1], 1: [1]}
    routes.remove_filter("i", "a", 0, 1)
    assert legs(routes, "a") == {1: [1]}
    routes.remove_filter("i", "+", 1, 1)
    assert legs(routes, "a") == {}


def test_number_of_remembered_routes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_ROUTES", 10)
    routes = Routing()
    for instance_id in ("i", "j"):
        routes.add_filter(instance_id, "#", 0, 1)
    for number in range(100):
        assert legs(routes, str(number), instance_id="ij"[number % 2]) == {0: [1]}
        assert sum(len(instance.routes) for instance in routes._instances.values()) == routes._remembered <= 10
    routes.route("i", "a" * (routing.MAX_REMEMBERED_TOPIC + 1), is_p2p=False)
    assert not any(len(topic) > 10 for topic in routes._instances["i"].routes)


def test_a_remembered_p2p_route_is_the_same_object_until_its_client_comes_or_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routing, "MAX_ROUTES", 10)
    routes = Routing()
    routes.add_client("i", "c", 0, 1)
    first = routes.route("i", "a/p2p/c", is_p2p=True)
    assert routes.route("i", "a/p2p/c", is_p2p=True) is first
    routes.add_client("i", "d", 0, 2)
    assert routes.route("i", "a/p2p/c", is_p2p=True) is first
    routes.add_client("i", "c", 1, 3)
    assert legs(routes, "a/p2p/c", is_p2p=True) == {0: [1], 1: [3]}
    routes.remove_client("i", "c", 0, 1)
    assert legs(routes, "a/p2p/c", is_p2p=True) == {1: [3]}
    for number in range(25):
        assert legs(routes, f"{number}/p2p/c", is_p2p=True) == {1: [3]}
        assert len(routes._instances["i"].p2p_routes) == routes._remembered <= 10
    routes.remove_client("i", "c", 1, 3)
    assert legs(routes, "a/p2p/c", is_p2p=True) == {}
    assert routes._remembered == 0


def test_p2p_message_goes_to_its_client_and_no_filter() -> None:
    routes = Routing()
    routes.add_filter("i", "#", 0, 1)
    routes.add_client("i", "GID_x@@@1/2", 1, 7)
    routes.add_client("i", "GID_x@@@1/2", 2, 7)
    assert legs(routes, "t/p2p/GID_x@@@1/2", is_p2p=True) == {1: [7], 2: [7]}
    assert legs(routes, "t/p2p/GID_x@@@3", is_p2p=True) == {}
    assert legs(routes, "t/p2p/GID_x@@@1/2") == {0: [1]}
    routes.remove_client("i", "GID_x@@@1/2", 1, 7)
    assert legs(routes, "t/p2p/GID_x@@@1/2", is_p2p=True) == {2: [7]}


def test_nothing_is_left_of_an_instance_without_interests() -> None:
    routes = Routing()
    routes.add_filter("i", "a/+/c", 0, 1)
    routes.add_client("i", "c", 0, 2)
    routes.route("i", "a", is_p2p=False)
    routes.remove_filter("i", "a/+/c", 0, 1)
    routes.remove_client("i", "c", 0, 2)
    assert not routes._instances
    assert not routes._remembered


def test_route_names_the_place_in_the_log() -> None:
    route = Routing().route("i", "parent/sub/topic", is_p2p=False)
    assert route.subject == log_subject("i", "parent/sub/topic") == "mq.out.i.parent.sub.topic"
    assert route.second_topic == "/sub/topic"
    assert not Routing().route("i", "parent", is_p2p=False).second_topic


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0"])
def test_wrong_topic_is_refused(topic: str) -> None:
    routes = Routing()
    routes.add_filter("i", "#", 0, 1)
    with pytest.raises(InvalidTopicError):
        routes.route("i", topic, is_p2p=False)


@pytest.mark.parametrize("topic", ["a", "a/p2p", "a/b/c"])
def test_p2p_topic_of_another_form_is_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="P2P"):
        Routing().route("i", topic, is_p2p=True)


LEVEL = st.sampled_from(["a", "b", "+", ""])
FILTER = st.lists(LEVEL, min_size=1, max_size=3).map("/".join).filter(bool)
CHANGE = st.tuples(st.booleans(), FILTER, st.integers(0, 2), st.integers(1, 3))


@hypothesis.given(st.lists(CHANGE, max_size=40), st.sampled_from(["a", "a/b", "a/b/a", "/a", "b//a"]))
def test_remembering_never_shows(changes: list[tuple[bool, str, int, int]], topic: str) -> None:
    routes = Routing()
    interests: set[tuple[str, int, int]] = set()
    for is_added, topic_filter, slot, target_id in changes:
        if is_added:
            interests.add((topic_filter, slot, target_id))
            routes.add_filter("i", topic_filter, slot, target_id)
        else:
            interests.discard((topic_filter, slot, target_id))
            routes.remove_filter("i", topic_filter, slot, target_id)
        expected = sorted((slot, target) for name, slot, target in interests if matches(name, topic))
        found = [(slot, target) for slot, targets in legs(routes, topic).items() for target in targets]
        assert sorted(found) == expected


def test_interests_may_skip_messages_by_their_qos() -> None:
    routes = Routing()
    routes.add_filter("i", "a", 0, 1)
    routes.add_filter("i", "a", 0, 2, routing.SKIPS_ACKNOWLEDGED)
    routes.add_filter("i", "a", 1, 1, routing.SKIPS_ACKNOWLEDGED)
    routes.add_filter("i", "a", 2, 1)
    routes.add_filter("i", "a", 3, 7, routing.SKIPS_QOS0)
    routes.add_filter("i", "+", 4, 9, routing.SKIPS_QOS0 | routing.OF_SHARD)
    route = routes.route("i", "a", is_p2p=False)
    assert {leg.slot: leg.target_ids for leg in route.legs} == {0: [1, 2], 1: [1], 2: [1]}
    assert {leg.slot: leg.target_ids for leg in route.acknowledged_legs} == {0: [1], 2: [1], 3: [7]}
    assert {leg.slot: leg.target_ids for leg in route.shard_legs} == {4: [9]}
    assert not route.is_plain
    # one leg for both, so that a batch names topic and targets once
    assert {id(leg) for leg in route.legs} & {id(leg) for leg in route.acknowledged_legs} == {
        id(leg) for leg in route.legs if leg.slot == 2
    }
    routes.remove_filter("i", "+", 4, 9, routing.SKIPS_QOS0 | routing.OF_SHARD)
    assert routes.route("i", "a", is_p2p=False).is_plain


def test_route_without_skipping_interests_has_one_list_of_legs() -> None:
    routes = Routing()
    routes.add_filter("i", "a", 0, 1)
    route = routes.route("i", "a", is_p2p=False)
    assert route.acknowledged_legs is route.legs
    assert route.is_plain


def test_topic_too_long_for_a_subject_is_in_the_header() -> None:
    route = Routing().route("i", "p/" + "é" * 2_000, is_p2p=False)
    assert route.subject == "mq.out.i.p"
    assert message_topic(route.subject, route.topic_header) == ("i", route.topic)
    short = Routing().route("i", "p/a", is_p2p=False)
    assert (short.subject, short.topic_header, short.log) == ("mq.out.i.p.a", "", "MQ_i_p")


def next_of(routes: Routing, topic: str, blocked: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
    """Return edge and target of the next message to each shared subscription."""
    shares = routes.route("i", topic, is_p2p=False).shares
    legs = [share.next(blocked) for share in shares]
    return sorted((leg.slot, leg.target_ids[0]) for leg in legs if leg is not None)


def test_members_of_a_shared_subscription_take_turns() -> None:
    routes = Routing()
    routes.add_member("i", "x", "a/+", 0, 1)
    routes.add_member("i", "x", "a/+", 0, 2)
    routes.add_member("i", "x", "a/+", 1, 1)
    routes.add_member("i", "y", "a/b", 2, 5)
    routes.add_filter("i", "a/b", 3, 5)
    assert [next_of(routes, "a/b") for _ in range(4)] == [
        [(0, 1), (2, 5)],
        [(0, 2), (2, 5)],
        [(1, 1), (2, 5)],
        [(0, 1), (2, 5)],
    ]
    # the turn is that of the subscription, not of a topic
    assert next_of(routes, "a/c") == [(0, 2)]
    assert next_of(routes, "b") == []
    assert legs(routes, "a/b") == {3: [5]}
    routes.remove_member("i", "y", "a/b", 2, 5)
    routes.remove_member("i", "x", "a/+", 0, 1)
    assert next_of(routes, "a/b") == [(1, 1)]
    share = routes.share("i", "x", "a/+", "a/z")
    assert share is not None
    leg = share.next(frozenset())
    assert leg is not None
    assert (leg.topic, leg.slot) == ("a/z", 0)
    routes.remove_member("i", "x", "a/+", 0, 2)
    routes.remove_member("i", "x", "a/+", 1, 1)
    assert routes.share("i", "x", "a/+", "a/z") is None
    routes.remove_filter("i", "a/b", 3, 5)
    assert not routes._instances


def test_blocked_members_are_skipped_unless_all_are() -> None:
    routes = Routing()
    for slot in range(3):
        routes.add_member("i", "x", "a", slot, 1)
    assert [next_of(routes, "a", frozenset({1})) for _ in range(4)] == [[(0, 1)], [(2, 1)], [(0, 1)], [(2, 1)]]
    assert [next_of(routes, "a", frozenset({0, 1, 2})) for _ in range(3)] == [[(0, 1)], [(1, 1)], [(2, 1)]]


@hypothesis.given(
    st.lists(st.integers(0, 5), unique=True, min_size=1),
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30),
)
def test_messages_of_a_shared_subscription_are_spread_evenly(first: list[int], changes: list[tuple[bool, int]]) -> None:
    groups = SharedGroups("i")
    for slot in first:
        groups.add("x", "a", slot << SLOT_SHIFT | 1)
    for is_added, slot in changes:
        (groups.add if is_added else groups.remove)("x", "a", slot << SLOT_SHIFT | 1)
        group = groups.get("x", "a")
        if group is not None:
            group.next(frozenset())
    group = groups.get("x", "a")
    if group is None:
        assert groups.is_empty
        assert groups.match("a") == []
        return
    members = list(group.members)
    assert sorted(group.next(frozenset()) for _ in members) == sorted(members)
    assert groups.match("a") == [group]
