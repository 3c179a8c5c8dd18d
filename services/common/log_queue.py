"""What the log writer was given and has not sent, lane by lane."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from nats.aio.client import Client

from services.common.log_lanes import WAITING, Fullness, Lane, Lanes, Message
from services.common.log_runs import RunMessage
from services.common.log_tail import LogTails
from services.common.log_wire import MESSAGE_ID, header_block, header_lines
from services.common.raw_nats import is_clustered


class LogQueue:
    """Takes messages for a `LogWriter`, which describes the arguments."""

    def __init__(
        self,
        client: Client,
        *,
        stream_tokens: int,
        is_ordered: Callable[[str], bool] | None,
        is_ours: Callable[[str], bool] | None,
        is_full: Callable[[str, bool], None] | None,
        tails: LogTails | None,
    ) -> None:
        self._client = client
        self._fullness = Fullness(is_full) if is_full is not None else None
        self._inbox = f"{client.new_inbox()}."
        self._inbox_size = len(self._inbox)
        self._number = 0
        stream_of = tails.stream_of if tails is not None else None
        self._lanes = Lanes(stream_tokens, is_ordered, is_ours, stream_of, is_clustered=is_clustered(client))
        self._queue: deque[Lane] = deque()  # lanes with messages to send now
        self._wake = asyncio.Event()
        self._written = 0  # messages since the last turn
        self.backlog_messages = 0
        """Messages written and not reported yet."""
        self.backlog_bytes = 0
        """Size of those messages with their headers."""

    @property
    def is_connected(self) -> bool:
        """Whether NATS answers, so that the backlog shrinks."""
        return self._client.is_connected

    def write(self, subject: str, payload: bytes, headers: dict[str, str], token: object) -> None:
        """Queue a message; never blocks.

        Args:
            subject: made by `services.common.subjects`, so that it is a valid one.
            payload: of the message.
            headers: `Nats-Msg-Id` and others; control characters in values become `%XX`.
            token: given to `stored`; None: nobody is told.
        """
        self.write_lines(subject, payload, headers.get(MESSAGE_ID, ""), header_lines(headers), token, False, False)  # noqa: FBT003 - hot path

    def write_lines(
        self,
        subject: str,
        payload: bytes,
        message_id: str,
        lines: bytes,
        token: object,
        may_repeat: bool,  # noqa: FBT001 - hot path
        is_found: bool,  # noqa: FBT001
    ) -> None:
        """Queue a message as `write` does.

        Args:
            subject: as there.
            payload: of the message.
            message_id: its `Nats-Msg-Id`, or its `mqttMsgId`; empty: it has none.
            lines: the other headers, made by `log_wire.header_lines`.
            token: as there.
            may_repeat: the stream may have the message already: from the process before this one, or by another call.
            is_found: a repeat may be looked for in the stream, among those of the process before this one; else
                JetStream finds it by its table of ids, whatever wrote the message.
        """
        name, head = self._lanes.subject(subject)
        lane = self._lanes.lane(name)
        number = self._number = self._number + 1
        if may_repeat and is_found:
            lane.asks_before = True
        is_indexed = lane.is_ordered or not is_found or not lane.finds()
        block = header_block(message_id, lines, is_indexed)
        self._add(Message(lane, number, message_id, head, block, payload, token, may_repeat, is_found, is_indexed))

    def write_run(
        self,
        subject: str,
        packets: bytes,
        count: int,
        payload_bytes: int,
        ids: str,
        first: int,
        lines: bytes,
        token: object,
    ) -> None:
        """Queue messages that are reported together, with the sequence of the first; see `log_runs`.

        Repeats of them may be looked for, as with `is_found` of `write_lines`.

        Args:
            subject: as of `write`.
            packets: all of one length; each ends with a payload.
            count: of the messages.
            payload_bytes: length of each payload.
            ids: what the id of each begins with.
            first: number that it ends with; the others have the next ones.
            lines: as of `write_lines`, of each.
            token: as there; a message that is reported by itself has a `log_runs.Part` with it.
        """
        name, head = self._lanes.subject(subject)
        lane = self._lanes.lane(name)
        self._number += count
        is_indexed = lane.is_ordered or not lane.finds()
        run = RunMessage(lane, self._number, ids, first, head, lines, packets, count, payload_bytes, token, is_indexed)
        self._add(run)

    def _add(self, message: Message) -> None:
        lane = message.lane
        lane.check(message, self._inbox_size, self._client.max_payload)
        if message.count > 1 and message.sequence != WAITING:  # one by one: it may be the length of its number
            for part in message.split():
                self._add(part)
            return
        self._written += message.count
        self.backlog_messages += message.count
        self.backlog_bytes += message.size
        lane.waiting.append(message)
        if self._fullness is not None:
            self._fullness.grew(lane, message.size, is_connected=self._client.is_connected)
        if not lane.is_queued and lane.retry_at == 0.0 and not lane.is_held():
            self._enqueue(lane)
            self._wake.set()

    def is_stuck(self, subject: str) -> bool:
        """Say whether the stream of a subject takes nothing for now, and its lane is full."""
        lane = self._lanes.lane(self._lanes.subject(subject)[0])
        return lane.is_full and (lane.is_probing or not self._client.is_connected)

    def probe(self, subject: str) -> None:
        """Send what is written next alone until it is acknowledged: the stream may be about to be made.

        Otherwise the messages behind it, sent when the stream is there, would be stored before it.
        """
        lane = self._lanes.lane(self._lanes.subject(subject)[0])
        if not lane.flight:
            lane.is_probing = True

    def _enqueue(self, lane: Lane) -> None:
        """Let a lane be sent, unless it pauses or is about to be sent."""
        if not lane.is_queued and lane.retry_at == 0.0:
            lane.is_queued = True
            self._queue.append(lane)
