"""What an edge has for a router until frames take it: messages of QoS 1 and 2 first, those of QoS 0 beside. Hot path.

MQTT keeps the order of messages of one topic and QoS [MQTT-4.6.0-6], so messages of QoS 1 and 2 overtake those of
QoS 0, but for:

- ordered topics, whose log has the messages of a client as they were published: all go with QoS 1 and 2;
- what follows a retained message of QoS 0 on its topic: the one published last is to stay;
- questions about a topic (`routes`), which follow all its messages.
"""

from __future__ import annotations

import time
from collections import deque

from services.common import qos0_window
from services.common.qos0_window import Qos0Window
from services.edge.columns import QOS, RETAIN, Columns, Entry
from services.edge.mqtt.packets import PublishRun
from services.edge.policy import TopicRule
from services.edge.routes import LocalRoute

FRAME_BYTES = 1 << 20
"""Payload after which a batch is full; the next message begins another."""
FRAME_MESSAGES = 4096
"""Messages after which a batch is full."""


class Lane:
    """Batches, oldest first, the last of them open."""

    __slots__ = ("_full", "bytes", "max_bytes", "max_messages", "number", "open", "taken")

    def __init__(self, max_bytes: int, max_messages: int) -> None:
        self.max_bytes = max_bytes
        self.max_messages = max_messages
        """Bounds of a batch, the second in what `Columns.messages` counts; one more may be a whole run."""
        self._full: deque[Columns] = deque()
        self.open = Columns()
        """The batch that is added to."""
        self.number = 1
        """Of the open batch; numbers rise and are never used again."""
        self.taken = 0
        """Of the batch that was taken last."""
        self.bytes = 0
        """Gathered."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return self.open.is_empty and not self._full

    def add(
        self, rule: TopicRule, client_id: str, sequence: int, payload: bytes, flags: int, run: PublishRun | None
    ) -> None:
        """Append one message, or a run."""
        columns = self.open
        before = columns.bytes
        if run is None:
            columns.add(rule, client_id, sequence, payload, flags)
        else:
            columns.add_run(rule, client_id, sequence, run, flags)
        self.bytes += columns.bytes - before
        if columns.bytes >= self.max_bytes or columns.messages >= self.max_messages:
            self._full.append(columns)
            self._begin()

    def take(self) -> Columns:
        """Return and forget the oldest batch."""
        self.taken += 1
        if self._full:
            columns = self._full.popleft()
        else:
            columns = self.open
            self._begin()
        self.bytes -= columns.bytes
        return columns

    def clear(self) -> list[Entry]:
        """Forget everything, and return the messages."""
        entries: list[Entry] = []
        for columns in (*self._full, self.open):
            entries += columns.entries()
        self._full.clear()
        self.taken = self.number
        self._begin()
        self.bytes = 0
        return entries

    def _begin(self) -> None:
        self.open = Columns()
        self.number += 1


class Lanes:
    """Both lanes of one link. Owned by one event loop."""

    __slots__ = ("first", "qos0", "window")

    def __init__(self) -> None:
        self.first = Lane(FRAME_BYTES, FRAME_MESSAGES)
        self.qos0 = Lane(qos0_window.FRAME_BYTES, qos0_window.FRAME_MESSAGES)
        self.window = Qos0Window()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return self.first.is_empty and self.qos0.is_empty

    def add(
        self, rule: TopicRule, client_id: str, sequence: int, payload: bytes, flags: int, run: PublishRun | None
    ) -> bool:
        """Append one message, or a run; return whether the link is to be woken for it."""
        lane = self.qos0
        if flags & QOS:
            if rule.last_qos0 <= lane.taken:
                lane = self.first
            else:
                rule.last_qos0 = lane.number
                if rule.route is not None:
                    rule.route.last_qos0 = lane.number
        elif rule.is_ordered:
            lane = self.first
        else:
            if flags & RETAIN:
                rule.last_qos0 = lane.number
            route: LocalRoute | None = rule.route
            if route is not None:
                route.last_qos0 = lane.number
            lane.max_bytes = self.window.frame_bytes
            lane.max_messages = self.window.frame_messages
        is_new = not lane.open.sequences
        lane.add(rule, client_id, sequence, payload, flags, run)
        return is_new

    def ask(self, route: LocalRoute) -> None:
        """Add a question, after all messages of its topic."""
        lane = self.qos0 if route.last_qos0 > self.qos0.taken else self.first
        lane.open.questions.append(route)

    def take(self, frame: int) -> Columns | None:
        """Return and forget the batch whose turn it is; None: there is none for now.

        Args:
            frame: number of the one that takes it.
        """
        others_wait = not self.first.is_empty
        now = time.monotonic()
        if not self.qos0.is_empty and self.window.has_turn(others_wait, now):
            columns = self.qos0.take()
            if others_wait and columns.questions:  # they follow the messages of QoS 1 and 2, too
                self.first.open.questions += columns.questions
                columns.questions = []
            columns.is_awaited = self.window.sent(frame)
            return columns
        if not others_wait:
            return None
        columns = self.first.take()
        if columns.sequences:
            self.window.passed(now)
            columns.is_first = True
        return columns

    def clear(self) -> list[Entry]:
        """Forget everything, and return the messages."""
        self.window.reset()
        return self.first.clear() + self.qos0.clear()
