"""Reading of streams without consumers: single messages by sequence, pipelined, and whole stretches in batches.

Both are requests to `$JS.API.DIRECT.GET.<stream>`, answered to one subscription. A replica of a cluster may answer
before it has the newest messages: a message that it does not find is asked of the leader (`STREAM.MSG.GET`) before it
counts as gone, and who reads a stretch knows how far it goes.
Requests that get no answer - a time-out, another connection - are sent again, for ever: repeats are harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import time
from collections import deque
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.common.errors import UnavailableError
from services.common.raw_nats import Tap, settle, write

logger = logging.getLogger(__name__)

WINDOW = 1_024
"""Requests for single messages under way."""
ANSWER_S = 2.0
"""How long an answer may take; then the request is sent again."""
TICK_S = 0.05
BATCH_MESSAGES = 1_000
BATCH_BYTES = 4 << 20
"""Bounds of one batch."""
BATCH_S = 10.0

_NOT_FOUND = "404"
_NO_MESSAGE = (10037, 10059)
"""Error codes of JetStream: no message found, stream not found."""


def time_ms_of(timestamp: str) -> int:
    """Return a time as NATS writes it in milliseconds since 1970."""
    # Up to nine digits of a second, which are more than Python takes; none when they are zeros.
    time, _, fraction = timestamp.rstrip("Z").partition(".")
    seconds = int(dt.datetime.fromisoformat(f"{time}+00:00").timestamp())
    return seconds * 1000 + int(fraction[:3].ljust(3, "0"))


class StoredMessage:
    """A message of a stream."""

    __slots__ = ("headers", "payload", "sequence", "subject", "time_ms")

    def __init__(self, headers: dict[str, str], payload: bytes) -> None:
        self.headers = headers
        self.payload = payload
        self.subject = headers["Nats-Subject"]
        self.sequence = int(headers["Nats-Sequence"])
        self.time_ms = time_ms_of(headers["Nats-Time-Stamp"])


class _Request:
    """A request under way, for one message (`done`) or a batch (`messages`)."""

    __slots__ = ("asks_leader", "body", "done", "ended", "is_empty", "messages", "retry_at", "sent", "stream")

    def __init__(self, stream: str, body: bytes, done: Callable[[StoredMessage | None], None] | None) -> None:
        self.stream = stream
        self.body = body
        self.done = done
        self.messages: list[StoredMessage] = []
        self.ended = asyncio.Event() if done is None else None
        self.is_empty = False  # a batch that was answered, with nothing
        self.asks_leader = False
        self.sent = 0.0
        self.retry_at = 0.0


class LogReader:
    """Reads streams. Owned by one event loop; `run` is its pump."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = f"{client.new_inbox()}."
        self._number = 0
        self._flight: dict[int, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._connection = -1
        self._wake = asyncio.Event()
        self._is_heard = asyncio.Event()  # answers come

    @property
    def pending(self) -> int:
        """Single messages that were asked for and have not come."""
        return len(self._flight) + len(self._waiting)

    def fetch(self, stream: str, sequence: int, done: Callable[[StoredMessage | None], None]) -> None:
        """Have `done` called with a message, or with None when the stream does not have it; in any order."""
        self._waiting.append(_Request(stream, b'{"seq":%d}' % sequence, done))
        self._wake.set()

    async def read(self, stream: str, after: int) -> list[StoredMessage]:
        """Return the next messages of a stream after a sequence; none: it has none.

        Raises:
            UnavailableError: NATS does not answer, or nobody there knows the stream now.
        """
        body = json.dumps({"seq": after + 1, "batch": BATCH_MESSAGES, "max_bytes": BATCH_BYTES}).encode()
        try:
            async with asyncio.timeout(BATCH_S):
                while True:
                    request = _Request(stream, body, None)
                    await self._batch(request)
                    if request.messages or (request.is_empty and not await self._leader_has(stream, after)):
                        return request.messages
                    await asyncio.sleep(TICK_S)
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"{stream}: {error!r}", dependency="nats") from error

    async def _batch(self, request: _Request) -> None:
        ended = request.ended
        if ended is None:
            raise AssertionError("a batch has an end")
        await self._is_heard.wait()
        number = self._send([request])
        self._wake.set()
        try:
            await ended.wait()
        finally:
            self._flight.pop(number, None)

    async def _leader_has(self, stream: str, after: int) -> bool:
        """Say whether there is a message after a sequence, though the replica that was asked has none."""
        body = json.dumps({"seq": after + 1, "next_by_subj": ">"}).encode()
        answer = await self._client.request(f"$JS.API.STREAM.MSG.GET.{stream}", body, timeout=ANSWER_S)
        error = json.loads(answer.data).get("error")
        if error is None:
            return True
        if error.get("err_code") in _NO_MESSAGE:
            return False
        raise UnavailableError(f"{stream}: {error}", dependency="nats")

    async def run(self) -> None:
        """Send what is asked for until cancelled."""
        subscription = await self._client.subscribe(f"{self._inbox}*", future=Tap(self._on_answer))
        try:
            await settle(self._client)
            self._is_heard.set()
            while True:
                self._wake.clear()
                self._send_again(time.monotonic())
                self._send_waiting()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S if self._flight else None):
                        await self._wake.wait()
        finally:
            self._is_heard.clear()
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    def _send_again(self, now: float) -> None:
        """Send requests again whose answer is overdue or lost."""
        if not self._client.is_connected:
            return
        connection = self._client.stats["reconnects"]
        is_other = connection != self._connection
        self._connection = connection
        for request in self._flight.values() if is_other else ():
            if request.ended is not None:
                request.ended.set()  # what came is in order; the reader asks on
        again = [
            number
            for number, request in self._flight.items()
            if request.done is not None
            and (is_other or now - request.sent > ANSWER_S or (request.retry_at and request.retry_at <= now))
        ]
        if again:
            self._send([self._flight.pop(number) for number in again])

    def _send_waiting(self) -> None:
        if not self._client.is_connected:
            return
        count = min(len(self._waiting), WINDOW - len(self._flight))
        if count > 0:
            self._send([self._waiting.popleft() for _ in range(count)])

    def _send(self, requests: list[_Request]) -> int:
        """Send requests under new numbers; returns the last of them."""
        parts: list[bytes] = []
        now = time.monotonic()
        for request in requests:
            number = self._number = self._number + 1
            request.sent, request.retry_at = now, 0.0
            self._flight[number] = request
            api = "STREAM.MSG.GET" if request.asks_leader else "DIRECT.GET"
            line = f"PUB $JS.API.{api}.{request.stream} {self._inbox}{number} {len(request.body)}\r\n"
            parts += (line.encode(), request.body, b"\r\n")
        write(self._client, parts)
        return self._number

    def _on_answer(self, answer: Msg) -> None:
        number = int(answer.subject[len(self._inbox) :])
        request = self._flight.get(number)
        if request is None:
            return  # it was sent again
        try:
            self._take(number, request, answer)
        except Exception:  # nats-py would stop reading
            logger.exception("answer of a stream not understood", extra={"stream": request.stream})
            request.retry_at = time.monotonic() + ANSWER_S

    def _take(self, number: int, request: _Request, answer: Msg) -> None:
        headers = answer.headers or {}
        status = headers.get("Status")
        if request.ended is not None:
            if status is None:
                request.messages.append(StoredMessage(headers, answer.data))
            else:
                request.is_empty = status == _NOT_FOUND
                request.ended.set()
            return
        done = request.done
        if done is None:
            return
        if request.asks_leader:
            error = json.loads(answer.data or b"{}").get("error") if status is None else {"err_code": 0}
            if error is not None and error.get("err_code") in _NO_MESSAGE:
                del self._flight[number]
                done(None)
            else:  # the leader has it, or can't say: ask again in a while
                request.asks_leader = False
                request.retry_at = time.monotonic() + TICK_S * 4
        elif status is None:
            del self._flight[number]
            done(StoredMessage(headers, answer.data))
        else:
            request.asks_leader = True
            request.retry_at = time.monotonic()
        self._wake.set()
