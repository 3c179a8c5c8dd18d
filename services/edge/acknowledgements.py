"""Acknowledgements of deliveries on their way to a session shard, in columns.

They stay here until the shard has stored them, and are sent again to one that was restarted. Bounded by what the shard
has delivered and not been told about.
"""

from __future__ import annotations

from collections import deque

from services.edge.ports import KeptMessages
from weimq.session.v1 import session_pb2

FRAME_ACKNOWLEDGEMENTS = 16_384
"""Acknowledgements in one frame."""

COMPLETED = 0
WITHDRAWN = 1
"""`Acknowledgements.outcomes`."""


class Acknowledgements:
    """What is to be told, and what was told and is not stored. Owned by the link with the shard. Hot path."""

    __slots__ = ("_ids", "_messages", "_outcomes", "_sent")

    def __init__(self) -> None:
        self._sent: deque[tuple[int, list[KeptMessages], list[int], bytearray]] = deque()
        self._begin()

    def _begin(self) -> None:
        self._messages: list[KeptMessages] = []
        self._ids: list[int] = []
        self._outcomes = bytearray()

    @property
    def has_unsent(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._ids)

    @property
    def is_empty(self) -> bool:
        """Whether everything was told and stored."""
        return not (self._ids or self._sent)

    def add(self, messages: KeptMessages, delivery_id: int, outcome: int) -> None:
        """Note a delivery of a connection that is completed."""
        self._messages.append(messages)
        self._ids.append(delivery_id)
        self._outcomes.append(outcome)

    def write_to(self, columns: session_pb2.Acknowledgements, number: int) -> None:
        """Fill the protobuf message of frame `number` with as many as go into one."""
        if len(self._ids) > FRAME_ACKNOWLEDGEMENTS:
            count = FRAME_ACKNOWLEDGEMENTS
            messages, self._messages = self._messages[:count], self._messages[count:]
            ids, self._ids = self._ids[:count], self._ids[count:]
            outcomes, self._outcomes = self._outcomes[:count], self._outcomes[count:]
        else:
            messages, ids, outcomes = self._messages, self._ids, self._outcomes
            self._begin()
        channels: dict[str, int] = {}
        columns.channel_indexes.extend([channels.setdefault(each.channel_id, len(channels)) for each in messages])
        columns.channel_ids.extend(channels)
        columns.delivery_ids.extend(ids)
        columns.outcomes = bytes(outcomes)
        self._sent.append((number, messages, ids, outcomes))

    def confirm(self, through: int) -> None:
        """Note that the shard has stored the frames up to `through`."""
        while self._sent and self._sent[0][0] <= through:
            _, messages, ids, _ = self._sent.popleft()
            for each, delivery_id in zip(messages, ids, strict=True):
                each.on_stored(delivery_id)

    def start_anew(self) -> None:
        """Have everything that is not stored told again."""
        messages, ids, outcomes = self._messages, self._ids, self._outcomes
        self._begin()
        for _, sent_messages, sent_ids, sent_outcomes in self._sent:
            self._messages += sent_messages
            self._ids += sent_ids
            self._outcomes += sent_outcomes
        self._sent.clear()
        self._messages += messages
        self._ids += ids
        self._outcomes += outcomes
