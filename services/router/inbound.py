"""Messages of backend applications, from the stream `MQ_IN` to MQTT clients (product.md section 3.4).

To the router this is a source like an edge. Messages are pulled in the order of the stream, and acknowledged when the
router says that they are safe: in the log of their topic when it has one, and confirmed by every edge they go to. One
that can't be routed goes to `MQ_DEAD` with the reason, and is acknowledged when it is stored there.

Nothing is lost and little is repeated:

- The sequence of the stream is the sequence of the message: a message that comes again while it is on its way or was
  acknowledged is not routed again. After a crash it is; then its message id, made of that sequence, keeps the log from
  storing it twice, and edges drop repeats of QoS 2 by it.
- The consumer is made anew at the start and after each reconnection, so that what was delivered to a connection that
  broke comes first and in order, not half a minute later.

Bounds: `MAX_MESSAGES` and `MAX_BYTES` are pulled and not acknowledged; none are pulled while the router holds its
sources. What waits longer waits in the stream. A message is parked (`services.router.parking`) while its log is full or
`WINDOW_MESSAGES` of it are on their way; those of other topics go on behind it as long as the bounds allow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.common import subjects, ticks
from services.common.errors import UnavailableError
from services.common.raw_nats import Tap, write
from services.router import inbound_stream
from services.router.domain.catalog import Catalog, RefusedError
from services.router.domain.columns import QOS, REPEATED, ColumnsBuilder
from services.router.domain.inbound import InboundMessage, read
from services.router.parking import Parking
from services.router.ports import DeadLetter, Log
from services.router.router import Router

logger = logging.getLogger(__name__)

WINDOW_MESSAGES = 4_096
MAX_MESSAGES = 20_480
MAX_BYTES = 48 << 20
BATCH_MESSAGES = 1_024
BATCH_BYTES = 12 << 20
"""Bounds of one pull, above NATS's largest message."""
EXPIRES_S = 5.0
"""How long a pull waits for messages."""
LATE_S = 2.0
"""Time after that in which NATS says that a pull is over."""
MAX_DONE = 32_768
"""Acknowledged messages that are remembered, since an acknowledgement may be lost: `MAX_ACK_PENDING` at least."""
UNPARK_BYTES = 1 << 20
"""Parked messages that are routed before their log is looked at again; less than makes it full."""
RETRY_S = 0.5

BACKEND = "backend"
"""Value of the header `mqttOrigin` of a logged message that came from a backend application."""

DEAD_REASON = "deadReason"
DEAD_SUBJECT = "deadSubject"
DEAD_MESSAGE_ID = "deadMessageId"
"""Headers of a message that can't be routed, beside its own: why, its subject, its `Nats-Msg-Id`."""
MAX_DEAD_HEADER = 4_096
"""Longest header value that is kept of such a message, in characters."""


class Inbound:
    """Pulls and routes. Owned by one event loop.

    Args:
        router: routes the messages.
        catalog: returns what exists; None while that is not known.
        index: of this router.
        count: of routers.
    """

    def __init__(
        self, *, router: Router, catalog: Callable[[], Catalog | None], index: int = 0, count: int = 1
    ) -> None:
        self._router = router
        self._catalog = catalog
        self._index = index
        self._count = count
        self._client: Client | None = None
        self._log: Log
        self._inbox = ""
        self._pull = ""  # subject that pulls
        self._pulled = 0  # messages that the pull on its way may still bring
        self._expiry = 0.0  # when that pull is over at the latest, monotonic seconds
        self._messages: list[Msg] = []  # of this turn of the loop
        # By sequence, parked ones too: subject of the acknowledgement, size, log.
        self._on_way: dict[int, tuple[str, int, tuple[str, str]]] = {}
        self._on_way_bytes = 0
        self._done: dict[int, None] = {}
        self._done_order: deque[int] = deque()
        self._acks: list[bytes] = []
        self._parking = Parking()
        self._repeats_through = 0  # sequence up to which the process before this one may have routed messages
        self._wake = asyncio.Event()
        router.full_logs.on_room = self._wake.set
        self.origin = BACKEND
        self.wants_receipts = False
        self.incarnation = ""
        """Names the stream; with the sequence it is the message id."""
        self.is_held = False
        """Whether the router can take no more."""

    async def run(self, client: Client, log: Log) -> None:
        """Serve until cancelled.

        Args:
            client: connected to NATS.
            log: gets dead letters, with `DeadLetter` tokens.
        """
        self._client = client
        self._log = log
        self._inbox = f"{client.new_inbox()}."
        subscription = await client.subscribe(f"{self._inbox}*", future=Tap(self._on_message))
        connection = -1
        try:
            while True:
                if client.is_connected and connection != client.stats["reconnects"]:
                    reconnects = client.stats["reconnects"]
                    if not await self._open():
                        await asyncio.sleep(RETRY_S)
                        continue
                    connection = reconnects
                await self._unpark()
                self._request(time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(ticks.next_tick(ticks.LOOK_S)):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    def acknowledge(self, sequence: int) -> None:
        """Note that a message is safe."""
        entry = self._on_way.pop(sequence, None)
        if entry is None:
            return  # the stream is another one by now
        reply, size, log = entry
        self._on_way_bytes -= size
        has_room = self._parking.leave(log) <= WINDOW_MESSAGES // 2 and log in self._parking
        self._done[sequence] = None
        self._done_order.append(sequence)
        if len(self._done_order) > MAX_DONE:
            self._done.pop(self._done_order.popleft(), None)
        self._acknowledge(reply)
        if has_room or not self._pulled:
            self._wake.set()

    def sent(self, sequence: int, ways: int, *, is_kept: bool) -> None:
        """Nothing: there are no receipts; see `ports.Source`."""

    def release(self) -> None:
        """Pull again."""
        self.is_held = False
        self._wake.set()

    async def _open(self) -> bool:
        assert self._client is not None  # noqa: S101 - for the type checker
        try:
            name, stream, last_sequence = await inbound_stream.open_consumer(
                self._client.jetstream(timeout=2), self._index, self._count
            )
        except UnavailableError as error:
            logger.warning("can't consume inbound messages, trying on", extra={"error": str(error)})
            return False
        incarnation = f"in-{stream}".replace(" ", "T")
        if incarnation != self.incarnation:
            if self._parking.has_on_way:
                return False  # an acknowledgement could be taken for that of the new message with its sequence
            self.incarnation = incarnation
            self._on_way.clear()
            self._on_way_bytes = 0
            self._parking.clear()
            self._done.clear()
            self._done_order.clear()
            self._repeats_through = last_sequence
        self._pull = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.IN_STREAM}.{name}"
        self._pulled = 0
        return True

    # --- in ------------------------------------------------------------------------------------

    def _request(self, now: float) -> None:
        """Pull when the pull before is over and there is room."""
        if self._pulled and now < self._expiry:
            return
        room = min(BATCH_MESSAGES, MAX_MESSAGES - len(self._on_way))
        has_room = room >= BATCH_MESSAGES // 4 and self._on_way_bytes < MAX_BYTES
        if self.is_held or not has_room or not self._router.is_begun or self._catalog() is None:
            self._pulled = 0
            return
        assert self._client is not None  # noqa: S101 - for the type checker
        self._pulled = room
        self._expiry = now + EXPIRES_S + LATE_S
        request = json.dumps({"batch": room, "max_bytes": BATCH_BYTES, "expires": int(EXPIRES_S * 1e9)}).encode()
        write(self._client, [f"PUB {self._pull} {self._inbox}p {len(request)}\r\n".encode(), request, b"\r\n"])

    def _on_message(self, message: Msg) -> None:
        if not self._messages:
            asyncio.get_running_loop().call_soon(self._take)
        self._messages.append(message)

    def _take(self) -> None:
        messages, self._messages = self._messages, []
        catalog = self._catalog()
        assert catalog is not None  # noqa: S101 - nothing is pulled before, and it never goes
        parking, full = self._parking, self._router.full_logs.logs
        ready: list[Msg] = []
        for message in messages:
            if not message.reply:  # the pull is over: 404, 408, 409
                if _is_unanswered(message):  # a router of another count deleted our consumer, or JetStream starts
                    self._expiry = min(self._expiry, time.monotonic() + RETRY_S)
                else:
                    self._pulled = 0
                continue
            self._pulled = max(0, self._pulled - 1)
            sequence = _sequence(message)
            if sequence in self._on_way:
                self._on_way[sequence] = (message.reply, *self._on_way[sequence][1:])
                continue
            if sequence in self._done:
                self._acknowledge(message.reply)
                continue
            size = len(message.data)
            log = _log_of(message.subject, catalog)
            self._on_way[sequence] = (message.reply, size, log)
            self._on_way_bytes += size
            if log in full or log in parking or parking.on_way(log) >= WINDOW_MESSAGES:
                parking.park(log, message)
            else:
                parking.depart(log)
                ready.append(message)
        self._route(ready, catalog)
        if not self._pulled:
            self._wake.set()

    async def _unpark(self) -> None:
        """Route parked messages whose log has room."""
        catalog, parking, full = self._catalog(), self._parking, self._router.full_logs.logs
        for log in parking.logs:
            while log in parking and log not in full and not self.is_held:
                room = WINDOW_MESSAGES - parking.on_way(log)
                if room <= 0:
                    break
                messages = parking.take(log, room, UNPARK_BYTES)
                for _ in messages:
                    parking.depart(log)
                assert catalog is not None  # noqa: S101 - as above
                self._route(messages, catalog)
                await asyncio.sleep(0)  # what comes meanwhile is parked behind them

    def _route(self, messages: list[Msg], catalog: Catalog) -> None:
        builder = ColumnsBuilder()
        shown: dict[int, str] = {}
        safe: list[int] = []
        for message in messages:
            sequence = _sequence(message)
            try:
                publication = read(message.subject, message.headers or {}, message.data, catalog)
            except RefusedError as error:
                self._bury(message, sequence, str(error))
                continue
            if not publication.flags & QOS:
                safe.append(sequence)
            if publication.shown_topic:
                shown[sequence] = publication.shown_topic
            _add(builder, sequence, publication, REPEATED if sequence <= self._repeats_through else 0)
        if builder.sequences:
            self._router.publish(self, builder.build(), shown_topics=shown)
        for sequence in safe:
            self.acknowledge(sequence)

    # --- out -----------------------------------------------------------------------------------

    def _bury(self, message: Msg, sequence: int, reason: str) -> None:
        """Send a message to the stream of those that can't be routed."""
        headers = {DEAD_REASON: reason, "Nats-Msg-Id": f"{self.incarnation}-{sequence}"}
        for name, value in (message.headers or {}).items():
            if not name.lower().startswith("nats-") and name not in headers:
                headers[name] = value[:MAX_DEAD_HEADER]
        headers[DEAD_SUBJECT] = message.subject[:MAX_DEAD_HEADER]
        if message_id := (message.headers or {}).get("Nats-Msg-Id"):
            headers[DEAD_MESSAGE_ID] = message_id[:MAX_DEAD_HEADER]
        self._log.write(subjects.dead_subject(message.subject), message.data, headers, DeadLetter(self, sequence))

    def _acknowledge(self, reply: str) -> None:
        if not self._acks:
            asyncio.get_running_loop().call_soon(self._send_acks)
        self._acks.append(f"PUB {reply} 4\r\n+ACK\r\n".encode())

    def _send_acks(self) -> None:
        acks, self._acks = self._acks, []
        if self._client is not None and self._client.is_connected:
            write(self._client, acks)  # one that is lost makes its message come again


def _sequence(message: Msg) -> int:
    return int(message.reply.split(".")[5])  # $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>...


def _is_unanswered(status: Msg) -> bool:
    return (status.headers or {}).get("Status") == "503"  # no responders


def _log_of(subject: str, catalog: Catalog) -> tuple[str, str]:
    try:
        instance_id, parent_topic = subjects.in_topic(subject)
    except ValueError:
        return "", ""  # a dead letter
    return instance_id, parent_topic if catalog.has_log(instance_id, parent_topic) else ""


def _add(builder: ColumnsBuilder, sequence: int, publication: InboundMessage, repeated: int) -> None:
    builder.add(
        instance_id=publication.instance_id,
        topic=publication.topic,
        topic_flags=publication.topic_flags,
        client_id="",
        sequence=sequence,
        payload=publication.payload,
        flags=publication.flags | repeated,
    )
