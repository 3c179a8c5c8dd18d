"""How much of QoS 0 a link has under way. Pure, hot path.

Messages of QoS 1 and 2 have frames of their own, which go first; but none overtakes a frame that is on the stream
already, and a busy process takes one frame from a stream in each turn of its loop. So one frame of QoS 0 is under way
while others flow, and the link does not pause after it. How much of QoS 0 is read then is for `services.edge.pace`.

[MQTT-4.6.0-6] has messages in order for the same topic and QoS.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MOST_FRAMES: Final = 8
"""Frames under way at the most."""

FLOW_S: Final = 0.02
"""For how long others flow after a frame of theirs."""

FRAME_BYTES: Final = 128 << 10
FRAME_MESSAGES: Final = 1024
"""A frame of QoS 0 is closed when it has reached one of these: some milliseconds of work for whoever takes it."""

NARROW_BYTES: Final = 32 << 10
NARROW_MESSAGES: Final = 256
"""The same while others flow: with one frame at a time they leave QoS 0 the smaller part of the CPU time."""

PATIENCE: Final = 16
"""Frames of others after which one of QoS 0 goes although others wait: nobody must be cut off."""


class Qos0Window:
    """What of QoS 0 is under way on one link and direction."""

    __slots__ = ("_flowed_at", "_frames", "_passed", "is_held", "is_narrow")

    def __init__(self) -> None:
        self._frames: deque[int] = deque()  # their numbers
        self._flowed_at = -FLOW_S
        self._passed = 0
        self.is_held = False
        """Whether the peer wants no more for now."""
        self.is_narrow = False
        """Whether messages of QoS 1 or 2 flow, as far as was last looked."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._frames

    @property
    def frame_bytes(self) -> int:
        """Size at which a frame is closed."""
        return NARROW_BYTES if self.is_narrow else FRAME_BYTES

    @property
    def frame_messages(self) -> int:
        """Messages at which a frame is closed."""
        return NARROW_MESSAGES if self.is_narrow else FRAME_MESSAGES

    def look(self, now: float) -> bool:
        """Return whether messages of QoS 1 or 2 flow; `now`: monotonic seconds."""
        self.is_narrow = now < self._flowed_at + FLOW_S
        return self.is_narrow

    def has_turn(self, others_wait: bool, now: float) -> bool:  # noqa: FBT001 - hot path
        """Say whether the next frame may be one of QoS 0, which `sent` is told of."""
        if self.is_held:
            return False
        if others_wait:
            return self._passed >= PATIENCE and not self._frames
        return len(self._frames) < (1 if self.look(now) else MOST_FRAMES)

    def passed(self, now: float) -> None:
        """Note that a frame with messages of QoS 1 or 2 goes."""
        self._passed += 1
        self._flowed_at = now
        self.is_narrow = True

    def sent(self, frame: int) -> bool:
        """Note that a frame of QoS 0 goes, and return whether it is to be confirmed at once."""
        self._passed = 0
        self._frames.append(frame)
        return self.is_narrow or 2 * len(self._frames) >= MOST_FRAMES

    def confirmed(self, through: int) -> None:
        """Note that the peer has the frames through this number."""
        frames = self._frames
        while frames and frames[0] <= through:
            frames.popleft()

    def reset(self) -> None:
        """Forget all frames; nothing is held."""
        self._frames.clear()
        self._flowed_at = -FLOW_S
        self._passed = 0
        self.is_held = False
        self.is_narrow = False
