"""How much of QoS 0 a link has under way. Pure, hot path.

Messages of QoS 1 and 2 have frames of their own, which go first; but none overtakes a frame that is on the stream
already, and a busy process takes one frame from a stream in each turn of its loop. So one frame of QoS 0 is under way
while others flow: each of their frames halves the window, each confirmation of one of QoS 0 widens it by one. Alone,
QoS 0 has the whole window within a few confirmations. When others are late for want of CPU time, it goes slower still:
who publishes it is then read from seldom and much at a time, which costs a fraction.

[MQTT-4.6.0-6] has messages in order for the same topic and QoS.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MOST_FRAMES: Final = 8
"""Frames under way at the most; at least one may be."""

NARROW_FRAMES: Final = 2
"""Up to so many, others flow."""

FRAME_BYTES: Final = 128 << 10
FRAME_MESSAGES: Final = 1024
"""A frame of QoS 0 is closed when it has reached one of these: some milliseconds of work for whoever takes it."""

NARROW_BYTES: Final = 32 << 10
NARROW_MESSAGES: Final = 256
"""The same while others flow: with one frame at a time they leave QoS 0 the smaller part of the CPU time."""

PATIENCE: Final = 16
"""Frames of others after which one of QoS 0 goes although others wait, or are late: nobody must be cut off."""


class Qos0Window:
    """What of QoS 0 is under way on one link and direction."""

    __slots__ = ("_frames", "_limit", "_passed", "is_held", "is_late")

    def __init__(self) -> None:
        self._frames: deque[int] = deque()  # their numbers
        self._limit: int = MOST_FRAMES
        self._passed = 0
        self.is_held = False
        """Whether the peer wants no more for now."""
        self.is_late = False
        """Whether messages of QoS 1 and 2 take too long."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._frames

    @property
    def is_narrow(self) -> bool:
        """Whether messages of QoS 1 or 2 flow."""
        return self.is_late or self._limit <= NARROW_FRAMES

    @property
    def frame_bytes(self) -> int:
        """Size at which a frame is closed."""
        return NARROW_BYTES if self.is_narrow else FRAME_BYTES

    @property
    def frame_messages(self) -> int:
        """Messages at which a frame is closed."""
        return NARROW_MESSAGES if self.is_narrow else FRAME_MESSAGES

    def has_turn(self, others_wait: bool) -> bool:  # noqa: FBT001 - hot path
        """Say whether the next frame may be one of QoS 0."""
        if self.is_held:
            return False
        if others_wait or self.is_late:
            return self._passed >= PATIENCE and not self._frames
        return len(self._frames) < self._limit

    def passed(self) -> None:
        """Note that a frame with messages of QoS 1 or 2 goes."""
        self._passed += 1
        self._limit = max(1, self._limit >> 1)

    def sent(self, frame: int) -> bool:
        """Note that a frame of QoS 0 goes, and return whether it is to be confirmed at once."""
        self._passed = 0
        self._frames.append(frame)
        return 2 * len(self._frames) >= self._limit

    def confirmed(self, through: int) -> None:
        """Note that the peer has the frames through this number."""
        frames = self._frames
        while frames and frames[0] <= through:
            frames.popleft()
            self._limit = min(MOST_FRAMES, self._limit + 1)

    def reset(self) -> None:
        """Forget all frames; nothing is held."""
        self._frames.clear()
        self._limit = MOST_FRAMES
        self._passed = 0
        self.is_held = False
        self.is_late = False
