"""The states of a topic with a log whose messages this edge gives to its own subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from services.edge.columns import REPEATED, Unacknowledged
from services.edge.credentials import Credentials
from services.edge.hub import Hub
from services.edge.local_delivery import TAKEN, LocalDelivery
from services.edge.mqtt.codec import encode
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policies import Policies
from services.edge.policy import FLAG_LOGGED, TopicRule
from services.edge.ports import Client, Interest, TokenChecker
from services.edge.roster import Roster
from services.edge.routes import DELIVERED, LAST_ASK, LocalRoute
from tests.unit.edge.test_short_way import FakeClient
from weimq.router.v1 import router_pb2


class Edge:
    """Local delivery with what is around it: the link keeps what is unacknowledged, as `RouterLink` does."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        loop = SimpleNamespace(call_later=lambda _, call: self.timers.append(call))  # no more is needed
        self.hub = Hub(cast("asyncio.AbstractEventLoop", loop))
        self.hub.router = self  # type: ignore[assignment]  # no more is needed
        self.sent: list[tuple[bytes, int]] = []
        self.asked: list[str] = []
        self.client = FakeClient()
        self.local = LocalDelivery(self.hub, self._ask, self._send)
        self.rule = TopicRule("i", "p/a", FLAG_LOGGED)
        self.unacknowledged: list[Unacknowledged] = []
        self.number = 0

    def add_target(self, target: Interest) -> None:
        if target.topic_filter:
            self.local.on_target(target)

    def remove_target(self, target_id: int) -> None:
        pass

    def _ask(self, route: LocalRoute) -> None:
        assert route.is_logged
        self.asked.append(route.topic)

    def _send(
        self, client: Client, rule: TopicRule, publication: Publish | PublishRun, _clean_session: bool, flags: int
    ) -> None:
        payloads = publication.payloads() if isinstance(publication, PublishRun) else [publication.payload]
        self.sent += [(payload, flags) for payload in payloads]
        if publication.qos:
            self.unacknowledged.append(Unacknowledged(client, rule, publication, flags | publication.qos))

    def publish(self, count: int = 1, qos: int = 1, *, retain: bool = False) -> None:
        for _ in range(count):
            self.number += 1
            packet = Publish("p/a", b"%d" % self.number, qos, retain, False, self.number if qos else 0)
            flags = self.local.take(self.client, self.rule, packet, True)
            if flags != TAKEN:
                self._send(self.client, self.rule, packet, True, flags)

    def publish_run(self, count: int, qos: int = 1) -> None:
        numbers = range(self.number + 1, self.number + count + 1)
        self.number += count
        packets = [Publish("p/a", b"%d" % n, qos, False, False, n if qos else 0) for n in numbers]
        frames = b"".join(map(encode, packets))
        run = PublishRun("p/a", frames, count, len(b"%d" % self.number), list(numbers) if qos else None)
        flags = self.local.take_run(self.rule, run)
        if flags != TAKEN:
            for each in [run] if qos else packets:
                self._send(self.client, self.rule, each, True, flags)
            return
        for packet in packets:
            flags = self.local.take(self.client, self.rule, packet, True)
            if flags != TAKEN:
                self._send(self.client, self.rule, packet, True, flags)

    def acknowledge(self) -> None:
        """Let the router acknowledge all that it got."""
        entries, self.unacknowledged = self.unacknowledged, []
        for entry in entries:
            entry.acknowledged()
            if entry.route is not None:
                self.local.settle(entry.route)

    def subscribe(self, topic_filter: str = "p/a", qos: int = 1, *, skips_acknowledged: bool = False) -> int:
        self.hub.subscribe(self.client, topic_filter, qos, skips_acknowledged=skips_acknowledged)
        return self.hub.interests()[-1].target_id

    def answer(self, *target_ids: int, is_local: bool = True) -> None:
        self.local.answer(
            router_pb2.RouteAnswer(
                instance_id="i", topic="p/a", is_local=is_local, is_logged=True, target_ids=target_ids
            )
        )

    def become_local(self) -> None:
        """Publish until the topic is served here, and forget all that was sent until then."""
        target = self.subscribe()
        self.publish(8)
        self.acknowledge()
        self.answer(target)
        self.acknowledge()
        self.sent.clear()
        self.client.received.clear()

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.client.received]


def _numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last + 1)]


def _sent(first: int, last: int, flags: int = 0) -> list[tuple[bytes, int]]:
    return [(payload, flags) for payload in _numbers(first, last)]


@pytest.fixture
def edge() -> Edge:
    return Edge()


def test_a_topic_that_is_seldom_used_is_left_to_the_router(edge: Edge) -> None:
    edge.publish(7)
    assert (edge.sent, edge.asked) == (_sent(1, 7), [])


def test_messages_wait_for_the_answer_and_for_those_before(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(12)
    assert (edge.sent, edge.asked) == (_sent(1, 7), ["p/a"])
    edge.answer(target)
    edge.publish(1)
    assert edge.sent == _sent(1, 7)  # some that were sent before may still come from the router
    assert edge.local.held_bytes
    edge.acknowledge()
    edge.publish(1)
    assert edge.sent == _sent(1, 7) + _sent(8, 14, DELIVERED)
    assert edge.payloads == _numbers(8, 14)
    assert not edge.local.held_bytes
    assert edge.client.answered == [(n, 1) for n in range(1, 8)]  # the router has yet to answer the others


def test_messages_of_qos_0_wait_for_the_answer_only(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(10, qos=0)
    assert edge.payloads == []
    edge.answer(target)
    assert edge.payloads == _numbers(8, 10)
    assert edge.sent == _sent(1, 7) + _sent(8, 10, DELIVERED)


def test_messages_wait_no_longer_for_a_log_that_takes_nothing(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(1)
    edge.publish(9, qos=0)
    edge.answer(target)
    assert edge.sent == _sent(1, 7)
    (give_up,) = edge.timers
    give_up()
    assert edge.sent == _sent(1, 10)
    assert not edge.local.held_bytes
    edge.publish(LAST_ASK, qos=0)
    assert len(edge.asked) == 1
    edge.acknowledge()
    edge.publish(1, qos=0)
    assert len(edge.asked) == 2
    edge.answer(target)
    give_up()  # it had its time
    edge.publish(1, qos=0)
    assert edge.sent[-1][1] == DELIVERED


def test_a_route_does_not_keep_a_client_that_is_gone(edge: Edge) -> None:
    edge.become_local()
    edge.publish(1)
    route = edge.rule.route
    assert [receiver for receiver, _ in route.receivers] == [edge.client]
    roster, nobody = Roster(), cast("TokenChecker", None)
    edge.hub.credentials = Credentials(
        roster=roster, policies=Policies(roster, lambda *_: ()), checker=nobody, release=lambda _: None
    )
    edge.hub.unsubscribe(edge.client, "p/a")
    edge.hub.sweep()
    assert route.receivers == []
    edge.subscribe()
    edge.publish(1)
    assert edge.payloads == [b"9", b"10"]


def test_a_message_is_sent_with_the_flag_also_when_nobody_here_wants_it(edge: Edge) -> None:
    edge.publish(7)
    edge.acknowledge()
    edge.publish(1)
    edge.answer()
    assert edge.sent[-1] == (b"8", DELIVERED)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_deliveries_have_the_lower_qos(edge: Edge, qos: int, granted: int) -> None:
    edge.become_local()
    edge.subscribe(qos=granted)
    edge.publish(qos=qos)
    assert edge.client.received == [(b"p/a", b"9", min(qos, granted))]


def test_a_no_sends_what_was_held_and_is_asked_about_later(edge: Edge) -> None:
    edge.publish(10)
    edge.answer(is_local=False)
    assert edge.sent == _sent(1, 10)
    edge.publish(63)
    assert len(edge.asked) == 1
    edge.publish(1)
    assert len(edge.asked) == 2


@pytest.mark.parametrize(("qos", "retain"), [(2, False), (0, True), (1, True)])
def test_what_needs_the_router_ends_it_in_every_state_and_order_is_kept(edge: Edge, qos: int, retain: bool) -> None:
    edge.become_local()
    edge.publish(1)
    edge.publish(1, qos, retain=retain)
    edge.publish(1)
    assert edge.payloads == [b"9"]
    assert edge.sent == [(b"9", DELIVERED), (b"10", 0), (b"11", 0)]

    asked = Edge()
    target = asked.subscribe()
    asked.publish(8)
    asked.publish(1, qos, retain=retain)
    asked.publish(1)
    asked.answer(target)
    assert (asked.payloads, asked.sent) == ([], _sent(1, 10))

    draining = Edge()
    target = draining.subscribe()
    draining.publish(8)
    draining.answer(target)
    draining.publish(1, qos, retain=retain)
    draining.publish(1)
    draining.acknowledge()
    assert (draining.payloads, draining.sent) == ([], _sent(1, 10))
    assert not draining.local.held_bytes


def test_a_topic_of_retained_messages_is_never_asked_for(edge: Edge) -> None:
    for _ in range(LAST_ASK):
        edge.publish(2)
        edge.publish(1, retain=True)
    assert edge.asked == []


def test_new_targets_and_receivers_get_what_follows(edge: Edge) -> None:
    edge.become_local()
    other, third = FakeClient(), FakeClient()
    edge.hub.subscribe(other, "p/a", 0)
    edge.publish(1)
    edge.hub.subscribe(third, "p/#", 1)
    edge.publish(1)
    edge.hub.unsubscribe(edge.client, "p/a")
    edge.hub.unsubscribe(third, "p/#")
    edge.publish(1)
    assert edge.payloads == [b"9", b"10"]
    assert [payload for _, payload, _ in other.received] == _numbers(9, 11)
    assert [payload for _, payload, _ in third.received] == [b"10"]
    assert edge.sent == _sent(9, 11, DELIVERED)


def test_a_target_that_is_added_before_the_answer_counts(edge: Edge) -> None:
    edge.publish(7)
    edge.acknowledge()
    edge.publish(1)
    edge.subscribe("+/a")
    edge.answer()
    assert edge.payloads == [b"8"]


def test_a_client_with_several_targets_gets_a_message_once(edge: Edge) -> None:
    edge.become_local()
    edge.subscribe("p/#", 0)
    edge.subscribe("#", 1)
    edge.publish(1)
    assert edge.client.received == [(b"p/a", b"9", 1)]


def test_targets_that_are_gone_are_forgotten(edge: Edge) -> None:
    edge.become_local()
    for _ in range(100):
        edge.subscribe("+/a")
        edge.hub.unsubscribe(edge.client, "+/a")
    edge.publish(1)
    assert len(edge.rule.route.target_ids) <= 2
    assert edge.payloads == [b"9"]


def test_shared_subscriptions_are_left_to_the_router(edge: Edge) -> None:
    edge.become_local()
    edge.hub.share("i", "s", "p/a").receivers[FakeClient()] = 2
    edge.publish(1)
    assert edge.sent == _sent(9, 9, DELIVERED)
    assert edge.payloads == [b"9"]


def test_a_target_of_a_persistent_session_ends_it_in_every_state(edge: Edge) -> None:
    edge.become_local()
    edge.subscribe("p/b", skips_acknowledged=True)
    edge.publish(1)
    edge.subscribe("p/+", skips_acknowledged=True)
    edge.publish(1)
    assert edge.sent == [(b"9", DELIVERED), (b"10", 0)]

    asked = Edge()
    target = asked.subscribe()
    asked.publish(8)
    asked.subscribe("p/a", skips_acknowledged=True)
    asked.answer(target)
    assert (asked.payloads, asked.sent) == ([], _sent(1, 8))

    draining = Edge()
    target = draining.subscribe()
    draining.publish(8)
    draining.answer(target)
    draining.subscribe("p/a", skips_acknowledged=True)
    assert (draining.payloads, draining.sent) == ([], _sent(1, 8))


def test_a_new_router_gets_what_waited_for_the_answer_of_the_old_one(edge: Edge) -> None:
    edge.publish(10)
    edge.local.start_anew()
    assert edge.sent == _sent(1, 10)
    assert not edge.local.held_bytes


def test_it_goes_on_over_a_change_of_routers(edge: Edge) -> None:
    edge.become_local()
    edge.local.start_anew()
    edge.publish(1)
    assert (edge.payloads, edge.sent) == ([b"9"], _sent(9, 9, DELIVERED))


def test_what_drains_waits_for_a_new_router_too(edge: Edge) -> None:
    target = edge.subscribe()
    edge.publish(9)
    edge.answer(target)
    edge.local.start_anew()  # it gets the unacknowledged again, and delivers them
    assert edge.payloads == []
    edge.acknowledge()
    assert edge.payloads == [b"8", b"9"]


def test_the_flag_goes_with_a_message_that_is_sent_again() -> None:
    rule = TopicRule("i", "p/a", FLAG_LOGGED)
    entry = Unacknowledged(FakeClient(), rule, Publish("p/a", b"", 1, False, False, 1), 1 | DELIVERED)
    assert entry.flags | REPEATED == 1 | DELIVERED | REPEATED


def test_busy_topics_are_remembered_beyond_the_bound(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.edge.routes.MAX_ROUTES", 2)
    target = edge.subscribe()
    edge.publish(8)  # seven of them are under way

    def flood() -> None:
        for n in range(10):
            rule = TopicRule("i", f"p/b{n}", FLAG_LOGGED)
            edge.local.take(edge.client, rule, Publish(rule.topic, b"", 0, False, False, 0), True)

    flood()
    edge.answer(target)
    assert edge.payloads == []
    edge.acknowledge()
    assert edge.payloads == [b"8"]
    flood()
    edge.publish(1)
    assert edge.sent[-1] == (b"9", 0)  # it was forgotten


@pytest.mark.parametrize("qos", [0, 1])
def test_runs_are_delivered_here_and_sent(edge: Edge, qos: int) -> None:
    target = edge.subscribe()
    edge.publish_run(9, qos)
    edge.acknowledge()
    assert edge.asked == ["p/a"]
    edge.answer(target)
    edge.publish(1, qos)
    edge.publish_run(5, qos)
    assert edge.payloads == _numbers(8, 15)
    assert {granted for *_, granted in edge.client.received} == {qos}
    assert edge.sent == _sent(1, 7) + _sent(8, 15, DELIVERED)
    assert len(edge.unacknowledged) == (4 if qos else 0)  # what was held back goes one by one


def test_runs_count_as_so_many_messages(edge: Edge) -> None:
    edge.number = 10
    target = edge.subscribe()
    edge.publish_run(7)
    assert (edge.sent, edge.asked, len(edge.unacknowledged)) == (_sent(11, 17), [], 1)
    edge.publish_run(3)
    assert (edge.sent, edge.asked) == (_sent(11, 17), ["p/a"])
    edge.answer(target)
    assert edge.payloads == []  # the run before is under way, with all of its messages
    edge.acknowledge()
    assert edge.payloads == _numbers(18, 20)
    assert edge.client.answered == [(n, 1) for n in range(11, 18)]
    assert not edge.rule.route.under_way


def test_runs_go_on_their_way_while_a_log_takes_nothing(edge: Edge) -> None:
    edge.number = 1000  # those of a run have one length
    target = edge.subscribe()
    edge.publish_run(9)
    edge.answer(target)
    edge.timers[0]()  # it gave up, and asks again when something is acknowledged
    edge.publish_run(LAST_ASK)
    assert (len(edge.asked), len(edge.sent)) == (1, 9 + LAST_ASK)
    edge.acknowledge()
    edge.publish_run(2)
    assert len(edge.asked) == 2
    assert edge.local.held_bytes


def test_a_long_topic_is_left_to_the_router(edge: Edge) -> None:
    topic = "p/" + "x" * 600
    rule = TopicRule("i", topic, FLAG_LOGGED)
    for _ in range(20):
        assert edge.local.take(edge.client, rule, Publish(topic, b"", 0, False, False, 0), True) == 0
    assert edge.asked == []


@pytest.mark.parametrize("qos", [0, 1])
def test_runs_are_delivered_here_once_messages_are(edge: Edge, qos: int) -> None:
    frames = b"".join(
        encode(Publish("p/a", payload, qos, False, False, n)) for n, payload in ((qos, b"a"), (qos, b"b"))
    )
    run = PublishRun("p/a", frames, 2, 1, [1, 1] if qos else None)
    assert edge.local.take_run(edge.rule, run) == 0, "nothing is known of the topic"
    edge.publish(8)
    assert edge.local.take_run(edge.rule, run) == TAKEN, "it is asked for"
    edge.answer(is_local=False)
    edge.publish(64)
    edge.become_local()
    assert edge.local.take_run(edge.rule, run) == DELIVERED
    assert edge.client.received == [(b"p/a", b"a", qos), (b"p/a", b"b", qos)]
