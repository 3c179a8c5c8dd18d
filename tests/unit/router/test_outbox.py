"""Deliveries gathered for one edge."""

from __future__ import annotations

import pytest

from services.common import qos0_window
from services.common.qos0_window import Qos0Window
from services.router.domain import outbox
from services.router.domain.outbox import Batch, Outbox, Receipt
from services.router.domain.routing import Leg


class Publisher:
    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def acknowledge(self, sequence: int) -> None:
        self.acknowledged.append(sequence)


def leg(topic: str, *target_ids: int) -> Leg:
    return Leg(topic, 0, list(target_ids))


def taken(box: Outbox) -> list[Batch]:
    """Take everything as a link does that may always send."""
    batches = []
    while (batch := box.take() or box.take_qos0()) is not None:
        batches.append(batch)
    return batches


@pytest.mark.parametrize("qos", [0, 1])
def test_topic_and_targets_are_stated_once_in_a_batch(qos: int) -> None:
    box = Outbox(Qos0Window())
    a, b = leg("a", 1, 2), leg("b", 3)
    for each, payload in ((a, b"1"), (b, b"2"), (a, b"3")):
        box.add(each, payload, qos, "", 0, None)
    (batch,) = taken(box)
    assert batch.topics == ["a", "b"]
    assert batch.target_counts == [2, 1]
    assert batch.target_ids == [1, 2, 3]
    assert batch.topic_indexes == [0, 1, 0]
    assert batch.payloads == [b"1", b"2", b"3"]
    assert box.take() is None
    assert box.take_qos0() is None
    box.add(a, b"4", qos, "", 0, None)
    (following,) = taken(box)
    assert following.topics == ["a"]
    assert following.topic_indexes == [0]


def test_only_messages_of_qos_2_have_origin_and_sequence() -> None:
    box = Outbox(Qos0Window())
    topic = leg("a", 1)
    for qos, origin, sequence in ((2, "x", 5), (1, "x", 6), (2, "y", 5), (2, "x", 7)):
        box.add(topic, b"", qos, origin, sequence, None)
    batch = box.take()
    assert batch is not None
    assert list(batch.flags) == [2, 1, 2, 2]
    assert list(batch.origins) == ["x", "y"]
    assert batch.origin_indexes == [0, 1, 0]
    assert batch.sequences == [5, 5, 7]


@pytest.mark.parametrize(
    ("qos", "max_messages", "max_bytes"),
    [
        (0, qos0_window.FRAME_MESSAGES, qos0_window.FRAME_BYTES),
        (1, outbox.MAX_BATCH_MESSAGES, outbox.MAX_BATCH_BYTES),
    ],
)
def test_batches_are_bounded_and_sizes_add_up(qos: int, max_messages: int, max_bytes: int) -> None:
    box = Outbox(Qos0Window())
    topic = leg("a", 1)
    for _ in range(max_messages + 1):
        box.add(topic, b"", qos, "", 0, None)
    large = bytes(max_bytes)
    for _ in range(3):
        box.add(topic, large, qos, "", 0, None)
    total = box.size
    assert box.qos0_size == (0 if qos else total)
    batches = taken(box)
    assert [len(batch.payloads) for batch in batches] == [max_messages, 2, 1, 1]
    assert all(batch.topics == ["a"] for batch in batches)
    assert sum(batch.size for batch in batches) == total > 3 * max_bytes
    assert box.size == box.qos0_size == 0


def test_qos_1_and_2_have_batches_of_their_own_that_keep_their_order() -> None:
    box = Outbox(Qos0Window())
    a, b = leg("a", 1), leg("b", 2)
    for n, (each, qos) in enumerate(((a, 0), (a, 1), (b, 0), (a, 2), (b, 1), (a, 0))):
        box.add(each, b"%d" % n, qos, "x", n, None)
    first, qos0 = taken(box)
    assert (first.is_qos0, first.payloads) == (False, [b"1", b"3", b"4"])
    assert (qos0.is_qos0, qos0.payloads) == (True, [b"0", b"2", b"5"])
    assert first.topics == qos0.topics == ["a", "b"]
    assert (first.topic_indexes, qos0.topic_indexes) == ([0, 0, 1], [0, 1, 0])


def test_what_is_said_of_the_message_added_last_goes_with_it() -> None:
    box = Outbox(Qos0Window())
    topic = leg("a", 1)
    box.add(topic, b"0", 0, "", 0, None)
    box.add(topic, b"1", 1, "", 0, None)
    box.place("log", 7)
    box.want_receipt(9)
    box.add(topic, b"2", 0, "", 0, None)
    first, qos0 = taken(box)
    assert (list(first.logs), first.log_sequences, first.receipt_ids) == (["log"], [7], [9])
    assert not qos0.logs
    assert not qos0.receipt_ids
    assert box.size == box.qos0_size == 0


@pytest.mark.parametrize("is_out_of_turn", [False, True])
def test_answers_come_after_everything_that_was_added(is_out_of_turn: bool) -> None:
    box = Outbox(Qos0Window())
    topic = leg("a", 1)
    box.add(topic, b"0", 0, "", 0, None)
    box.add(topic, b"1", 1, "", 0, None)
    box.answer(3)
    box.answer_route("yes", is_last=True)
    box.answer_route("no", is_last=False)
    batches = [box.take_qos0(), box.take()] if is_out_of_turn else [box.take(), box.take_qos0()]
    assert [batch.answered for batch in batches if batch is not None] == [[], [3]]
    routes = [batch.routes for batch in batches if batch is not None]
    assert routes == ([[], ["no", "yes"]] if is_out_of_turn else [["no"], ["yes"]])
    assert box.size == box.qos0_size == 0


def test_answers_alone_are_sent() -> None:
    box = Outbox(Qos0Window())
    box.answer(3)
    box.answer_route("yes", is_last=True)
    (batch,) = taken(box)
    assert (batch.answered, batch.routes, batch.payloads) == ([3], ["yes"], [])


def test_receipt_acknowledges_once_when_the_last_edge_settled_it() -> None:
    publisher = Publisher()
    receipt = Receipt(publisher, 7, 2)
    receipt.settle()
    assert not publisher.acknowledged
    receipt.settle()
    assert publisher.acknowledged == [7]


def test_messages_for_a_shard_can_be_added_together() -> None:
    together, apart = Outbox(Qos0Window()), Outbox(Qos0Window())
    one, another = leg("a", 1), leg("a", 1)
    receipt = Receipt(Publisher(), 1, 3)
    for first, payloads in ((4, [b"1", b"2"]), (0, [b"3"])):
        together.add_each(one, payloads, 1, receipt, "log", first)
        for offset, payload in enumerate(payloads):
            apart.add(another, payload, 1, "", 0, None)
            apart.place("log", first and first + offset)
    assert together.size == apart.size
    (found,), (expected,) = taken(together), taken(apart)
    for name in (
        "flags",
        "log_indexes",
        "log_sequences",
        "messages",
        "payloads",
        "size",
        "target_ids",
        "topic_indexes",
    ):
        assert getattr(found, name) == getattr(expected, name)
    assert found.log_sequences == [4, 5, 0]
    assert found.receipts == [receipt, receipt]
