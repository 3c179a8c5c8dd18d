"""Deliveries gathered for one edge, in the columns of `weimq.session.v1.Deliveries`. Pure, hot path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from services.session.domain.lines import Line

OUTBOX_BYTES = 8 << 20
"""Gathered bytes above which nothing more is given to an edge: what is meant for its clients stays a position."""
MAX_FETCHING = 1_024
"""Messages on their way from the logs, so that who connects now does not wait behind the backlogs of many others."""
FRAME_BYTES = 1 << 20
"""Gathered bytes at which a frame is full."""
FRAME_DELIVERIES = 16_384
"""Deliveries at which a frame is full."""
OVERHEAD_BYTES = 64
"""What a delivery counts besides its payload."""
FIRST_ESTIMATE_BYTES = 1_024
_ESTIMATE_SHIFT = 4

DUP = 8
"""Flag of a delivery: it was sent before."""

C = TypeVar("C")


class Batch:
    """The columns of one frame."""

    __slots__ = (
        "channel_index", "channel_indexes", "delivery_ids", "flags", "message_index", "message_indexes",
        "packet_identifiers", "payloads", "size", "topic_index", "topic_indexes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.topic_index: dict[str, int] = {}
        self.channel_index: dict[str, int] = {}
        self.message_index: dict[int, int] = {}  # by delivery id
        self.topic_indexes: list[int] = []
        self.payloads: list[bytes] = []
        self.message_indexes: list[int] = []
        self.channel_indexes: list[int] = []
        self.delivery_ids: list[int] = []
        self.flags = bytearray()
        self.packet_identifiers: list[int] = []
        self.size = 0


class Outbox(Generic[C]):
    """What an edge is to get; frames are taken from it as its link has room.

    Args:
        edge_id: of the edge.
        wake: called when there is something to take.
    """

    def __init__(self, edge_id: str, wake: Callable[[], None]) -> None:
        self.edge_id = edge_id
        self._wake = wake
        self._full: list[Batch] = []
        self._batch = Batch()
        self._estimate = FIRST_ESTIMATE_BYTES
        self.size = 0
        """Bytes gathered."""
        self.fetching = 0
        """Messages on their way here from the logs."""
        self.line: Line[C] = Line()
        """Who has something to be fetched and found no room."""

    @property
    def has_room(self) -> bool:
        """Whether more may be given to it, counting what is on its way from the logs."""
        return self.size + self.fetching * self._estimate < OUTBOX_BYTES

    @property
    def may_fetch(self) -> bool:
        """Whether more may be fetched for it."""
        return self.fetching < MAX_FETCHING and self.has_room

    @property
    def frames(self) -> int:
        """How many frames it takes to send all that was gathered."""
        return len(self._full) + bool(self._batch.delivery_ids)

    def add(
        self, channel_id: str, delivery_id: int, topic: str, payload: bytes, flags: int, packet_identifier: int
    ) -> None:
        """Gather one delivery; takes it even without room."""
        batch = self._batch
        if not batch.delivery_ids:
            self._wake()
        key = delivery_id if topic else ~delivery_id  # what is gone for one session may be there for another
        message = batch.message_index.get(key)
        size = OVERHEAD_BYTES
        if message is None:
            message = batch.message_index[key] = len(batch.payloads)
            topic_index = batch.topic_index.get(topic)
            if topic_index is None:
                topic_index = batch.topic_index[topic] = len(batch.topic_index)
                size += len(topic)
            batch.topic_indexes.append(topic_index)
            batch.payloads.append(payload)
            size += len(payload)
            self._estimate += (len(payload) >> _ESTIMATE_SHIFT) - (self._estimate >> _ESTIMATE_SHIFT)
        channel = batch.channel_index.get(channel_id)
        if channel is None:
            channel = batch.channel_index[channel_id] = len(batch.channel_index)
        batch.message_indexes.append(message)
        batch.channel_indexes.append(channel)
        batch.delivery_ids.append(delivery_id)
        batch.flags.append(flags)
        batch.packet_identifiers.append(packet_identifier)
        batch.size += size
        self.size += size
        if batch.size >= FRAME_BYTES or len(batch.delivery_ids) >= FRAME_DELIVERIES:
            self._full.append(batch)
            self._batch = Batch()

    def take(self) -> Batch | None:
        """Return the next frame's content; None: there is nothing."""
        if self._full:
            batch = self._full.pop(0)
        elif self._batch.delivery_ids:
            batch, self._batch = self._batch, Batch()
        else:
            return None
        self.size -= batch.size
        return batch
