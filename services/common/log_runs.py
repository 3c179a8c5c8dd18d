"""Runs of messages on their way to a log: written, sent and reported as one thing, until something fails.

What has to go message by message (after a failure, in a lane that sends one at a time) is split into its messages
first, whose tokens are `Part`: failures are told, counted and mended for messages alone.
"""

from __future__ import annotations

from typing_extensions import override

from services.common.log_lanes import CRLF, Lane, Message
from services.common.log_wire import command, header_block, run_edges


class Part:
    """Token of one message of a run, when it is reported by itself."""

    __slots__ = ("offset", "token")

    def __init__(self, token: object, offset: int) -> None:
        self.token = token  # of the run
        self.offset = offset  # how many messages of the run come before it


class RunMessage(Message):
    """Messages with equal properties and rising numbers; `number`, `message_id` and `block` are those of the last one.

    Args:
        lane: of their stream.
        number: of the last one; those before have the ones before.
        ids: what the message id of each begins with.
        first: number that the id of the first one ends with.
        head: of their commands.
        lines: header lines of each.
        packets: all of one length; each ends with a payload.
        count: of the messages.
        payload_bytes: length of each payload.
        token: of all of them.
        is_indexed: as of `Message`.
    """

    __slots__ = ("first", "ids", "lines")

    def __init__(
        self,
        lane: Lane,
        number: int,
        ids: str,
        first: int,
        head: bytes,
        lines: bytes,
        packets: bytes,
        count: int,
        payload_bytes: int,
        token: object,
        is_indexed: bool,  # noqa: FBT001 - hot path
    ) -> None:
        last = f"{ids}{first + count - 1}"
        block = header_block(last, lines, is_indexed)
        super().__init__(lane, number, last, head, block, packets, token, False, True, is_indexed)  # noqa: FBT003 - hot path
        self.ids = ids
        self.first = first
        self.lines = lines
        self.payload_bytes = payload_bytes
        self.count = count
        self.size = count * (len(head) + len(self.block) + payload_bytes)

    @override
    def add_commands(self, reply: bytes, follows: str, is_ordered: bool, parts: list[bytes]) -> None:
        """Add what publishes the messages; `reply` is for the last one, `follows` for the first."""
        last = self.first + self.count - 1
        if is_ordered or len(str(self.first)) != len(str(last)):  # each has a length of its own
            self._add_one_by_one(reply, follows, is_ordered, parts)
            return
        start, end = run_edges(self.head, self.ids, self.lines, len(self.block), self.payload_bytes, self.is_indexed)
        next_start = CRLF + start
        packets = self.payload
        payload_bytes = self.payload_bytes
        step = len(packets) // self.count
        stop = step
        add = parts.append
        begin = start
        for number in range(self.first, last):
            add(begin)
            add(b"%d" % number)
            add(end)
            add(packets[stop - payload_bytes : stop])
            begin = next_start
            stop += step
        if last > self.first:
            add(CRLF)
        add(command(self.head, reply, self.block, payload_bytes, ""))
        add(packets[stop - payload_bytes : stop])
        add(CRLF)

    def _add_one_by_one(self, reply: bytes, follows: str, is_ordered: bool, parts: list[bytes]) -> None:  # noqa: FBT001 - hot path
        messages = self.split()
        for message in messages:
            message.add_commands(reply if message is messages[-1] else b"", follows, is_ordered, parts)
            if is_ordered:
                follows = message.message_id

    @override
    def ids_of_all(self) -> list[str]:
        """Return the ids of the messages that this is."""
        return [f"{self.ids}{number}" for number in range(self.first, self.first + self.count)]

    @override
    def split(self) -> list[Message]:
        """Return the messages one by one; the last one has the answer, if there was one."""
        packets = self.payload
        step = len(packets) // self.count
        parts: list[Message] = []
        for offset in range(self.count):
            message_id = f"{self.ids}{self.first + offset}"
            block = header_block(message_id, self.lines, self.is_indexed)
            stop = (offset + 1) * step
            payload = packets[stop - self.payload_bytes : stop]
            number = self.number - self.count + 1 + offset
            token = Part(self.token, offset)
            part = Message(
                self.lane,
                number,
                message_id,
                self.head,
                block,
                payload,
                token,
                self.may_repeat,
                self.is_found,
                self.is_indexed,
            )
            part.size = self.size // self.count
            parts.append(part)
        parts[-1].sequence = self.sequence
        parts[-1].is_duplicate = self.is_duplicate
        parts[-1].failure = self.failure
        return parts
