"""When publishers are read from: what waits for a router is bounded by reading no more, so TCP slows who sends it.

Too much of QoS 0 slows those who send it, one by one; too much of anything slows everybody. Hot path.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from services.common.qos0_window import FLOW_S
from services.edge.hub import Hub
from services.edge.lanes import Lanes
from services.edge.local_delivery import LocalDelivery
from services.edge.pace import QUANTUM, Pace
from services.edge.ports import Client
from services.edge.short_way import ShortWay

HIGH_BYTES: Final = 8 << 20
LOW_BYTES: Final = 2 << 20
"""Marks of what waits, but for QoS 0."""

QOS0_HIGH_BYTES: Final = 1 << 20
QOS0_LOW_BYTES: Final = 512 << 10
"""Marks of what waits of QoS 0: some ten milliseconds, so that reading it never keeps the others for long."""

NARROW_BYTES: Final = 32 << 10
"""Both marks while messages of QoS 1 or 2 flow: what was read is to be on its way before more is."""

SETTLE_S: Final = 0.001
"""How long those who go on then have to bring something before others do."""

READ_BYTES: Final = 32 << 10
"""What one publisher may bring when it is read from again."""

PART: Final = 8
MOST: Final = 32
"""Of those who wait when nothing is left, one in so many goes on, and so many at the most."""


class Flow:
    """Who waits for room on the link with one router. Owned by one event loop.

    Args:
        hub: knows those who pause with everybody.
        lanes: what waits for frames.
        short: what waits for answers.
        local: likewise.
    """

    def __init__(self, hub: Hub, lanes: Lanes, short: ShortWay, local: LocalDelivery) -> None:
        self._hub = hub
        self._lanes = lanes
        self._short = short
        self._local = local
        self._waiting: deque[Client] = deque()
        self._is_waiting: set[Client] = set()
        self._pace = Pace()
        self._is_timed = False  # whether `_look` is to come
        self.is_congested = False
        """Whether everybody must pause."""

    @property
    def held_bytes(self) -> int:
        """Size of the messages that wait for answers about their topics."""
        return self._short.held_bytes + self._local.held_bytes

    def judge(self, is_late: bool) -> None:  # noqa: FBT001 - hot path
        """Note that a message of QoS 1 or 2 was acknowledged in time, or is late."""
        self._pace.judge(is_late, time.monotonic())

    def took(self, client: Client, qos: int, size: int) -> None:
        """Note that a message, or a run, was taken over from a client.

        Args:
            client: that sent it.
            qos: of the message.
            size: bytes that wait in the lane of QoS 0; 0: it takes another way.
        """
        lanes = self._lanes
        held_bytes = self.held_bytes
        if lanes.first.bytes + held_bytes > HIGH_BYTES:
            self.is_congested = True
        if qos:
            return
        is_ahead, mark = False, QOS0_HIGH_BYTES
        if lanes.window.is_narrow:
            is_ahead, mark = size > 0 and self._pace.read(size, time.monotonic()), NARROW_BYTES
        if (is_ahead or lanes.qos0.bytes + held_bytes > mark) and client not in self._is_waiting:
            self._is_waiting.add(client)
            self._waiting.append(client)
            client.wait_for_room()

    def relieve(self) -> None:
        """Let publishers go on as there is room."""
        lanes = self._lanes
        held_bytes = self.held_bytes
        if self.is_congested and lanes.first.bytes + held_bytes < LOW_BYTES:
            self.is_congested = False
            self._hub.resume_publishers()
        if not self._waiting:
            return
        now = time.monotonic()
        if lanes.window.look(now):
            if not self._is_timed and lanes.qos0.bytes + held_bytes <= NARROW_BYTES:
                self._relieve_slowly(now)
            return
        count = (QOS0_LOW_BYTES - lanes.qos0.bytes - held_bytes) // READ_BYTES
        if lanes.qos0.is_empty:
            count = max(count, min(MOST, len(self._waiting) // PART))
            if lanes.window.is_empty and not held_bytes:
                count = len(self._waiting)  # nothing is under way whose end would let the next ones go on
        self._go_on(count)

    def _relieve_slowly(self, now: float) -> None:
        debt_s = self._pace.debt_s(now)
        if not debt_s:
            self._go_on(QUANTUM // READ_BYTES)
        if self._waiting:
            self._is_timed = True
            self._hub.call_later(min(debt_s, FLOW_S) + SETTLE_S, self._look)  # others may have ended meanwhile

    def _look(self) -> None:
        self._is_timed = False
        self.relieve()

    def _go_on(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            client = self._waiting.popleft()
            self._is_waiting.discard(client)
            client.have_room()
