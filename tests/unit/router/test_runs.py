"""Runs of QoS 1 through the router, without a stream between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import StreamContractError
from services.common.log_runs import Part
from services.router.domain.columns import (
    CLEAN_SESSION,
    DELIVERED,
    KEPT_IF_OFFLINE,
    KEPT_P2P,
    LOGGED,
    P2P,
    REPEATED,
    RETAIN,
    RUN,
)
from services.router.edge_link import EdgeLink, Stream
from services.router.router import Router
from services.router.runs import RunPublication
from services.router.shards import Shards
from tests.unit.router.test_router import HIGH, FakeLog, join, new_router, sent, subscribe, take
from weimq.router.v1 import router_pb2

PACKETS = b"-1-2-3"
"""Of a run: a byte that stands for all of the packet before its message."""


@pytest.fixture
def router() -> Router:
    return new_router()


@pytest.fixture
def log(router: Router) -> FakeLog:
    made = FakeLog()
    router.begin(made)
    return made


def publish(edge: EdgeLink, topic: str = "a", topic_kind: int = 0, kind: int = 0, **changed: object) -> None:
    """Publish a run of the messages 1, 2, 3 with the sequences 11 to 13, and 4 of QoS 1 with 14."""
    columns: dict[str, object] = {
        "instances": ["i"],
        "topics": [topic],
        "topic_instances": [0],
        "topic_flags": bytes([topic_kind]),
        "publishers": ["c"],
        "topic_indexes": [0, 0],
        "sequences": [11, 14],
        "payloads": [PACKETS, b"4"],
        "flags": bytes([1 | RUN | kind, 1 | kind]),
        "publisher_indexes": [0, 0],
        "run_counts": [3],
        "run_payload_bytes": [1],
    }
    take(edge, publishes=router_pb2.PublishBatch(**{**columns, **changed}))  # type: ignore[arg-type]  # fields of the test


def join_shard(router: Router, *filters: str) -> EdgeLink:
    shard = EdgeLink(
        edge_id="shard",
        incarnation="shard.1",
        router_incarnation="r",
        slot=router.new_slot(),
        shard_index=0,
        take=router.take,
        confirmed=router.on_confirmed,
    )
    shard.stream = Stream(is_resumed=False, has_missed=False)
    router.join(shard)
    for target_id, topic_filter in enumerate(filters, 1):
        target = router_pb2.Target(target_id=target_id, instance_id="i", topic_filter=topic_filter, skips_qos0=True)
        take(shard, added_targets=[target])
    return shard


def delivered(deliveries: router_pb2.DeliveryBatch) -> Iterator[bytes]:
    """Return the messages of a batch, those of runs one by one."""
    runs = iter(zip(deliveries.run_counts, deliveries.run_payload_bytes, strict=True))
    for payload, flags in zip(deliveries.payloads, deliveries.flags, strict=True):
        assert flags & 3 == 1
        if not flags & RUN:
            yield payload
            continue
        count, size = next(runs)
        step = len(payload) // count
        assert step * count == len(payload)
        for stop in range(step, len(payload) + 1, step):
            yield payload[stop - size : stop]


def confirm(edge: EdgeLink, frame: router_pb2.LinkResponse) -> None:
    edge.link._drop_confirmed(frame.frame)


def store(router: Router, log: FakeLog, sequences: Sequence[int]) -> None:
    """Store what waits, message by message, at these places; 0: the log refuses it."""
    for sequence in sequences:
        _, token = log.written.pop(0)
        if sequence:
            router.reports.stored(token, sequence, False)
        else:
            router.reports.failed(token, "too large")


def acknowledged(edge: EdgeLink) -> list[int]:
    return edge._acknowledged


@pytest.mark.usefixtures("log")
def test_a_run_without_a_log_goes_on_as_it_is_and_is_acknowledged_once(router: Router) -> None:
    publisher, one, two = join(router, "publisher"), join(router, "one"), join(router, "two")
    subscribe(one, 1, "a")
    subscribe(two, 1, "#")
    publish(publisher)
    frames = [sent(one), sent(two)]
    for frame in frames:
        assert list(frame.deliveries.payloads) == [PACKETS, b"4"]
        assert frame.deliveries.flags == bytes([1 | RUN, 1])
        assert (list(frame.deliveries.run_counts), list(frame.deliveries.run_payload_bytes)) == ([3], [1])
        assert frame.is_awaited
    assert router.published == 4
    assert router.delivered(is_shard=False) == 8
    confirm(one, frames[0])
    assert not acknowledged(publisher)
    confirm(two, frames[1])
    assert acknowledged(publisher) == [11, 14]


@pytest.mark.usefixtures("log")
def test_a_run_for_nobody_is_acknowledged_at_once(router: Router) -> None:
    publisher = join(router, "publisher")
    publish(publisher)
    assert acknowledged(publisher) == [11, 14]


@pytest.mark.usefixtures("log")
def test_an_edge_that_leaves_owes_no_run_any_more(router: Router) -> None:
    publisher, one, two = join(router, "publisher"), join(router, "one"), join(router, "two")
    subscribe(one, 1, "a")
    subscribe(two, 1, "a")
    publish(publisher)
    confirm(two, sent(two))
    sent(one)
    publish(publisher, sequences=[21, 24])  # has not been sent
    assert not acknowledged(publisher)
    router.leave(one)
    assert acknowledged(publisher) == [11, 14]
    confirm(two, sent(two))
    assert acknowledged(publisher) == [11, 14, 21, 24]


@pytest.mark.parametrize("topic_flags", [LOGGED, LOGGED | P2P])
def test_a_logged_run_is_delivered_when_it_is_stored(router: Router, log: FakeLog, topic_flags: int) -> None:
    topic = "a/p2p/c" if topic_flags & P2P else "a"
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    interest = {"client_id": "c"} if topic_flags & P2P else {"topic_filter": "a"}
    take(subscriber, added_targets=[router_pb2.Target(target_id=1, instance_id="i", **interest)])  # type: ignore[arg-type]
    publish(publisher, topic=topic, topic_kind=topic_flags)
    assert not subscriber.pending_bytes
    store(router, log, [1] * len(log.written))
    frame = sent(subscriber)
    assert list(delivered(frame.deliveries)) == [b"1", b"2", b"3", b"4"]
    assert set(frame.deliveries.topics) == {topic}
    assert not acknowledged(publisher)
    confirm(subscriber, frame)
    assert acknowledged(publisher) == [11, 14]
    assert not router.kept.messages


def test_messages_of_a_run_that_are_stored_apart_are_acknowledged_together(router: Router, log: FakeLog) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    subscribe(subscriber, 1, "a")
    publish(publisher, topic_kind=LOGGED)
    apart = split(log)
    router.reports.stored(apart[0], 5, False)
    router.reports.failed(apart[1], "too large")
    frame = sent(subscriber)
    assert list(delivered(frame.deliveries)) == [b"1", b"2"]
    confirm(subscriber, frame)
    assert not acknowledged(publisher)
    router.reports.stored(apart[2], 9, True)
    confirm(subscriber, sent(subscriber))
    assert acknowledged(publisher) == [11]
    assert router.reports.refused_messages == 1
    store(router, log, [10])
    confirm(subscriber, sent(subscriber))
    assert acknowledged(publisher) == [11, 14]


def split(log: FakeLog) -> list[Part]:
    """Take the first run from what waits, in parts as `LogWriter` reports them after a failure."""
    _, token = log.written[0]
    publication = token.token if isinstance(token, Part) else token
    assert isinstance(publication, RunPublication)
    log.written = [
        (payload, token)
        for payload, token in log.written
        if not (token is publication or (isinstance(token, Part) and token.token is publication))
    ]
    return [Part(publication, offset) for offset in range(publication.run.count)]


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_run_that_its_edge_delivered_goes_to_others_only(router: Router, log: FakeLog, is_apart: bool) -> None:
    publisher, other = join(router, "publisher"), join(router, "other")
    subscribe(publisher, 1, "a")
    publish(publisher, topic_kind=LOGGED, kind=DELIVERED)
    put(router, log, is_apart=is_apart)
    assert acknowledged(publisher) == [11, 14]  # nobody is left
    subscribe(other, 1, "#")
    publish(publisher, topic_kind=LOGGED, kind=DELIVERED, sequences=[21, 24])
    put(router, log, is_apart=is_apart)
    frame = sent(other)
    assert list(delivered(frame.deliveries)) == [b"1", b"2", b"3", b"4"]
    assert acknowledged(publisher) == [11, 14]
    confirm(other, frame)
    assert acknowledged(publisher) == [11, 14, 21, 24]
    assert not publisher.pending_bytes


def put(router: Router, log: FakeLog, *, is_apart: bool) -> None:
    """Store all that waits, the run in parts or as it was written."""
    if is_apart:
        for part in split(log):
            router.reports.stored(part, 1, False)
    store(router, log, [2] * len(log.written))


@pytest.mark.parametrize("is_apart", [False, True])
def test_messages_of_a_run_go_to_shards_with_their_places(router_of_shard: Router, is_apart: bool) -> None:
    router = router_of_shard
    log = FakeLog()
    router.begin(log)
    publisher, shard, subscriber = join(router, "publisher"), join_shard(router, "a"), join(router, "subscriber")
    skips = router_pb2.Target(target_id=1, instance_id="i", topic_filter="a", skips_acknowledged=True)
    take(subscriber, added_targets=[skips])
    publish(publisher, topic_kind=LOGGED)
    places = [5, 7, 8] if is_apart else [5, 6, 7]
    if is_apart:
        for part, place in zip(split(log), places, strict=True):
            router.reports.stored(part, place, False)
    else:
        store(router, log, places[: len(log.written) - 1])
    store(router, log, [9])
    frame = sent(shard)
    assert list(frame.deliveries.payloads) == [b"1", b"2", b"3", b"4"]
    assert not frame.deliveries.run_counts
    assert list(frame.deliveries.log_sequences) == [*places, 9]
    assert not subscriber.pending_bytes
    assert not acknowledged(publisher)
    confirm(shard, frame)
    assert acknowledged(publisher) == [11, 14]


@pytest.fixture
def router_of_shard() -> Router:
    return new_router(Shards(1))


def test_messages_that_a_log_refuses_go_to_shards_and_their_clients(router_of_shard: Router) -> None:
    router = router_of_shard
    log = FakeLog()
    router.begin(log)
    publisher, shard, subscriber = join(router, "publisher"), join_shard(router, "a"), join(router, "subscriber")
    skips = router_pb2.Target(target_id=1, instance_id="i", topic_filter="a", skips_acknowledged=True)
    take(subscriber, added_targets=[skips])
    publish(publisher, topic_kind=LOGGED)
    for part in split(log):
        router.reports.failed(part, "the log is gone")
    store(router, log, [0])
    to_shard, to_edge = sent(shard), sent(subscriber)
    assert list(to_shard.deliveries.log_sequences) == [0, 0, 0, 0]
    assert list(delivered(to_edge.deliveries)) == [b"1", b"2", b"3", b"4"]
    confirm(shard, to_shard)
    confirm(subscriber, to_edge)
    assert acknowledged(publisher) == [11, 14]


def test_a_run_of_a_kept_p2p_topic_goes_to_the_shard_of_its_receiver(router_of_shard: Router) -> None:
    router = router_of_shard
    log = FakeLog()
    router.begin(log)
    publisher, subscriber, shard = join(router, "publisher"), join(router, "subscriber"), join_shard(router)
    router._shards.link(shard)
    take(subscriber, added_targets=[router_pb2.Target(target_id=1, instance_id="i", client_id="c")])
    publish(publisher, topic="a/p2p/c", topic_kind=P2P | KEPT_IF_OFFLINE)
    assert router.kept.messages == 4
    put(router, log, is_apart=True)
    frame = sent(shard)
    assert list(frame.deliveries.payloads) == [b"1", b"2", b"3", b"4"]
    assert frame.deliveries.flags == bytes([1 | KEPT_P2P] * 4)
    assert not subscriber.pending_bytes
    confirm(shard, frame)
    assert acknowledged(publisher) == [11, 14]
    assert not router.kept.streams.pending("i")
    publish(publisher, topic="a/p2p/c", topic_kind=P2P | KEPT_IF_OFFLINE, kind=CLEAN_SESSION)  # is not kept
    assert list(sent(subscriber).deliveries.payloads) == [PACKETS, b"4"]


def test_a_run_without_a_log_is_kept_while_filters_of_shards_are_unknown(router_of_shard: Router) -> None:
    log = FakeLog()
    router_of_shard.begin(log)
    publisher = join(router_of_shard, "publisher")
    publish(publisher)
    assert router_of_shard.kept.messages == 4
    assert not acknowledged(publisher)
    store(router_of_shard, log, [1] * len(log.written))
    assert acknowledged(publisher) == [11, 14]


@pytest.mark.usefixtures("log")
def test_each_message_of_a_run_goes_to_one_member_of_a_shared_subscription(router: Router) -> None:
    publisher, one, two = join(router, "publisher"), join(router, "one"), join(router, "two")
    for edge in (one, two):
        member = router_pb2.Target(target_id=1, instance_id="i", topic_filter="a", share_name="x")
        take(edge, added_targets=[member])
    publish(publisher)
    frames = [sent(one), sent(two)]
    assert sorted(payload for frame in frames for payload in delivered(frame.deliveries)) == [b"1", b"2", b"3", b"4"]
    assert all(len(frame.deliveries.payloads) == 2 for frame in frames)
    confirm(one, frames[0])
    assert not acknowledged(publisher)
    router.leave(two)  # its messages go to the other member
    frame = sent(one)
    assert len(frame.deliveries.payloads) == 2
    confirm(one, frame)
    assert sorted(acknowledged(publisher)) == [11, 14]


def test_the_log_is_told_that_it_may_have_a_run(router: Router, log: FakeLog) -> None:
    publish(join(router, "e"), topic_kind=LOGGED, kind=REPEATED)
    assert log.repeats == [b"1", b"2", b"3", b"4"]


def test_publisher_of_runs_is_held_while_the_log_is_behind(router: Router, log: FakeLog) -> None:
    edge = join(router, "edge")
    columns: dict[str, Any] = {
        "payloads": [bytes(2 * HIGH), b""],
        "run_counts": [2],
        "run_payload_bytes": [HIGH - 1],
    }
    publish(edge, topic_kind=LOGGED, sequences=[1, 3], **columns)
    publish(edge, topic_kind=LOGGED, sequences=[11, 13], **columns)
    assert edge.is_held
    store(router, log, [1] * len(log.written))
    assert not edge.is_held
    assert acknowledged(edge) == [1, 3, 11, 13]


@pytest.mark.usefixtures("log")
def test_publisher_of_runs_is_held_for_a_slow_edge(router: Router) -> None:
    publisher, slow = join(router, "publisher"), join(router, "slow")
    subscribe(slow, 1, "a")
    publish(publisher, payloads=[bytes(HIGH), b""], run_counts=[2])
    assert publisher.is_held
    confirm(slow, sent(slow))
    assert not publisher.is_held


def test_runs_wait_for_the_beginning(router: Router) -> None:
    publisher, gone, subscriber = join(router, "publisher"), join(router, "gone"), join(router, "subscriber")
    publish(publisher)
    publish(gone)
    subscribe(subscriber, 1, "a")
    router.leave(gone)
    router.begin(FakeLog())
    frame = sent(subscriber)
    assert list(delivered(frame.deliveries)) == [b"1", b"2", b"3", b"4"]
    confirm(subscriber, frame)
    assert acknowledged(publisher) == [11, 14]


def test_a_run_stored_after_its_edge_left_is_delivered(router: Router, log: FakeLog) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    subscribe(subscriber, 1, "a")
    publish(publisher, topic_kind=LOGGED, kind=DELIVERED)
    router.leave(publisher)
    newcomer = join(router, "newcomer")
    assert newcomer.slot == publisher.slot
    store(router, log, [1] * len(log.written))
    frame = sent(subscriber)
    assert list(delivered(frame.deliveries)) == [b"1", b"2", b"3", b"4"]
    confirm(subscriber, frame)
    assert not acknowledged(publisher)
    assert not acknowledged(newcomer)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    "changed",
    [
        {"run_counts": []},
        {"run_payload_bytes": [1, 1]},
        {"run_counts": [0]},
        {"run_counts": [4]},
        {"run_counts": [7]},
        {"run_counts": [2**32 - 1]},
        {"run_payload_bytes": [2]},
        {"run_payload_bytes": [2**32 - 1]},
        {"flags": bytes([RUN | 1 | RETAIN, 1])},
        {"flags": bytes([RUN | 2, 1])},
        {"flags": bytes([RUN | 3, 1])},
        {"flags": bytes([RUN, 1]), "topic_flags": bytes([P2P])},
        {"payloads": [b"", b"4"]},
        {"sequences": [0, 14]},
    ],
)
def test_a_run_that_breaks_the_contract_is_refused(router: Router, changed: dict[str, object]) -> None:
    edge = join(router, "edge")
    with pytest.raises(StreamContractError):
        publish(edge, **changed)  # type: ignore[arg-type]  # as above
    assert edge.link.confirmed_through == 0
    assert not router.published


class World:
    """A publisher, two subscribers and a log; what is acknowledged is safe at that moment."""

    def __init__(self, topic_kind: int, kind: int) -> None:
        self.topic_kind = topic_kind
        self.kind = kind
        self.router = new_router()
        self.log = FakeLog()
        self.router.begin(self.log)
        self.publisher = join(self.router, "publisher")
        self.subscribers = [join(self.router, name) for name in ("one", "two")]
        for subscriber in self.subscribers:
            subscribe(subscriber, 1, "a")
        if kind & DELIVERED:
            subscribe(self.publisher, 1, "a")
        self.entries: dict[int, list[bytes]] = {}
        self.number = 0
        self.stored: set[bytes] = set()
        self.confirmed: dict[EdgeLink, list[bytes]] = {each: [] for each in self.subscribers}
        self.seen = 0

    def publish(self, count: int) -> None:
        """Publish so many messages as a run, or one alone (0)."""
        messages = [b"%04d" % number for number in range(self.number, self.number + max(count, 1))]
        self.entries[self.number + 1] = messages
        columns: dict[str, Any] = {
            "topic_indexes": [0],
            "sequences": [self.number + 1],
            "payloads": [b"".join(b"head" + each for each in messages) if count else messages[0]],
            "flags": bytes([1 | self.kind | (RUN if count else 0)]),
            "publisher_indexes": [0],
            "run_counts": [count] if count else [],
            "run_payload_bytes": [4] if count else [],
        }
        self.number += len(messages)
        publish(self.publisher, topic_kind=self.topic_kind, **columns)

    def store(self, *, is_apart: bool) -> None:
        """Store what was written first, or the first message of it."""
        if not self.log.written:
            return
        payload, token = self.log.written.pop(0)
        if isinstance(token, RunPublication):
            if is_apart:
                parts = [Part(token, offset) for offset in range(token.run.count)]
                payloads = token.run.payloads()
                self.log.written[:0] = zip(payloads, parts, strict=True)
                payload, token = self.log.written.pop(0)
            else:
                self.stored.update(token.run.payloads())
        self.stored.add(payload)
        self.router.reports.stored(token, 1, False)

    def confirm(self, index: int) -> None:
        """Let a subscriber confirm what it is to get."""
        edge = self.subscribers[index]
        if not edge.is_gone and (frame := edge.link._next_message()) is not None:
            self.confirmed[edge] += delivered(frame.deliveries)
            edge.link._drop_confirmed(frame.frame)

    def leave(self, index: int) -> None:
        """Let a subscriber leave for good."""
        edge = self.subscribers[index]
        if not edge.is_gone:
            self.router.leave(edge)

    def check(self) -> None:
        """Look at what was acknowledged since the last time."""
        for sequence in acknowledged(self.publisher)[self.seen :]:
            messages = self.entries[sequence]
            assert not self.topic_kind or self.stored.issuperset(messages)
            for edge, confirmed in self.confirmed.items():
                assert edge.is_gone or set(confirmed).issuperset(messages)
        self.seen = len(acknowledged(self.publisher))

    def end(self) -> None:
        """Let everything come to its end, and look at the whole."""
        while self.log.written:
            self.store(is_apart=False)
        for index in range(len(self.subscribers)):
            self.confirm(index)
        self.check()
        assert sorted(acknowledged(self.publisher)) == list(self.entries)
        everything = [each for messages in self.entries.values() for each in messages]
        for edge, confirmed in self.confirmed.items():
            assert confirmed == everything[: len(confirmed)]
            assert edge.is_gone or confirmed == everything
        assert self.router.published == self.number
        assert not self.publisher.pending_bytes


STEPS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from([0, 1, 2, 5])),
    st.tuples(st.sampled_from(["store", "store apart"]), st.just(0)),
    st.tuples(st.just("confirm"), st.integers(0, 1)),
    st.tuples(st.just("leave"), st.integers(0, 1)),
)


@given(
    steps=st.lists(STEPS, max_size=30),
    kinds=st.sampled_from([(0, 0), (LOGGED, 0), (LOGGED, DELIVERED), (LOGGED, REPEATED)]),
)
def test_what_is_acknowledged_is_stored_and_delivered_in_order(
    steps: list[tuple[str, int]], kinds: tuple[int, int]
) -> None:
    world = World(*kinds)
    for step, number in steps:
        if step == "publish":
            world.publish(number)
        elif step == "confirm":
            world.confirm(number)
        elif step == "leave":
            world.leave(number)
        else:
            world.store(is_apart=step == "store apart")
        world.check()
    world.end()
