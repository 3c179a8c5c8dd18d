"""What `services.common.log_writer` holds for each stream: its messages in flight and those waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
"""Bounds of the pause after a failure; it doubles from one to the other."""

EXPECTATION_BYTES = 256
"""Room for the header that an ordered message may get when it is sent; message ids have up to 128 characters."""
FULL_BYTES = 4 << 20
"""Bytes of a lane that are not reported, above which it is full."""
FULL_AWAY_BYTES = 256 << 10
"""The same while there is no connection: all lanes grow then."""
EASED_BYTES = 2 << 20
"""Bytes below which it is full no more, once something was stored."""
WAITING = 0
"""`Message.sequence` of a message without an answer."""
REFUSED = -1
"""`Message.sequence` of one that can never be stored."""


class Message:
    """A message that was written and not reported yet."""

    __slots__ = (
        "failure",
        "head",
        "is_duplicate",
        "lane",
        "message_id",
        "number",
        "payload",
        "sequence",
        "size",
        "token",
    )

    def __init__(self, lane: Lane, number: int, message_id: str, head: bytes, payload: bytes, token: object) -> None:
        self.lane = lane
        self.message_id = message_id
        self.number = number
        self.head = head  # control line and header block
        self.payload = payload
        self.token = token
        self.size = len(head) + len(payload)
        self.sequence = WAITING
        self.is_duplicate = False
        self.failure = ""


class Lane:
    """The messages of one stream, in the order of writing: those in flight, then those waiting to be sent."""

    __slots__ = (
        "flight",
        "is_full",
        "is_ordered",
        "is_probing",
        "is_queued",
        "name",
        "pause_s",
        "progress",
        "reserve",
        "retry_at",
        "sent",
        "size",
        "waiting",
    )

    def __init__(self, name: str, *, is_ordered: bool) -> None:
        self.name = name
        self.is_ordered = is_ordered
        self.reserve = EXPECTATION_BYTES if is_ordered else 0
        self.sent: Message | None = None  # the last one in flight that was sent and not answered before
        self.flight: deque[Message] = deque()
        self.waiting: deque[Message] = deque()
        self.size = 0  # bytes that are not reported
        self.is_full = False  # see `Fullness`
        self.is_queued = False  # has its place in the writer's queue of lanes to send
        self.is_probing = False  # after a failure: one message at a time until one is acknowledged
        self.pause_s = FIRST_PAUSE_S
        self.retry_at = 0.0
        self.progress = 0.0  # when the oldest message in flight became the oldest, monotonic seconds


class Fullness:
    """Tells which lanes are full: whoever writes to them should wait, and others need not.

    Args:
        told: called with the name of a lane, and whether it is full, when that changes.
    """

    def __init__(self, told: Callable[[str, bool], None]) -> None:
        self._told = told

    def grew(self, lane: Lane, size: int, *, is_connected: bool) -> None:
        """Note that a message of so many bytes was written."""
        lane.size += size
        if not lane.is_full and lane.size > (FULL_BYTES if is_connected else FULL_AWAY_BYTES):
            lane.is_full = True
            self._told(lane.name, True)  # noqa: FBT003 - the shape of a callback

    def shrank(self, lane: Lane, size: int) -> None:
        """Note that a message of so many bytes was reported."""
        lane.size -= size
        if lane.is_full and lane.size <= EASED_BYTES:
            lane.is_full = False
            self._told(lane.name, False)  # noqa: FBT003 - as above
