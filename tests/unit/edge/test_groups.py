"""Several routers and session shards behind one port."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from services.edge.groups import Routers, SessionShards, router_group
from services.edge.mqtt.packets import Publish
from services.edge.policy import TopicRule
from services.edge.ports import Client, Interest
from services.edge.router_link import RouterLink
from services.edge.session_link import SessionLink

COUNT = 3


class FakeLink:
    """Notes what one router is given."""

    def __init__(self) -> None:
        self.targets: set[int] = set()
        self.queries: list[int] = []
        self.notices: list[Callable[[], None]] = []
        self.topics: list[str] = []
        self.is_congested = False

    def add_target(self, target: Interest) -> None:
        self.targets.add(target.target_id)

    def remove_target(self, target_id: int) -> None:
        self.targets.discard(target_id)

    def query_retained(self, query: Interest) -> int:
        self.queries.append(query.target_id)
        return 1

    def notify(self, done: Callable[[], None]) -> None:
        self.notices.append(done)

    def publish(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> None:
        self.topics.append(publication.topic)


def group() -> tuple[Routers, list[FakeLink]]:
    links = [FakeLink() for _ in range(COUNT)]
    return Routers(cast("list[RouterLink]", links)), links


def test_targets_are_known_to_every_router() -> None:
    routers, links = group()
    routers.add_target(Interest(target_id=1, instance_id="i", topic_filter="a/#"))
    routers.add_target(Interest(target_id=2, instance_id="i", client_id="c"))
    assert all(link.targets == {1, 2} for link in links)
    routers.remove_target(1)
    assert all(link.targets == {2} for link in links)


def test_what_waits_for_targets_is_told_once_when_the_last_router_has_them() -> None:
    routers, links = group()
    told: list[int] = []
    routers.notify(lambda: told.append(1))
    for link in links[1:]:
        link.notices[0]()
    assert told == []
    links[0].notices[0]()
    assert told == [1]


def test_topics_of_one_parent_go_to_one_router_and_parents_are_spread() -> None:
    routers, links = group()
    for parent in range(20):
        for level in ("", "/a", "/b/c"):
            topic = f"t{parent}{level}"
            rule = TopicRule("i", topic, 0)
            for _ in range(2):
                routers.publish(cast("Client", None), rule, Publish(topic, b"", 0, False, False, 0), True)
    parents = [{topic.partition("/")[0] for topic in link.topics} for link in links]
    assert all(parents)
    assert sum(map(len, parents)) == len(set().union(*parents)) == 20
    assert sum(len(link.topics) for link in links) == 120


def test_retained_messages_are_asked_of_the_routers_that_have_them() -> None:
    routers, links = group()
    for n, topic_filter in enumerate(("#", "+/a", "+")):
        assert routers.query_retained(Interest(target_id=n, instance_id="i", topic_filter=topic_filter)) == COUNT
    assert all(link.queries == [0, 1, 2] for link in links)
    assert routers.query_retained(Interest(target_id=3, instance_id="i", topic_filter="demo/+/#")) == 1
    assert sorted(len(link.queries) for link in links) == [3, 3, 4]


def test_one_congested_router_pauses_publishers() -> None:
    routers, links = group()
    assert not routers.is_congested
    links[2].is_congested = True
    assert routers.is_congested


def test_a_single_router_is_used_as_it_is() -> None:
    link = cast("RouterLink", FakeLink())
    assert router_group([link]) is link


def test_a_client_belongs_to_one_shard_and_clients_are_spread() -> None:
    links = cast("list[SessionLink]", [FakeLink() for _ in range(COUNT)])
    shards = SessionShards(links)
    found = [shards.of("i", f"c{n}") for n in range(30)]
    assert found == [shards.of("i", f"c{n}") for n in range(30)]
    assert set(found) == set(links)
    assert SessionShards(links[:1]).of("i", "c") is links[0]
