"""Deliveries gathered for one edge."""

from __future__ import annotations

from services.router.domain import outbox
from services.router.domain.outbox import Outbox, Receipt
from services.router.domain.routing import Leg


class Publisher:
    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def acknowledge(self, sequence: int) -> None:
        self.acknowledged.append(sequence)


def leg(topic: str, *target_ids: int) -> Leg:
    return Leg(topic, 0, list(target_ids))


def test_topic_and_targets_are_stated_once_in_a_batch() -> None:
    box = Outbox()
    a, b = leg("a", 1, 2), leg("b", 3)
    for each, payload in ((a, b"1"), (b, b"2"), (a, b"3")):
        box.add(each, payload, 0, "", 0, None)
    batch = box.take()
    assert batch is not None
    assert batch.topics == ["a", "b"]
    assert batch.target_counts == [2, 1]
    assert batch.target_ids == [1, 2, 3]
    assert batch.topic_indexes == [0, 1, 0]
    assert batch.payloads == [b"1", b"2", b"3"]
    assert box.take() is None
    box.add(a, b"4", 0, "", 0, None)
    following = box.take()
    assert following is not None
    assert following.topics == ["a"]
    assert following.topic_indexes == [0]


def test_only_messages_of_qos_2_have_origin_and_sequence() -> None:
    box = Outbox()
    topic = leg("a", 1)
    for qos, origin, sequence in ((0, "", 0), (2, "x", 5), (1, "x", 6), (2, "y", 5), (2, "x", 7)):
        box.add(topic, b"", qos, origin, sequence, None)
    batch = box.take()
    assert batch is not None
    assert list(batch.flags) == [0, 2, 1, 2, 2]
    assert list(batch.origins) == ["x", "y"]
    assert batch.origin_indexes == [0, 1, 0]
    assert batch.sequences == [5, 5, 7]


def test_batches_are_bounded_and_sizes_add_up() -> None:
    box = Outbox()
    topic = leg("a", 1)
    for _ in range(outbox.MAX_BATCH_MESSAGES + 1):
        box.add(topic, b"", 0, "", 0, None)
    large = bytes(outbox.MAX_BATCH_BYTES)
    for _ in range(3):
        box.add(topic, large, 0, "", 0, None)
    total = box.size
    batches = []
    while (batch := box.take()) is not None:
        batches.append(batch)
    assert [len(batch.payloads) for batch in batches] == [outbox.MAX_BATCH_MESSAGES, 2, 1, 1]
    assert all(batch.topics == ["a"] for batch in batches)
    assert sum(batch.size for batch in batches) == total > 3 * outbox.MAX_BATCH_BYTES
    assert box.size == 0


def test_receipt_acknowledges_once_when_the_last_edge_settled_it() -> None:
    publisher = Publisher()
    receipt = Receipt(publisher, 7, 2)
    receipt.settle()
    assert not publisher.acknowledged
    receipt.settle()
    assert publisher.acknowledged == [7]
