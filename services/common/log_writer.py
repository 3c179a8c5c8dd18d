"""Pipelined publishing to JetStream: what is written is stored, whatever fails in between.

`js.publish` waits for each acknowledgement by a task and a future of its own; here a message costs a few
microseconds. Messages are ordered within their stream, which the leading tokens of the subject name (a *lane*); each
lane is a queue whose head part is in flight. A message is published with a reply subject, `<inbox>.<number>`, and one
subscription takes the acknowledgements of all. In a stream that nobody else writes to, messages that are sent together
form a *group*, and only the last one has a reply subject: NATS and this process spend a third of their time on replies.

- An acknowledgement reports its message, or its group, once all before it in the lane have been reported. That of
  a group counts when its sequence is the end of the stream before plus the number of messages: so all were stored, one
  after the other. Otherwise some were not, or somebody else wrote, and the lane is sent again, now message by message.
  What another process may have stored is in no group: a repeat that is dropped must not make up for a foreign message.
- An error, "no responders" (no such stream, JetStream starting) or silence sends the lane back: everything from the
  oldest message not acknowledged on is sent again, in order and without groups, after a pause of 0.1 to 2 s, and one
  message goes ahead alone until it is acknowledged. There is no end to this; a stream that is missing holds up its own
  lane only, until its backlog reaches the bound of whoever writes.
- A new connection to NATS sends every lane back at once.
- A message that can never be stored (too large for the server or the stream) is reported as failed, in its turn.

Reports come in the order of writing in every lane, and `log_lanes` says what order the streams have. Of what is sent
again JetStream drops repeats within the duplicate window of the stream, or (`is_found`) they are looked for in it
first: a *fence*, a message that JetStream refuses behind all that was sent, tells where it ends (decision 13).
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Coroutine

from nats.aio.client import Client
from nats.aio.msg import Msg

from services.common import log_lanes
from services.common.log_lanes import REFUSED, WAITING, Group, Lane, Message
from services.common.log_pump import pump
from services.common.log_queue import LogQueue
from services.common.log_tail import LogTails, Look
from services.common.log_wire import fault, fence, is_duplicate, last_sequence, stored_at
from services.common.raw_nats import is_clustered, write

logger = logging.getLogger(__name__)

GONE_PAUSE_S = 0.8
"""Pause from which on is asked whether a stream is gone for good: about a second of failures."""
BURST = 256
"""Messages of one lane sent before the next lane has its turn."""
MANY = 256
"""Messages that are worth sending while others are still being written: more than the socket takes at a time."""

# Answers of JetStream that sending again cannot change: message and header too large for the stream.
_PERMANENT = frozenset({10054, 10097})


class LogWriter(LogQueue):
    """Writes messages to JetStream streams. Owned by one event loop; `run` is its pump.

    Bounded by its caller: `write` takes everything, `backlog_bytes` tells what has not been reported yet, and whoever
    reads from outside stops reading above a mark of its own.

    Args:
        client: connected to NATS and reconnecting by itself.
        stored: called with (token, sequence in the stream, whether it had been stored before) for each message that
            has a token, once, in the order of writing within a stream.
        failed: called instead with (token, reason) for a message that can never be stored.
        stream_tokens: how many leading tokens of a subject name its stream, so that order is kept among subjects that
            agree in them: 4 for the message logs, 3 for lifecycle events.
        window_messages: bound of the messages in flight.
        window_bytes: bound of their size.
        is_ordered: says whether a lane, by its tokens, is ordered; asked whenever a lane begins. None: no lane is.
        is_ours: says whether nobody else writes to the stream of a lane; asked likewise. None: others do.
        is_gone: says whether the stream of a lane that fails is gone for good: its messages are then reported as
            failed. None: it never is.
        is_full: called with the tokens of a lane, and whether it is full (`log_lanes.Fullness`), when that changes.
        tails: looks for repeats in the streams, as far as they are ours. None: JetStream is to know all ids.
        ack_timeout_s: time without an acknowledgement after which a lane is sent again, in seconds.
    """

    def __init__(
        self,
        client: Client,
        *,
        stored: Callable[[object, int, bool], None],
        failed: Callable[[object, str], None] | None = None,
        stream_tokens: int = 3,
        window_messages: int = 4096,
        window_bytes: int = 8 << 20,
        ack_timeout_s: float = 5.0,
        is_ordered: Callable[[str], bool] | None = None,
        is_ours: Callable[[str], bool] | None = None,
        is_gone: Callable[[str], bool] | None = None,
        is_full: Callable[[str, bool], None] | None = None,
        tails: LogTails | None = None,
    ) -> None:
        super().__init__(
            client, stream_tokens=stream_tokens, is_ordered=is_ordered, is_ours=is_ours, is_full=is_full, tails=tails
        )
        self._tails = tails
        self._stored = stored
        self._failed = failed
        self._window_messages = window_messages
        self._window_bytes = window_bytes
        self._ack_timeout_s = ack_timeout_s
        self._is_gone = is_gone
        self._inbox_bytes = self._inbox.encode()
        self._fences: dict[int, Lane] = {}  # by number; see `Lane.fence`
        self._asked: dict[int, Message] = {}  # by number; not reported, and at some time sent with a reply subject
        self._paused: list[Lane] = []  # lanes that wait for `retry_at`
        self._flight_messages = 0
        self._flight_bytes = 0
        self._connection = -1  # the client's count of reconnects when the messages in flight were sent
        self._error: Exception | None = None
        self._is_running = False  # answers are taken, so something may be sent
        self._is_reporting = False  # what calls `push` may have been called from here
        self.stored_messages = 0
        """Messages reported as stored."""
        self.failures = 0
        """How often a lane was sent back."""

    def run(self) -> Coroutine[object, object, None]:
        """Send what is written until cancelled; then nothing more is sent or reported.

        Raises:
            nats.errors.ConnectionClosedError: the client was closed for good.
        """
        return self._pump() if self._tails is None else self._tails.beside(self._pump)

    def _pump(self) -> Coroutine[object, object, None]:
        return pump(
            self._client,
            f"{self._inbox}*",
            take=self._on_answer,
            turn=self._on_turn,
            ended=self._on_end,
            wake=self._wake,
        )

    def push(self) -> None:
        """Send what was written when it is much, so that NATS works on it while more is written.

        To be called between messages, by whom `stored` and `failed` may call back meanwhile.
        """
        if self._written >= MANY and self._is_running and not self._is_reporting and self._error is None:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - not the caller's; `run` raises it
                self._error = error
                self._wake.set()

    def _on_turn(self) -> bool:
        if self._error is not None:
            raise self._error
        self._is_running = True
        return self._turn()

    def _on_end(self) -> None:
        self._is_running = False

    def _turn(self) -> bool:
        """Send what can be sent; return whether something is not reported yet."""
        self._written = 0
        self._is_reporting = True
        now = time.monotonic()
        self._check(now)
        self._end_pauses(now)
        if self._client.is_connected:
            self._send(now)
        self._is_reporting = False
        return self.backlog_messages > 0

    def _check(self, now: float) -> None:
        """Send lanes back whose messages in flight are lost."""
        connection = self._client.stats["reconnects"]
        if connection != self._connection:
            self._connection = connection
            clustered = self._lanes.is_clustered = is_clustered(self._client)
            for lane in self._lanes.used.values():
                lane.is_clustered = clustered
                if lane.flight or lane.fence:
                    self._send_back(lane)
                    self._paused.append(lane)
                if lane.retry_at:
                    lane.retry_at = now
        elif (self._flight_messages or self._fences) and self._client.is_connected:
            for lane in self._lanes.used.values():
                if (lane.flight or lane.fence) and now - lane.progress > self._ack_timeout_s:
                    self._fail(lane, "no acknowledgement")

    def _end_pauses(self, now: float) -> None:
        if self._paused:
            for lane in self._paused:
                if lane.retry_at <= now:
                    lane.retry_at = 0.0
                    self._enqueue(lane)
            self._paused = [lane for lane in self._paused if lane.retry_at]

    def _send(self, now: float) -> None:
        """Send from each lane in turn as far as the window allows."""
        parts: list[bytes] = []
        queue = self._queue
        while queue and self._flight_messages < self._window_messages and self._flight_bytes < self._window_bytes:
            lane = queue.popleft()
            lane.is_queued = False
            self._send_lane(lane, parts, now)
            if lane.waiting and not lane.is_held():
                self._enqueue(lane)
            elif not lane.waiting and not lane.flight and not lane.is_queued:  # a callback may have written to it
                self._lanes.finish(lane)
        if parts:
            write(self._client, parts)

    def _send_lane(self, lane: Lane, parts: list[bytes], now: float) -> None:
        if not lane.flight:
            lane.progress = now
            lane.sent = ""
        budget = min(BURST, self._window_messages - self._flight_messages)
        group: list[Message] = []
        while lane.waiting and budget > 0 and self._flight_bytes < self._window_bytes and not lane.is_held():
            message = lane.waiting[0]
            if message.may_repeat and lane.must_find(message):
                self._ask_end(lane, message, parts, now)
                return
            lane.waiting.popleft()
            if message.sequence == WAITING and not lane.may_send_whole(message):
                lane.waiting.extendleft(reversed(message.split()))
                continue
            lane.flight.append(message)
            self._flight_messages += message.count
            self._flight_bytes += message.size
            budget -= message.count
            if message.sequence != WAITING:  # answered while it waited to be sent again, or refused
                self._publish(lane, group, parts)
                lane.groups.append(Group(message, 1, is_end=message.is_duplicate))
                if lane.flight[0] is message:
                    self._report(lane, now)
                continue
            if lane.may_group(message):
                group.append(message)
                continue
            self._publish(lane, group, parts)
            lane.lone = max(0, lane.lone - 1)
            self._publish(lane, [message], parts)
        self._publish(lane, group, parts)

    def _ask_end(self, lane: Lane, message: Message, parts: list[bytes], now: float) -> None:
        """Ask where the stream of a lane ends, behind all that was sent, to look for what may be a repeat."""
        lane.progress = now
        self._number += 1
        lane.fence = self._number
        self._fences[lane.fence] = lane
        parts.append(fence(message.head, b"%b%d " % (self._inbox_bytes, lane.fence)))

    def _find(self, lane: Lane, number: int, answer: Msg) -> None:
        """Look for what may be a repeat, now that is known where the stream ends."""
        if lane.fence != number:
            return
        lane.fence = 0
        _, reason = fault(answer)
        last = last_sequence(reason)
        if last < 0 or self._tails is None:
            self._fail(lane, reason)
            return
        ids = lane.wanted()
        lane.is_reading = True
        before = -1
        if lane.asks_before:  # where the messages of this process begin, if it has stored any
            before = lane.begin - 1 if 0 < lane.begin <= last else last
        found = functools.partial(self._on_found, lane, ids)
        self._tails.find(Look(lane.stream, last, set(ids), lane.lone, before, found))

    def _on_found(self, lane: Lane, wanted: set[str], sequences: dict[str, int] | None) -> None:
        lane.is_reading = False
        if sequences is None:
            self._fail(lane, "the end of the stream can't be read")
            return
        lane.found(wanted, sequences)
        self._enqueue(lane)
        self._wake.set()

    def _publish(self, lane: Lane, group: list[Message], parts: list[bytes]) -> None:
        """Add the commands of a group, and empty it."""
        if not group:
            return
        lane.send(group, self._inbox_bytes, parts)
        self._asked[group[-1].number] = group[-1]
        group.clear()

    def _on_answer(self, answer: Msg) -> None:
        self._is_reporting = True
        try:
            self._take(answer)
            self._is_reporting = False
        except Exception as error:  # noqa: BLE001 - nats-py would stop reading; `run` raises it
            self._error = error
            self._wake.set()

    def _take(self, answer: Msg) -> None:
        digits = answer.subject[self._inbox_size :]
        number = int(digits) if digits.isdecimal() else 0
        message = self._asked.get(number)
        if message is None or message.sequence != WAITING:
            if number in self._fences:
                self._find(self._fences.pop(number), number, answer)
            return  # or an answer to one of several attempts
        lane = message.lane
        data = answer.data
        sequence = stored_at(data)
        if not sequence:
            code, reason = fault(answer)
            if code in _PERMANENT:
                message.sequence = REFUSED
                message.failure = reason
            elif lane.retry_at == 0.0 and lane.flight:
                self._fail(lane, reason)
                return
            else:
                return  # one of many that failed together
        else:
            message.sequence = sequence
            message.is_duplicate = is_duplicate(data)
        if lane.groups and lane.groups[0].last is message:
            self._report(lane, time.monotonic())
            if lane.waiting:
                self._enqueue(lane)
            elif not lane.flight and not lane.is_queued and lane.retry_at == 0.0:
                self._lanes.finish(lane)
            if self._queue:
                self._wake.set()

    def _report(self, lane: Lane, now: float) -> None:
        """Report the messages at the head of a lane that have their answer."""
        groups = lane.groups
        while groups and groups[0].last.sequence != WAITING:
            group = groups[0]
            last = group.last
            if not lane.fits(group):
                logger.info("log writer repeats messages one by one", extra={"stream": lane.name})
                self._send_back(lane)
                lane.lone += log_lanes.DOUBTFUL_MESSAGES
                return
            groups.popleft()
            lane.note_end(group)
            if not lane.begin and last.sequence != REFUSED and not last.is_duplicate:
                self._lanes.begin(lane, last.sequence - group.count + 1)
            sequence = last.sequence - group.count + 1
            while True:
                message = lane.flight.popleft()
                self._end(message, sequence)
                sequence += message.count
                if message is last:
                    break
        lane.progress = now
        lane.is_probing = False
        lane.pause_s = log_lanes.FIRST_PAUSE_S

    def _end(self, message: Message, sequence: int) -> None:
        """Report a message that is not in flight any more."""
        self._asked.pop(message.number, None)
        self._flight_messages -= message.count
        self._flight_bytes -= message.size
        self.backlog_messages -= message.count
        self.backlog_bytes -= message.size
        lane = message.lane
        if self._fullness is not None:
            self._fullness.shrank(lane, message.size)
        if sequence != REFUSED:
            self.stored_messages += message.count
            if message.token is not None:
                self._stored(message.token, sequence, message.is_duplicate)
        else:
            logger.warning("message refused by the log", extra={"stream": lane.name, "reason": message.failure})
            if message.token is not None and self._failed is not None:
                self._failed(message.token, message.failure)

    def _fail(self, lane: Lane, reason: str) -> None:
        if self._is_gone is not None and lane.pause_s >= GONE_PAUSE_S and self._is_gone(lane.name):
            self._give_up(lane, reason)
            return
        if not lane.is_probing:  # once for each time that the lane fails, not for each attempt
            logger.warning("log does not store, trying on", extra={"stream": lane.name, "reason": reason})
        self._send_back(lane)
        lane.retry_at = time.monotonic() + lane.pause_s
        lane.pause_s = min(lane.pause_s * 2, log_lanes.LONGEST_PAUSE_S)
        self._paused.append(lane)
        self._wake.set()

    def _give_up(self, lane: Lane, reason: str) -> None:
        """Report all messages of a lane as failed: its stream is gone."""
        self._send_back(lane)
        for message in lane.waiting:
            if message.sequence == WAITING:
                message.sequence = REFUSED
                message.failure = reason
        lane.retry_at = 0.0
        lane.is_probing = False
        self._enqueue(lane)
        self._wake.set()

    def _send_back(self, lane: Lane) -> None:
        """Move what is in flight back in front of what waits."""
        self.failures += 1
        self._fences.pop(lane.fence, None)
        flight = lane.flight
        for _ in range(len(flight)):
            message = flight.popleft()
            self._flight_messages -= message.count
            self._flight_bytes -= message.size
            for part in message.split():
                if part.is_found and lane.finds():
                    part.may_repeat = True
                flight.append(part)
            if message.number in self._asked:  # the answer to a run is that to its last message
                self._asked[message.number] = flight[-1]
        lane.take_back()
        if lane.is_queued:
            lane.is_queued = False
            self._queue.remove(lane)
