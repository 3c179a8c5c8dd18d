"""Runs of messages on their way to a router and from it."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from services.common.link import LinkBrokenError
from services.edge.arrivals import Arrivals
from services.edge.columns import RUN, Columns
from services.edge.hub import Hub
from services.edge.mqtt.codec import encode
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import TopicRule
from tests.unit.edge.test_short_way import FakeClient, FakeRouter
from weimq.router.v1 import router_pb2

FRAMES = b"".join(encode(Publish("p/a", payload, 0, False, False, 0)) for payload in (b"1", b"2", b"3"))
FRAMES_QOS1 = b"".join(encode(Publish("p/a", payload, 1, False, False, 7)) for payload in (b"1", b"2", b"3"))


def batch(qos: int = 0, **changed: object) -> router_pb2.DeliveryBatch:
    columns: dict[str, object] = {
        "topics": ["p/a"],
        "target_counts": [1],
        "target_ids": [1],
        "topic_indexes": [0, 0, 0],
        "payloads": [b"0", FRAMES_QOS1 if qos else FRAMES, b"4"],
        "flags": bytes([0, RUN | qos, 0]),
        "run_counts": [3],
        "run_payload_bytes": [1],
    }
    return router_pb2.DeliveryBatch(**{**columns, **changed})  # type: ignore[arg-type]  # fields of the test


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def hub(client: FakeClient) -> Hub:
    hub = Hub(cast("asyncio.AbstractEventLoop", None))
    hub.router = FakeRouter()  # type: ignore[assignment]  # no more is needed
    hub.subscribe(client, "p/a", 1)
    return hub


@pytest.fixture
def arrivals(hub: Hub) -> Arrivals:
    return Arrivals(hub, lambda _, __: None)


@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1])
def test_messages_of_a_run_arrive_in_their_place(
    arrivals: Arrivals, hub: Hub, client: FakeClient, qos: int, granted: int
) -> None:
    hub.subscribe(client, "p/a", granted)
    arrivals.deliver(batch(qos))
    assert [payload for _, payload, _ in client.received] == [b"0", b"1", b"2", b"3", b"4"]
    assert [qos for _, _, qos in client.received] == [0, *[min(qos, granted)] * 3, 0]


def test_a_run_for_nobody_is_dropped(arrivals: Arrivals, hub: Hub, client: FakeClient) -> None:
    hub.unsubscribe(client, "p/a")
    arrivals.deliver(batch(1))
    assert not client.received


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(
    "changed",
    [
        {"run_counts": []},
        {"run_payload_bytes": []},
        {"run_counts": [2]},
        {"run_counts": [0]},
        {"run_payload_bytes": [2]},
        {"payloads": [b"0", b"", b"4"]},
        {"payloads": [b"0", FRAMES[:-1], b"4"]},
        {"payloads": [b"0", FRAMES_QOS1[:-1], b"4"]},
        {"topics": ["p/b"]},
        {"topic_indexes": [0, 1, 0]},
        {"flags": bytes([0, RUN])},
        {"flags": bytes([0, RUN | 2, 0])},
    ],
)
def test_columns_that_do_not_fit_break_the_link(arrivals: Arrivals, qos: int, changed: dict[str, object]) -> None:
    with pytest.raises(LinkBrokenError):
        arrivals.deliver(batch(qos, **changed))


@pytest.mark.parametrize("qos", [0, 1])
def test_a_run_of_another_qos_than_it_says_breaks_the_link(arrivals: Arrivals, qos: int) -> None:
    with pytest.raises(LinkBrokenError):
        arrivals.deliver(batch(qos, flags=bytes([0, RUN | 1 - qos, 0])))


def test_what_was_gathered_can_be_gathered_again() -> None:
    rule, other = TopicRule("i", "p/a", 0), TopicRule("i", "p/b", 0)
    run = PublishRun("p/a", FRAMES, 3, 1)
    columns = Columns()
    columns.add(other, "x", 1, b"0", 1)
    columns.add_run(rule, "y", 2, run, 0)
    columns.add(rule, "x", 3, b"4", 0)
    columns.add_run(rule, "y", 4, run, 0)
    found = [(e.sequence, e.rule, e.client_id, e.payload, e.run) for e in columns.entries()]
    assert found == [
        (1, other, "x", b"0", None),
        (2, rule, "y", FRAMES, run),
        (3, rule, "x", b"4", None),
        (4, rule, "y", FRAMES, run),
    ]
    written = router_pb2.PublishBatch()
    columns.write_to(written)
    assert (list(written.run_counts), list(written.run_payload_bytes)) == ([3, 3], [1, 1])
    assert written.flags == bytes([1, RUN, 0, RUN])
