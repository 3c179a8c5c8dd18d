"""Deliveries to one edge, gathered in columns until its link takes them. Pure, hot path.

Messages of QoS 1 and 2 have batches of their own, which go first: see `services.common.qos0_window`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from services.common.qos0_window import Qos0Window
from services.router.domain.columns import QOS, WANTS_RECEIPT, Run
from services.router.domain.routing import Leg
from services.router.domain.shared_groups import Group

MAX_BATCH_BYTES = 1 << 20
MAX_BATCH_MESSAGES = 4_096
"""A batch of QoS 1 and 2 is closed when it has reached one of these."""

_MESSAGE_BYTES = 8
_TOPIC_BYTES = 8
_TARGET_BYTES = 5
_ANSWER_BYTES = 5
_POSITION_BYTES = 8
# What a message, a topic, a target id, an answered query and a place in a log take beside their text, roughly.


class Publisher(Protocol):
    """Whoever waits for the acknowledgement of what it published."""

    def acknowledge(self, sequence: int) -> None:
        """Note that the message is in its log and with every edge that it goes to."""
        ...


class Receipt:
    """What a message of QoS 1 or 2 still waits for: the confirmations of so many edges."""

    __slots__ = ("publisher", "sequence", "waiting")

    def __init__(self, publisher: Publisher, sequence: int, waiting: int) -> None:
        self.publisher = publisher
        self.sequence = sequence
        self.waiting = waiting

    def settle(self) -> None:
        """Note that an edge confirmed the message or is gone."""
        self.waiting -= 1
        if self.waiting == 0:
            self.publisher.acknowledge(self.sequence)


class SharedDelivery:
    """A message of QoS 1 or 2 for one member of a shared subscription, as long as the member's edge owes it."""

    __slots__ = ("group", "payload", "qos", "receipt", "topic")

    def __init__(self, group: Group, topic: str, payload: bytes, qos: int, receipt: Receipt | None) -> None:
        self.group = group
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.receipt = receipt  # None: its publisher has been answered


class Batch:
    """The columns of one `DeliveryBatch`, and what is owed for it."""

    __slots__ = (
        "answered",
        "flags",
        "is_qos0",
        "log_indexes",
        "log_sequences",
        "logs",
        "messages",
        "number",
        "origin_indexes",
        "origins",
        "payloads",
        "receipt_ids",
        "receipts",
        "routes",
        "runs",
        "sequences",
        "shared",
        "size",
        "target_counts",
        "target_ids",
        "topic_indexes",
        "topics",
    )

    def __init__(self, number: int, *, is_qos0: bool = False) -> None:
        self.number = number
        self.is_qos0 = is_qos0
        self.topics: list[str] = []
        self.target_counts: list[int] = []
        self.target_ids: list[int] = []
        self.topic_indexes: list[int] = []
        self.payloads: list[bytes] = []
        self.flags = bytearray()
        self.origins: dict[str, int] = {}  # incarnation of an edge to its index, in order
        self.origin_indexes: list[int] = []
        self.sequences: list[int] = []
        self.logs: dict[str, int] = {}  # stream to its index, in order
        self.log_indexes: list[int] = []
        self.log_sequences: list[int] = []
        self.receipts: list[Receipt] = []
        self.receipt_ids: list[int] = []  # of messages whose publisher is told what becomes of them
        self.runs: list[Run] = []
        self.shared: list[SharedDelivery] = []
        self.answered: list[int] = []  # queries whose last delivery is in this batch or an earlier one
        self.routes: list[Any] = []  # answers after every delivery that was added before them
        self.messages = 0  # entries; at QoS 1 and 2, the messages in them
        self.size = 0


class Outbox:
    """Batches for one edge, oldest first: those of QoS 1 and 2, and those of QoS 0.

    Args:
        window: of the link that takes them.
    """

    __slots__ = ("_first", "_last", "_number", "_qos0", "_window", "qos0_size", "size")

    def __init__(self, window: Qos0Window) -> None:
        self._window = window
        self._first: deque[Batch] = deque()
        self._qos0: deque[Batch] = deque()
        self._last = Batch(0)  # the one that was added to last
        self._number = 0
        self.size = 0
        """Bytes gathered."""
        self.qos0_size = 0
        """Those of messages of QoS 0 among them."""

    @property
    def has_first(self) -> bool:
        """Whether anything but messages of QoS 0 has gathered."""
        return bool(self._first)

    @property
    def has_qos0(self) -> bool:
        """Whether messages of QoS 0 have gathered."""
        return bool(self._qos0)

    def add(self, leg: Leg, payload: bytes, flags: int, origin: str, sequence: int, receipt: Receipt | None) -> None:
        """Add a message.

        Args:
            leg: of the route of its topic; belongs to this edge.
            payload: of the message.
            flags: of the delivery: QoS of the publication, and retain.
            origin: incarnation of the publisher's edge; used at QoS 2.
            sequence: of the message in that incarnation; used at QoS 2.
            receipt: settled when the edge has confirmed the message; None at QoS 0.
        """
        size = len(payload) + _MESSAGE_BYTES
        if flags & QOS:
            batch = self._open(self._first, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES)
            if leg.batch != batch.number:
                leg.batch = batch.number
                leg.index = len(batch.topics)
                size += _add_topic(batch, leg)
            batch.topic_indexes.append(leg.index)
            if flags & QOS == 2:  # noqa: PLR2004 - exactly once: the edge drops repeats by origin and sequence
                batch.origin_indexes.append(batch.origins.setdefault(origin, len(batch.origins)))
                batch.sequences.append(sequence)
            if receipt is not None:
                batch.receipts.append(receipt)
        else:
            batch = self._open(self._qos0, self._window.frame_bytes, self._window.frame_messages)
            if leg.qos0_batch != batch.number:
                leg.qos0_batch = batch.number
                leg.qos0_index = len(batch.topics)
                size += _add_topic(batch, leg)
            batch.topic_indexes.append(leg.qos0_index)
            self.qos0_size += size
        batch.payloads.append(payload)
        batch.flags.append(flags)
        batch.messages += 1
        batch.size += size
        self.size += size
        self._last = batch

    def add_each(
        self, leg: Leg, payloads: Sequence[bytes], flags: int, receipt: Receipt, log: str, log_sequence: int
    ) -> None:
        """Add messages of QoS 1 of equal length for a session shard, in one batch.

        Args:
            leg: of the route of their topic; belongs to this shard.
            payloads: of the messages.
            flags: of each delivery.
            receipt: settled when the shard has confirmed them.
            log: stream with the messages.
            log_sequence: of the first one, which the others follow; 0: none can be stored.
        """
        count = len(payloads)
        size = count * (len(payloads[0]) + _MESSAGE_BYTES + _POSITION_BYTES)
        batch = self._open(self._first, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES)
        if leg.batch != batch.number:
            leg.batch = batch.number
            leg.index = len(batch.topics)
            size += _add_topic(batch, leg)
        batch.topic_indexes += [leg.index] * count
        batch.payloads += payloads
        batch.flags += bytes([flags]) * count
        batch.messages += count
        batch.log_indexes += [batch.logs.setdefault(log, len(batch.logs))] * count
        batch.log_sequences += range(log_sequence, log_sequence + count) if log_sequence else [0] * count
        batch.receipts.append(receipt)
        batch.size += size
        self.size += size
        self._last = batch

    def place(self, log: str, sequence: int) -> None:
        """Say in which stream the message added last is, and where; for a session shard, with every message."""
        batch = self._last
        batch.log_indexes.append(batch.logs.setdefault(log, len(batch.logs)))
        batch.log_sequences.append(sequence)
        batch.size += _POSITION_BYTES
        self.size += _POSITION_BYTES

    def run(self, run: Run) -> None:
        """Say that what was added last, with the flag of a run, is this."""
        batch = self._last
        batch.runs.append(run)
        if not batch.is_qos0:
            batch.messages += run.count - 1

    def want_receipt(self, receipt_id: int) -> None:
        """Say that the message added last, of QoS 1 or 2, wants a receipt."""
        batch = self._last
        batch.flags[-1] |= WANTS_RECEIPT
        batch.receipt_ids.append(receipt_id)

    def share(self, shared: SharedDelivery) -> None:
        """Say that the message added last, without a receipt, is that of a shared subscription."""
        self._last.shared.append(shared)

    def answer(self, query_id: int) -> None:
        """Add the note that all retained messages of a query were added."""
        batch = self._newest()
        batch.answered.append(query_id)
        batch.size += _ANSWER_BYTES
        self.size += _ANSWER_BYTES
        if batch.is_qos0:
            self.qos0_size += _ANSWER_BYTES

    def answer_route(self, answer: object, *, is_last: bool) -> None:
        """Add the answer to a question about a route; `is_last`: after every delivery that was added."""
        batch = self._newest() if is_last else self._open(self._first, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES)
        batch.routes.append(answer)

    def forget_answers(self) -> None:
        """Remove all that `answer` and `answer_route` added: the edge asks again."""
        for batch in (*self._first, *self._qos0):
            batch.answered.clear()
            batch.routes.clear()

    def take(self) -> Batch | None:
        """Return and forget the oldest batch without messages of QoS 0; None: there is none."""
        if not self._first:
            return None
        batch = self._first.popleft()
        self.size -= batch.size
        return batch

    def take_qos0(self) -> Batch | None:
        """Return and forget the oldest batch of messages of QoS 0; None: there is none."""
        if not self._qos0:
            return None
        batch = self._qos0.popleft()
        self.size -= batch.size
        self.qos0_size -= batch.size
        if self._first and (batch.answered or batch.routes):  # what they come after has not all been taken
            last = self._first[-1]
            size = len(batch.answered) * _ANSWER_BYTES
            last.answered += batch.answered
            last.routes += batch.routes
            last.size += size
            self.size += size
            batch.answered = []
            batch.routes = []
            batch.size -= size
        return batch

    def _open(self, batches: deque[Batch], max_bytes: int, max_messages: int) -> Batch:
        if batches:
            batch = batches[-1]
            if batch.size < max_bytes and batch.messages < max_messages:
                return batch
        self._number += 1
        batch = Batch(self._number, is_qos0=batches is self._qos0)
        batches.append(batch)
        return batch

    def _newest(self) -> Batch:
        """Return the batch that is taken last: those of QoS 0 come after the others, but for what `take_qos0` moves."""
        if self._qos0:
            return self._qos0[-1]
        return self._open(self._first, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES)


def _add_topic(batch: Batch, leg: Leg) -> int:
    batch.topics.append(leg.topic)
    batch.target_counts.append(len(leg.target_ids))
    batch.target_ids.extend(leg.target_ids)
    return len(leg.topic) + _TOPIC_BYTES + len(leg.target_ids) * _TARGET_BYTES
