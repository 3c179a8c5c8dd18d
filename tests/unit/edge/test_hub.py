"""Interests and deliveries of an edge, without I/O."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from typing_extensions import override

from services.edge import hub as hub_module
from services.edge.hub import Hub, Receiver
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.ports import Interest, Router


class FakeRouter:
    """Notes interests."""

    def __init__(self) -> None:
        self.targets: dict[int, str] = {}
        self.queries: list[int] = []

    def add_target(self, target: Interest) -> None:
        self.targets[target.target_id] = f"client {target.client_id}" if target.client_id else target.topic_filter

    def query_retained(self, query: Interest) -> int:
        self.queries.append(query.target_id)
        return 1

    def remove_target(self, target_id: int) -> None:
        del self.targets[target_id]


class FakeReceiver(Receiver):
    """Notes deliveries."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.channel_id = client_id
        self.instance_id = "i"
        self.flushed = 0
        self.forbidden = ""

    @override
    def may_receive(self, topic: str) -> bool:
        return topic != self.forbidden

    @override
    def deliver(self, message: OutboundMessage, qos: int) -> None:
        raise NotImplementedError

    @override
    def flush(self) -> None:
        self.flushed += 1


def _hub(loop: asyncio.AbstractEventLoop | None = None) -> tuple[Hub, FakeRouter]:
    hub = Hub(cast("asyncio.AbstractEventLoop", loop))
    router = FakeRouter()
    hub.router = cast("Router", router)
    return hub, router


def test_a_filter_is_registered_once_for_all_its_subscribers() -> None:
    hub, router = _hub()
    a, b = FakeReceiver("a"), FakeReceiver("b")
    hub.subscribe(a, "x/#", 1)
    hub.subscribe(b, "x/#", 0)
    assert list(router.targets.values()) == ["x/#"]
    (target_id,) = router.targets
    assert dict(hub.route([target_id], "x/y")) == {a: 1, b: 0}
    hub.unsubscribe(a, "x/#")
    hub.unsubscribe(a, "x/#")
    assert hub.route([target_id], "x/y") == [(b, 0)]
    hub.unsubscribe(b, "x/#")
    assert router.targets == {}
    assert hub.route([target_id], "x/y") == []


def test_a_filter_whose_acknowledged_messages_come_another_way_is_a_target_of_its_own() -> None:
    hub, _ = _hub()
    a, b = FakeReceiver("a"), FakeReceiver("b")
    hub.subscribe(a, "x/#", 1)
    hub.subscribe(b, "x/#", 1, skips_acknowledged=True)
    assert [(target.topic_filter, target.skips_acknowledged) for target in hub.interests()] == [
        ("x/#", False), ("x/#", True),
    ]  # fmt: skip
    hub.unsubscribe(a, "x/#", skips_acknowledged=True)
    hub.unsubscribe(b, "x/#", skips_acknowledged=True)
    assert [target.skips_acknowledged for target in hub.interests()] == [False]


def test_target_ids_are_not_used_again() -> None:
    hub, router = _hub()
    a = FakeReceiver("a")
    hub.subscribe(a, "x", 1)
    (first,) = router.targets
    hub.unsubscribe(a, "x")
    hub.subscribe(a, "x", 1)
    assert first not in router.targets


def test_a_query_is_a_target_until_it_is_answered() -> None:
    hub, router = _hub()
    a = FakeReceiver("a")
    hub.subscribe(a, "x/#", 1)
    hub.send_retained(a, "x/#", 1)
    hub.send_retained(a, "x/#", 1)
    assert len(router.queries) == 2
    assert hub.route(router.queries[:1], "x/y") == [(a, 1)]
    for query_id in router.queries:
        hub.end_query(query_id)
    assert [target.target_id for target in hub.interests()] == list(router.targets)


def test_p2p_and_retained_messages_are_judged_when_they_come() -> None:
    hub, router = _hub()
    a, b = FakeReceiver("a"), FakeReceiver("b")
    client = hub.add_client(a)
    hub.admit_client(client, a)
    hub.send_retained(a, "x/#", 1)
    hub.send_retained(b, "x/#", 1)
    first, second = router.queries
    a.forbidden = "x/y"
    for target_id, receiver in ((client, a), (first, a), (second, b)):
        assert [found for found, _ in hub.route([target_id], "x/y")] == ([receiver] if receiver is b else [])
        assert [found for found, _ in hub.route([target_id], "x/z")] == [receiver]


def test_subscribers_are_found_by_parent_topic() -> None:
    hub, _ = _hub()
    a, b = FakeReceiver("a"), FakeReceiver("b")
    hub.subscribe(a, "x/#", 1)
    hub.subscribe(a, "x/y", 1)
    hub.subscribe(b, "x", 1)
    hub.subscribe(b, "y/x", 1)
    shared = hub.share("i", "g", "x/z")
    shared.receivers[FakeReceiver("c")] = 2
    assert {client.client_id for client in hub.subscribers("i", "x")} == {"a", "b", "c"}
    assert hub.subscribers("other", "x") == set()
    hub.unshare(shared.target_id)
    hub.unsubscribe(b, "x")
    hub.unsubscribe(a, "x/y")
    assert hub.subscribers("i", "x") == {a}
    hub.unsubscribe(a, "x/#")
    assert hub.subscribers("i", "x") == set()


@pytest.mark.spec("MQTT-3.3.5-1")
def test_overlapping_targets_merge_to_the_highest_qos() -> None:
    hub, router = _hub()
    a, b = FakeReceiver("a"), FakeReceiver("b")
    hub.subscribe(a, "x/#", 0)
    hub.subscribe(a, "x/y", 2)
    hub.subscribe(b, "x/#", 1)
    assert dict(hub.route(list(router.targets), "x/y")) == {a: 2, b: 1}


def test_a_client_is_a_target_of_its_own() -> None:
    hub, router = _hub()
    a = FakeReceiver("a")
    target_id = hub.add_client(a)
    assert router.targets == {target_id: "client a"}
    assert hub.route([target_id], "x/y") == []  # it is not let in yet
    hub.admit_client(target_id, a)
    assert hub.route([target_id], "x/y") == [(a, 2)]
    assert [target.topic_filter for target in hub.interests()] == [""]
    hub.remove_client(target_id)
    assert router.targets == {}


def test_repeats_of_qos_2_are_found_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_SEEN", 3)
    hub, _ = _hub()
    assert not hub.is_repeated("edge", 1)
    assert hub.is_repeated("edge", 1)
    assert not hub.is_repeated("other", 1)
    for n in (2, 3, 4):
        assert not hub.is_repeated("edge", n)
    assert hub.is_repeated("edge", 4)
    assert not hub.is_repeated("edge", 1)


@pytest.mark.asyncio
async def test_a_receiver_is_flushed_once_for_each_loop_turn() -> None:
    hub, _ = _hub(asyncio.get_running_loop())
    a, b = FakeReceiver("a"), FakeReceiver("b")
    hub.mark_dirty(a)
    hub.mark_dirty(b)
    await asyncio.sleep(0)
    assert (a.flushed, b.flushed) == (1, 1)
    hub.mark_dirty(a)
    await asyncio.sleep(0)
    assert (a.flushed, b.flushed) == (2, 1)
