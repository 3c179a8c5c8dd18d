"""What `services.common.log_writer` holds for each stream: its messages in flight and those waiting."""

from __future__ import annotations

from collections import deque

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
"""Bounds of the pause after a failure; it doubles from one to the other."""

EXPECTATION_BYTES = 256
"""Room for the header that an ordered message may get when it is sent; message ids have up to 128 characters."""
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
        "is_ordered",
        "is_probing",
        "is_queued",
        "name",
        "pause_s",
        "progress",
        "reserve",
        "retry_at",
        "sent",
        "waiting",
    )

    def __init__(self, name: str, *, is_ordered: bool) -> None:
        self.name = name
        self.is_ordered = is_ordered
        self.reserve = EXPECTATION_BYTES if is_ordered else 0
        self.sent: Message | None = None  # the last one in flight that was sent and not answered before
        self.flight: deque[Message] = deque()
        self.waiting: deque[Message] = deque()
        self.is_queued = False  # has its place in the writer's queue of lanes to send
        self.is_probing = False  # after a failure: one message at a time until one is acknowledged
        self.pause_s = FIRST_PAUSE_S
        self.retry_at = 0.0
        self.progress = 0.0  # when the oldest message in flight became the oldest, monotonic seconds
