"""The view of resources, and what edges are told about its changes."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from services.auth.domain.records import AccessKey, Group, Instance, Record, TokenKey, Topic
from services.auth.domain.resources import ChangeSet, Resources


def instance(name: str = "one", *, deleting: bool = False, takeover: bool = False) -> Instance:
    return Instance(instance_id=name, deleting=deleting, takeover=takeover)


def topic(name: str = "demo", *, of: str = "one", deleting: bool = False, ordered: bool = False) -> Topic:
    return Topic(
        instance_id=of, topic=name, account_id="a", logged=True, ordered=ordered, retention_s=9, deleting=deleting
    )


def put(resources: Resources, *records: Record) -> list[ChangeSet]:
    """Put records; returns the changes that are not empty."""
    changes = [resources.apply(record.key, record) for record in records]
    return [change for change in changes if change]


def test_a_topic_is_told_once_its_instance_is_there() -> None:
    resources = Resources()
    assert not put(resources, topic())
    assert put(resources, instance()) == [ChangeSet({"one": instance()}, {("one", "demo"): topic()})]


def test_the_topics_of_a_removed_instance_go_with_it_unnamed() -> None:
    resources = Resources()
    put(resources, instance(), topic())
    assert put(resources, instance(deleting=True)) == [ChangeSet({"one": None})]
    assert not resources.apply(topic().key, None)
    assert not resources.apply(instance().key, None)


def test_a_topic_that_is_being_deleted_is_gone_for_edges_and_lists() -> None:
    resources = Resources()
    put(resources, instance(), topic())
    assert put(resources, topic(deleting=True)) == [ChangeSet(topics={("one", "demo"): None})]
    assert resources.topic("one", "demo") is None
    assert resources.topics("one") == []
    assert resources.owned_by("one") == [topic(deleting=True)]
    assert not resources.apply(topic().key, None)


def test_groups_and_keys_are_told_while_their_instance_is_seen() -> None:
    resources = Resources()
    key = AccessKey(instance_id="one", access_key_id="k", account_id="a", sealed_secret="s")
    group = Group(instance_id="one", group_id="GID_one", account_id="a")
    assert not put(resources, key)
    assert put(resources, instance()) == [ChangeSet({"one": instance()}, access_keys={("one", "k"): key})]
    assert put(resources, group, key) == [ChangeSet(groups={("one", "GID_one"): group})]
    narrowed = dataclasses.replace(key, subscribe=False)
    assert put(resources, narrowed) == [ChangeSet(access_keys={("one", "k"): narrowed})]
    assert resources.apply(key.key, None) == ChangeSet(access_keys={("one", "k"): None})
    assert resources.apply(group.key, None) == ChangeSet(groups={("one", "GID_one"): None})


def test_changes_of_what_edges_do_not_see_are_not_told() -> None:
    resources = Resources()
    put(resources, instance())
    assert not put(resources, TokenKey(key_id="00000000", sealed_secret="s"))
    assert not put(resources, instance())
    assert not resources.apply("topic.one.never", None)


def test_a_change_set_absorbs_what_hides_nothing() -> None:
    changes = ChangeSet(topics={("one", "a"): topic("a")})
    assert changes.absorb(ChangeSet(topics={("one", "b"): None}, revoked_token_ids=["t1"]))
    assert changes.absorb(ChangeSet(revoked_token_ids=["t2"]))
    assert changes == ChangeSet(topics={("one", "a"): topic("a"), ("one", "b"): None}, revoked_token_ids=["t1", "t2"])
    # Edges close clients when something is removed, also when it is created again at once.
    assert not changes.absorb(ChangeSet(topics={("one", "b"): topic("b")}))
    assert not changes.absorb(ChangeSet(instances={"one": None}))
    assert changes.topics["one", "b"] is None


def test_lists_are_sorted_and_of_one_instance() -> None:
    resources = Resources()
    put(resources, instance("two"), instance("one"), topic("b"), topic("a"), topic("c", of="two"))
    assert [i.instance_id for i in resources.instances()] == ["one", "two"]
    assert [t.topic for t in resources.topics("one")] == ["a", "b"]
    assert resources.topics("three") == []


def test_replace_tells_the_difference_only() -> None:
    resources = Resources()
    put(resources, instance(), topic("kept"), topic("gone"), topic("changed"))
    after: list[Record] = [instance(), topic("kept"), topic("changed", ordered=True), topic("new")]
    assert resources.replace({record.key: record for record in after}) == ChangeSet(
        topics={
            ("one", "gone"): None,
            ("one", "changed"): topic("changed", ordered=True),
            ("one", "new"): topic("new"),
        }
    )


def test_replace_with_a_record_that_can_be_read_now_is_told() -> None:
    resources = Resources()
    put(resources, topic())
    assert resources.replace({topic().key: topic(), instance().key: instance()}) == ChangeSet(
        {"one": instance()}, {("one", "demo"): topic()}
    )


RECORDS = st.one_of(
    st.builds(instance, st.sampled_from(["one", "two"]), deleting=st.booleans(), takeover=st.booleans()),
    st.builds(
        topic,
        st.sampled_from(["a", "b"]),
        of=st.sampled_from(["one", "two"]),
        deleting=st.booleans(),
        ordered=st.booleans(),
    ),
)
UPDATES = st.lists(st.tuples(RECORDS, st.booleans()), max_size=12)


class Edge:
    """Keeps a view by the changes it is told, as the proto says."""

    def __init__(self) -> None:
        self.view = ChangeSet()

    def hear(self, changes: ChangeSet) -> None:
        before = (dict(self.view.instances), dict(self.view.topics))
        for instance_id, policy in changes.instances.items():
            if policy is None:
                del self.view.instances[instance_id]  # KeyError: told to remove what it was never told of
                for key in [key for key in self.view.topics if key[0] == instance_id]:
                    del self.view.topics[key]
            else:
                self.view.instances[instance_id] = policy
        for key, parent in changes.topics.items():
            assert key[0] in self.view.instances, "a topic before its instance"
            if parent is None:
                del self.view.topics[key]
            else:
                self.view.topics[key] = parent
        assert bool(changes) == (before != (self.view.instances, self.view.topics)), "a change that changes nothing"


@given(st.lists(st.tuples(UPDATES, st.booleans()), max_size=8))
def test_an_edge_that_follows_the_changes_has_the_view_of_a_new_snapshot(
    steps: list[tuple[list[tuple[Instance | Topic, bool]], bool]],
) -> None:
    resources = Resources()
    edge = Edge()
    for updates, as_whole in steps:
        if as_whole:
            edge.hear(resources.replace({record.key: record for record, is_put in updates if is_put}))
        else:
            for record, is_put in updates:
                edge.hear(resources.apply(record.key, record if is_put else None))
        assert edge.view == resources.snapshot()


def test_snapshot_holds_no_topic_of_a_hidden_instance() -> None:
    resources = Resources()
    put(resources, dataclasses.replace(instance(), deleting=True), topic(), topic(of="none"))
    assert resources.snapshot() == ChangeSet()
