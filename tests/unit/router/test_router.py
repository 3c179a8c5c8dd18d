"""Back-pressure, refusals and acknowledgements, without a stream between."""

from __future__ import annotations

import pytest

from services.common.errors import StreamContractError
from services.router.domain.columns import LOGGED
from services.router.edge_link import EdgeLink
from services.router.kept import Kept
from services.router.publisher import Checked, ExternalPublisher
from services.router.retained import Retained
from services.router.router import Router
from services.router.shards import Shards
from weimq.router.v1 import router_pb2

HIGH = 10_000
LOW = 5_000
RETAIN = 4
REPEATED = 8
RUN = 32


class FakeLog:
    """Stores nothing until told."""

    def __init__(self) -> None:
        self.is_connected = True
        self.written: list[tuple[bytes, object]] = []
        self.repeats: list[bytes] = []

    @property
    def backlog_bytes(self) -> int:
        return sum(len(payload) for payload, _ in self.written)

    def is_stuck(self, subject: str) -> bool:
        return False

    def probe(self, subject: str) -> None:
        pass

    def push(self) -> None:
        pass

    def write(self, subject: str, payload: bytes, headers: dict[str, str], token: object) -> None:
        self.written.append((payload, token))

    def write_lines(
        self,
        subject: str,
        payload: bytes,
        message_id: str,
        lines: bytes,
        token: object,
        may_repeat: bool,
        is_found: bool,
    ) -> None:
        if may_repeat:
            self.repeats.append(payload)
        self.written.append((payload, token))

    def write_run(
        self,
        subject: str,
        packets: bytes,
        count: int,
        payload_bytes: int,
        ids: str,
        first: int,
        lines: bytes,
        token: object,
    ) -> None:
        self.written.append((packets, token))

    def store(self, router: Router) -> None:
        _, token = self.written.pop(0)
        if token is not None:
            router.reports.stored(token, 1, False)


def new_router(shards: Shards | None = None, high_bytes: int = HIGH, low_bytes: int = LOW) -> Router:
    return Router(
        retained=Retained(max_messages=100, max_bytes=100_000),
        kept=Kept(0),
        shards=shards or Shards(0),
        high_bytes=high_bytes,
        low_bytes=low_bytes,
    )


@pytest.fixture
def router() -> Router:
    return new_router()


@pytest.fixture
def log(router: Router) -> FakeLog:
    made = FakeLog()
    router.begin(made)
    return made


def join(router: Router, name: str) -> EdgeLink:
    edge = EdgeLink(
        edge_id=name,
        incarnation=f"{name}.1",
        router_incarnation="r",
        slot=router.new_slot(),
        take=router.take,
        confirmed=router.on_confirmed,
    )
    router.join(edge)
    return edge


def take(edge: EdgeLink, **fields: object) -> None:
    """Let the edge's next frame arrive."""
    frame = edge.link.received_through + 1
    edge.link.received_through = frame
    edge._take(router_pb2.LinkRequest(frame=frame, **fields))  # type: ignore[arg-type]


def subscribe(edge: EdgeLink, target_id: int, topic_filter: str) -> None:
    take(edge, added_targets=[router_pb2.Target(target_id=target_id, instance_id="i", topic_filter=topic_filter)])


def publish(edge: EdgeLink, payload: bytes, *, qos: int = 1, is_logged: bool = False, sequence: int = 1) -> None:
    take(
        edge,
        publishes=router_pb2.PublishBatch(
            instances=["i"],
            topics=["a"],
            topic_instances=[0],
            topic_flags=bytes([is_logged]),
            publishers=["c"],
            topic_indexes=[0],
            sequences=[sequence],
            payloads=[payload],
            flags=bytes([qos]),
            publisher_indexes=[0],
        ),
    )


def sent(edge: EdgeLink) -> router_pb2.LinkResponse:
    """Return the next frame to the edge, as its link would send it."""
    message = edge.link._next_message()
    assert message is not None
    return message


@pytest.mark.usefixtures("log")
def test_publisher_of_a_slow_edge_is_held_until_it_confirmed(router: Router) -> None:
    publisher, slow, other = join(router, "publisher"), join(router, "slow"), join(router, "other")
    subscribe(slow, 1, "a")
    publish(publisher, bytes(HIGH))
    assert slow.is_congested
    assert publisher.is_held
    assert publisher.link.confirmed_through == 0
    publish(other, b"")
    assert other.link.confirmed_through == 0  # it sends to the slow edge, too
    subscribe(other, 1, "b")
    assert other.link.confirmed_through == 0  # confirmations are in order
    frame = sent(slow)
    assert frame.deliveries.payloads == [bytes(HIGH), b""]
    slow.link._drop_confirmed(frame.frame)
    assert not slow.is_congested
    assert publisher.link.confirmed_through == 1
    assert other.link.confirmed_through == 2
    assert sent(publisher).acknowledged_sequences == [1]


@pytest.mark.usefixtures("log")
def test_publisher_that_sends_elsewhere_is_not_held(router: Router) -> None:
    publisher, slow, other = join(router, "publisher"), join(router, "slow"), join(router, "other")
    subscribe(slow, 1, "a")
    publish(publisher, bytes(HIGH + 1))
    subscribe(other, 1, "b")
    assert publisher.is_held
    assert other.link.confirmed_through == 1


@pytest.mark.usefixtures("log")
def test_slow_edge_that_leaves_frees_its_publishers(router: Router) -> None:
    publisher, slow = join(router, "publisher"), join(router, "slow")
    subscribe(slow, 1, "a")
    publish(publisher, bytes(HIGH + 1))
    router.leave(slow)
    assert publisher.link.confirmed_through == 1
    assert sent(publisher).acknowledged_sequences == [1]
    publish(publisher, b"", sequence=2)
    assert sent(publisher).acknowledged_sequences == [2]


def test_publishers_are_held_while_the_log_is_behind(router: Router, log: FakeLog) -> None:
    edge = join(router, "edge")
    publish(edge, bytes(HIGH + 1), is_logged=True)
    assert edge.link.confirmed_through == 1
    publish(edge, b"next", is_logged=True, sequence=2)
    assert edge.link.confirmed_through == 1
    publish(edge, b"at most once", is_logged=True, qos=0)
    assert edge.link.confirmed_through == 1
    log.store(router)
    assert edge.link.confirmed_through == 3
    log.store(router)
    assert sent(edge).acknowledged_sequences == [1, 2]
    assert router.unlogged_messages == 0


def test_qos_0_passes_a_log_that_is_away(router: Router, log: FakeLog) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    subscribe(subscriber, 1, "a")
    publish(publisher, bytes(HIGH + 1), is_logged=True)
    log.is_connected = False
    publish(publisher, b"live", is_logged=True, qos=0)
    assert publisher.link.confirmed_through == 2
    assert router.unlogged_messages == 1
    assert sent(subscriber).deliveries.payloads == [b"live"]
    publish(publisher, b"safe", is_logged=True, sequence=2)
    assert publisher.link.confirmed_through == 2


def test_message_that_the_log_can_never_store_is_delivered_all_the_same(router: Router, log: FakeLog) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    subscribe(subscriber, 1, "a")
    publish(publisher, b"too long a topic", is_logged=True)
    _, token = log.written.pop()
    router.reports.failed(token, "too large")
    assert router.reports.refused_messages == 1
    frame = sent(subscriber)
    assert frame.deliveries.payloads == [b"too long a topic"]
    subscriber.link._drop_confirmed(frame.frame)
    assert sent(publisher).acknowledged_sequences == [1]


def test_message_stored_after_its_edge_left_is_delivered(router: Router, log: FakeLog) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    subscribe(subscriber, 1, "a")
    publish(publisher, b"payload", is_logged=True, qos=2)
    router.leave(publisher)
    newcomer = join(router, "newcomer")
    assert newcomer.slot == publisher.slot
    log.store(router)
    frame = sent(subscriber)
    assert frame.deliveries.payloads == [b"payload"]
    assert frame.deliveries.origins == ["publisher.1"]
    subscriber.link._drop_confirmed(frame.frame)
    assert newcomer.link._next_message() is None


def test_nothing_is_routed_before_the_beginning(router: Router) -> None:
    publisher, subscriber, gone = join(router, "publisher"), join(router, "subscriber"), join(router, "gone")
    publish(publisher, b"1")
    publish(gone, b"dropped with its edge")
    publish(publisher, b"2", sequence=2)
    assert publisher.link.confirmed_through == 0
    subscribe(subscriber, 1, "a")
    assert subscriber.link.confirmed_through == 1
    router.leave(gone)
    router.begin(FakeLog())
    assert publisher.link.confirmed_through == 2
    assert sent(subscriber).deliveries.payloads == [b"1", b"2"]


@pytest.mark.usefixtures("log")
def test_deliveries_on_their_way_are_sent_again_when_the_edge_starts_anew(router: Router) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    subscribe(subscriber, 1, "a")
    publish(publisher, b"1")
    sent(subscriber)
    publish(publisher, b"2", sequence=2)
    subscriber.restart()
    first, second = sent(subscriber), sent(subscriber)
    assert [first.frame, second.frame] == [1, 2]
    assert [*first.deliveries.payloads, *second.deliveries.payloads] == [b"1", b"2"]
    subscriber.link._drop_confirmed(2)
    assert sent(publisher).acknowledged_sequences == [1, 2]
    assert subscriber.pending_bytes == 0


def test_publisher_of_retained_messages_is_held_while_they_are_not_stored(router: Router, log: FakeLog) -> None:
    edge = join(router, "edge")
    log.is_connected = False
    publish(edge, bytes(HIGH + 1), qos=RETAIN)  # QoS 0: its copy is written all the same
    assert edge.is_held
    log.store(router)
    assert not edge.is_held
    publish(edge, b"1", qos=1 | RETAIN, is_logged=True)
    log.store(router)  # in its log, and only then written once more
    assert not edge._acknowledged
    log.store(router)
    assert sent(edge).acknowledged_sequences == [1]


def ask(edge: EdgeLink, *query_ids: int) -> None:
    take(
        edge,
        retained_queries=[
            router_pb2.RetainedQuery(query_id=query_id, instance_id="i", topic_filter="#") for query_id in query_ids
        ],
    )


def test_edge_with_too_many_queries_is_held_until_they_are_answered(router: Router) -> None:
    edge = join(router, "edge")
    ask(edge, *range(1, HIGH // 256 + 2))
    assert edge.is_held
    router.begin(FakeLog())
    assert not edge.is_held
    assert not edge.pending_bytes - edge.delivery_bytes
    assert list(sent(edge).answered_query_ids) == list(range(1, HIGH // 256 + 2))


def test_queries_wait_for_confirmations_and_count_as_pending(router: Router, log: FakeLog) -> None:
    publisher, edge = join(router, "publisher"), join(router, "edge")
    publish(publisher, bytes(LOW), qos=RETAIN)
    log.store(router)
    ask(edge, 1, 2)
    assert edge.pending_bytes > edge.delivery_bytes > LOW
    first = sent(edge)
    assert first.deliveries.flags == bytes([RETAIN])
    assert first.answered_query_ids == [1]
    assert edge.owes
    edge.link._drop_confirmed(first.frame)
    assert sent(edge).answered_query_ids == [2]


def test_queries_of_an_edge_that_left_are_forgotten(router: Router) -> None:
    edge = join(router, "edge")
    ask(edge, *range(1, HIGH // 256 + 2))
    router.leave(edge)
    router.begin(FakeLog())
    assert not edge.queries
    assert not edge.pending_bytes


def publish_run(edge: EdgeLink, **changed: object) -> None:
    columns: dict[str, object] = {
        "instances": ["i"],
        "topics": ["a"],
        "topic_instances": [0],
        "topic_flags": bytes(1),
        "publishers": ["c"],
        "topic_indexes": [0, 0],
        "sequences": [1, 2],
        "payloads": [b"-1-2-3", b"4"],
        "flags": bytes([RUN, 0]),
        "publisher_indexes": [0, 0],
        "run_counts": [3],
        "run_payload_bytes": [1],
    }
    take(edge, publishes=router_pb2.PublishBatch(**{**columns, **changed}))  # type: ignore[arg-type]  # fields of the test


@pytest.mark.usefixtures("log")
def test_a_run_goes_on_as_it_is(router: Router) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    subscribe(subscriber, 1, "a")
    publish_run(publisher)
    deliveries = sent(subscriber).deliveries
    assert list(deliveries.payloads) == [b"-1-2-3", b"4"]
    assert deliveries.flags == bytes([RUN, 0])
    assert (list(deliveries.run_counts), list(deliveries.run_payload_bytes)) == ([3], [1])
    assert router.published == router.delivered(is_shard=False) == 4


@pytest.mark.usefixtures("log")
def test_each_message_of_a_run_goes_to_one_member_of_a_shared_subscription(router: Router) -> None:
    publisher, subscriber = join(router, "publisher"), join(router, "subscriber")
    members = [
        router_pb2.Target(target_id=number, instance_id="i", topic_filter="a", share_name="x") for number in (1, 2)
    ]
    take(subscriber, added_targets=members)
    publish_run(publisher)
    deliveries = sent(subscriber).deliveries
    assert list(deliveries.payloads) == [b"1", b"2", b"3", b"4"]
    assert sorted(deliveries.target_ids[index] for index in deliveries.topic_indexes) == [1, 1, 2, 2]


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    "changed",
    [
        {"run_counts": []},
        {"run_payload_bytes": [1, 1]},
        {"run_counts": [0]},
        {"run_counts": [4]},
        {"run_payload_bytes": [2]},
        {"flags": bytes([0, 0])},
        {"flags": bytes([RUN | RETAIN, 0])},
        {"topic_flags": bytes([1])},
    ],
)
def test_a_run_that_breaks_the_contract_is_refused(router: Router, changed: dict[str, object]) -> None:
    edge = join(router, "edge")
    with pytest.raises(StreamContractError):
        publish_run(edge, **changed)
    assert edge.link.confirmed_through == 0


def test_log_is_told_what_it_may_have_already(router: Router, log: FakeLog) -> None:
    edge = join(router, "e")
    publish(edge, b"new", is_logged=True)
    publish(edge, b"again", qos=1 | REPEATED, is_logged=True, sequence=2)
    message = router_pb2.PublishedMessage(instance_id="i", topic="a", payload=b"called", qos=1, message_id="m")
    ExternalPublisher(router).begin([Checked(message, LOGGED)])
    assert [payload for payload, _ in log.written] == [b"new", b"again", b"called"]
    assert log.repeats == [b"again", b"called"]
