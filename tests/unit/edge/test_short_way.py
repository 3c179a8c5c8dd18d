"""The states of a topic that this edge may serve by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from typing_extensions import override

from services.edge import routes
from services.edge.hub import Hub, Receiver
from services.edge.mqtt.codec import encode
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import TopicRule
from services.edge.ports import Client, Interest
from services.edge.routes import LocalRoute
from services.edge.short_way import ShortWay
from weimq.router.v1 import router_pb2


class FakeRouter:
    """Takes interests."""

    def add_target(self, target: Interest) -> None:
        pass

    def remove_target(self, target_id: int) -> None:
        pass


class FakeClient(Receiver):
    """Publishes and subscribes."""

    def __init__(self) -> None:
        self.client_id = self.channel_id = "c"
        self.instance_id = "i"
        self.received: list[tuple[bytes, bytes, int]] = []
        self.answered: list[tuple[int, int]] = []

    @override
    def deliver(self, message: OutboundMessage, qos: int) -> None:
        self.received.append((message.topic, message.payload, qos))

    @override
    def on_published(self, packet_identifier: int, qos: int) -> None:
        self.answered.append((packet_identifier, qos))


class Edge:
    """The short way with what is around it."""

    def __init__(self) -> None:
        self.hub = Hub(cast("asyncio.AbstractEventLoop", None))
        self.hub.router = FakeRouter()  # type: ignore[assignment]  # no more is needed
        self.long: list[bytes] = []
        self.asked: list[str] = []
        self.client = FakeClient()
        self.short = ShortWay(self.hub, self._ask, self._send)
        self.rule = TopicRule("i", "p/a", 0)
        self.number = 0

    def _ask(self, route: LocalRoute) -> None:
        self.asked.append(route.topic)

    def _send(self, _client: Client, _rule: TopicRule, publication: Publish, _clean_session: bool, _flags: int) -> None:
        self.long.append(publication.payload)

    def publish(self, count: int = 1, qos: int = 1, *, retain: bool = False) -> None:
        for _ in range(count):
            self.number += 1
            packet = Publish("p/a", b"%d" % self.number, qos, retain, False, self.number if qos else 0)
            if not self.short.take(self.client, self.rule, packet, True):
                self._send(self.client, self.rule, packet, True, 0)

    def publish_run(self, count: int, qos: int = 0) -> None:
        numbers = range(self.number + 1, self.number + count + 1)
        frames = b"".join(encode(Publish("p/a", b"%02d" % n, qos, False, False, n if qos else 0)) for n in numbers)
        self.number += count
        run = PublishRun("p/a", frames, count, 2, list(numbers) if qos else None)
        if not self.short.take_run(self.client, self.rule, run, True):
            self.long += run.payloads()
            self.short.sent(self.rule, count)

    def subscribe(self, topic_filter: str = "p/a", qos: int = 1) -> int:
        self.hub.subscribe(self.client, topic_filter, qos)
        return self.hub.interests()[-1].target_id

    def answer(self, *target_ids: int, is_local: bool = True) -> None:
        self.short.answer(
            router_pb2.RouteAnswer(instance_id="i", topic="p/a", is_local=is_local, target_ids=target_ids)
        )

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.client.received]


def _numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last + 1)]


@pytest.fixture
def edge() -> Edge:
    return Edge()


def test_a_topic_that_is_seldom_used_goes_the_long_way(edge: Edge) -> None:
    edge.publish(7)
    assert (edge.long, edge.asked) == (_numbers(1, 7), [])


def test_messages_wait_for_the_answer_and_are_delivered_here_in_order(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(12)
    assert (edge.long, edge.asked) == (_numbers(1, 8), ["p/a"])
    assert edge.short.held_bytes
    edge.answer(target)
    edge.publish(2)
    assert edge.long == _numbers(1, 8)
    assert edge.payloads == _numbers(9, 14)
    assert edge.client.answered == [(n, 1) for n in range(9, 15)]
    assert not edge.short.held_bytes


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_deliveries_have_the_lower_qos(edge: Edge, qos: int, granted: int) -> None:
    target = edge.subscribe(qos=granted)
    edge.publish(8)
    edge.answer(target)
    edge.publish(qos=qos)
    assert edge.client.received == [(b"p/a", b"9", min(qos, granted))]
    assert edge.client.answered == ([(9, qos)] if qos else [])


def test_a_no_sends_what_was_held_the_long_way_and_is_asked_about_later(edge: Edge) -> None:
    edge.publish(10)
    edge.answer(is_local=False)
    assert edge.long == _numbers(1, 10)
    edge.publish(63 - 2)
    assert len(edge.asked) == 1
    edge.publish(20)
    assert len(edge.asked) == 2


def test_a_revoked_topic_goes_the_long_way(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(8)
    edge.answer(target)
    edge.publish(1)
    edge.short.revoke("i", "p/a")
    edge.publish(1)
    assert (edge.payloads, edge.long) == ([b"9"], [*_numbers(1, 8), b"10"])


def test_what_changes_before_the_answer_makes_it_a_no(edge: Edge) -> None:
    target = edge.subscribe()
    changes: list[Callable[[], None]] = [
        lambda: edge.short.revoke("i", "p/a"),
        lambda: edge.short.on_target("i", "p/#"),
    ]
    for change in changes:
        while not edge.asked:
            edge.publish(1)
        edge.publish(1)
        change()
        edge.answer(target)
        edge.asked.clear()
    assert edge.long == _numbers(1, edge.number)


def test_a_new_target_that_selects_the_topic_ends_the_short_way(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(8)
    edge.answer(target)
    edge.short.on_target("i", "p/b")
    edge.short.on_target("other", "p/a")
    edge.publish(1)
    edge.short.on_target("i", "+/a")
    edge.publish(1)
    assert (edge.payloads, edge.long[8:]) == ([b"9"], [b"10"])


def test_a_broken_stream_ends_the_short_way(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(8)
    edge.answer(target)
    edge.short.on_broken()
    edge.publish(1)
    assert (edge.payloads, edge.long[8:]) == ([], [b"9"])


def test_a_new_router_gets_what_was_held(edge: Edge) -> None:
    edge.publish(10)
    edge.short.on_broken()  # the old one may still answer over the next stream
    assert edge.long == _numbers(1, 8)
    edge.short.start_anew()
    edge.publish(1)
    assert edge.long == _numbers(1, 11)
    assert not edge.short.held_bytes


def test_retained_messages_go_the_long_way_and_so_do_those_after(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(8)
    edge.answer(target)
    edge.publish(1, retain=True)
    edge.publish(1)
    assert (edge.payloads, edge.long[8:]) == ([], [b"9", b"10"])


def test_a_retained_message_that_is_held_makes_the_answer_a_no(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(9)
    edge.publish(1, retain=True)
    edge.answer(target)
    assert (edge.payloads, edge.long) == ([], _numbers(1, 10))


def test_receivers_are_those_of_now(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(8)
    edge.answer(target)
    other = FakeClient()
    edge.hub.subscribe(other, "p/a", 0)
    edge.publish(1)
    edge.hub.unsubscribe(edge.client, "p/a")
    edge.publish(1)
    assert edge.payloads == [b"9"]
    assert other.received == [(b"p/a", b"9", 0), (b"p/a", b"10", 0)]


def test_topics_that_are_remembered_are_bounded(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_ROUTES", 2)
    target = edge.subscribe()
    edge.publish(8)
    edge.answer(target)
    for topic in ("p/b", "p/c"):
        rule = TopicRule("i", topic, 0)
        edge.short.take(edge.client, rule, Publish(topic, b"", 0, False, False, 0), True)
    edge.publish(1)
    assert edge.payloads == []  # it was forgotten
    assert edge.long[8:] == [b"9"]


def test_a_long_topic_is_not_remembered(edge: Edge) -> None:
    topic = "p/" + "x" * 600
    rule = TopicRule("i", topic, 0)
    for _ in range(20):
        assert not edge.short.take(edge.client, rule, Publish(topic, b"", 0, False, False, 0), True)
    assert edge.asked == []


@pytest.mark.parametrize("qos", [0, 1])
def test_runs_keep_the_order_on_every_way(edge: Edge, qos: int) -> None:
    target = edge.subscribe()
    first = 9  # as many messages as it takes to ask, and all of the run
    edge.publish_run(first, qos)
    assert edge.asked == ["p/a"]
    edge.publish_run(3, qos)
    assert edge.client.received == []
    edge.answer(target)
    edge.publish_run(4, qos)
    edge.short.revoke("i", "p/a")
    edge.publish_run(2, qos)
    numbers = [b"%02d" % n for n in range(1, 19)]
    assert edge.long == numbers[:first] + numbers[16:]
    assert edge.client.received == [(b"p/a", number, qos) for number in numbers[first:16]]
    assert edge.client.answered == ([(n, 1) for n in range(first + 1, 17)] if qos else [])
    assert edge.short.delivered == 16 - first


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_runs_are_delivered_at_the_lower_qos(edge: Edge, qos: int, granted: int) -> None:
    target = edge.subscribe(qos=granted)
    edge.publish(8)
    edge.answer(target)
    edge.publish_run(2, qos)
    assert edge.client.received == [(b"p/a", b"%02d" % n, min(qos, granted)) for n in (9, 10)]
    assert edge.client.answered == [(9, qos), (10, qos)]
