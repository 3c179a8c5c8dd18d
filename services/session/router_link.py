"""The shard's end of the link with a router: filters of all its sessions up, messages down.

The router keeps nothing for a shard without a stream: every stream starts anew with all filters, and what was
published meanwhile is read from the logs (`services/session/catch_up.py`). What comes on the link is taken over at
once: it is in a log, and was noted before the log counts as read so far, so it can't be lost.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from grpc import aio

from services.common import utf8
from services.common.grpc_client import call_metadata
from services.common.link import Link, LinkBrokenError
from services.common.linking import Opened, keep_linked
from services.common.readiness import Readiness
from services.common.settings import Secret
from services.common.subjects import stream_names
from services.session.clock import Clock
from services.session.domain.fanout import p2p_receiver
from services.session.domain.interests import Interest
from services.session.domain.positions import WINDOW
from services.session.domain.receipts import Outcome
from services.session.domain.sessions import Log, Session
from services.session.domain.shard import Shard
from weimq.router.v1 import router_pb2, router_pb2_grpc

logger = logging.getLogger(__name__)

FRAME_BYTES = 1 << 20
"""Size of the filters after which a frame is full."""
OVERHEAD_BYTES = 64
QOS = 3
KEPT_P2P = 8
WANTS_RECEIPT = 16
"""Bits of `DeliveryBatch.flags`."""

_OUTCOMES = {
    Outcome.ACKNOWLEDGED: router_pb2.DELIVERY_OUTCOME_ACKNOWLEDGED,
    Outcome.KEPT: router_pb2.DELIVERY_OUTCOME_OFFLINE_KEPT,
    Outcome.NOT_KEPT: router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT,
}

_Message: TypeAlias = tuple[str, list[int], bytes, int, Log, int, int]
"""Topic, targets, payload, flags, log, sequence in it, and receipt id or 0."""


class RouterLink:
    """One router. Owned by one event loop; `run` keeps the link up.

    Args:
        index: of the router.
        channel: to it.
        token: of the cluster.
        place: index of this shard, and the number of shards.
        incarnation: of this process.
        shard: takes the messages.
        clock: tells the time.
        flush: called after each frame.
        read_again: looks a message up in its log, for `Fanout.read_again`.
        keep_until_stored: has `on_stored` called when the losses of this moment are stored.
    """

    def __init__(
        self,
        *,
        index: int,
        channel: aio.Channel,
        token: Secret,
        place: tuple[int, int],
        incarnation: str,
        shard: Shard,
        clock: Clock,
        flush: Callable[[], None],
        read_again: Callable[[Log, int], None],
        keep_until_stored: Callable[[RouterLink], None],
    ) -> None:
        self._read_again = read_again
        self._keep_until_stored = keep_until_stored
        self._lossy = 0  # turns in which losses were noted that nobody but the router knows until they are stored
        self.index = index
        self._stub = router_pb2_grpc.RouterServiceStub(channel)
        self._metadata = call_metadata(token)
        self._place = place
        self._incarnation = incarnation
        self._shard = shard
        self._clock = clock
        self._flush = flush
        self._added: deque[Interest[Session]] = deque()
        self._removed: list[int] = []
        self._reports: dict[int, Outcome] = {}  # by receipt id
        self._waiters: list[Callable[[], None]] = []
        self._sent: deque[tuple[int, list[Callable[[], None]]]] = deque()  # frame and who waits for it
        self._taken_through = 0
        self._is_snapshot_complete = False
        self.is_linked = False
        """Whether filters that are added now reach the router by the link; else by the next snapshot."""
        self.is_behind = True
        """Whether messages may have been routed without this shard that have not been read."""
        self.openings = 0
        """How many streams were opened."""
        self.opened = asyncio.Event()
        """Set when there is something to do about the logs."""
        self.has_doubts = asyncio.Event()
        """Set when a log is to be looked at: it is new, or in doubt."""
        self.must_read = False
        """Whether the logs are to be read: the router knows every filter of a new stream."""
        self._name = f"router-{index}"
        self._link: Link[router_pb2.LinkRequest, router_pb2.LinkResponse] = Link(
            build=self._build, bare=router_pb2.LinkRequest, take=self._take, confirmed=self._on_confirmed
        )

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        readiness = Readiness(self._name)  # of its own: the service serves without routers
        readiness.on_change(lambda: self._on_link(is_up=readiness.is_ready))
        await keep_linked(
            name=self._name,
            link=self._link,
            readiness=readiness,
            open_stream=lambda: self._stub.Link(metadata=self._metadata, wait_for_ready=True),
            greeting=self._greeting,
            opened=self._on_opened,
        )

    def tell(
        self, added: Iterable[Interest[Session]], removed: Iterable[int], known: Callable[[], None] | None
    ) -> None:
        """Tell the router of filters; `known` is called when it knows them, however many streams that takes.

        Until then it would neither deliver nor keep a message of a topic without a log.
        """
        if known is not None:
            self._waiters.append(known)
        if not self.is_linked:
            return  # the next stream begins with all filters
        self._added.extend(added)
        self._removed.extend(removed)
        self._link.wake()

    def _read(self) -> None:
        self.must_read = True
        self.opened.set()

    def _on_link(self, *, is_up: bool) -> None:
        if is_up:
            return
        self.is_linked = False
        sent = [each for _, group in self._sent for each in group if each != self._read]
        self._sent.clear()
        self._waiters = sent + self._waiters

    def _greeting(self) -> router_pb2.LinkRequest:
        index, count = self._place
        return router_pb2.LinkRequest(
            open=router_pb2.LinkOpen(
                edge_id=f"session-{index}",
                edge_incarnation=self._incarnation,
                shard=router_pb2.SessionShard(index=index, count=count),
            )
        )

    def _on_opened(self, first: router_pb2.LinkResponse) -> Opened:
        if first.opened.resumed:
            raise LinkBrokenError("the router goes on with a stream that we gave up")
        self.openings += 1
        self._taken_through = 0
        self.is_behind = True
        self.is_linked = True
        self.opened.clear()
        self.must_read = False
        self._added = deque(self._shard.interests.by_target.values())
        self._removed = []
        self._is_snapshot_complete = False
        return Opened(resumed=False, received_through=0)

    def _build(self) -> router_pb2.LinkRequest | None:
        if not (self._added or self._removed or self._waiters or self._reports) and self._is_snapshot_complete:
            return None
        frame = router_pb2.LinkRequest()
        reports, self._reports = self._reports, {}
        frame.receipt_ids.extend(reports)
        frame.receipt_outcomes.extend(_OUTCOMES[outcome] for outcome in reports.values())
        size = 0
        by_target = self._shard.interests.by_target
        while self._added and size < FRAME_BYTES:
            interest = self._added.popleft()
            if interest.target_id not in by_target:
                continue  # removed since
            size += len(interest.topic_filter) * utf8.MAX_BYTES + OVERHEAD_BYTES
            frame.added_targets.add(
                target_id=interest.target_id,
                instance_id=interest.instance_id,
                topic_filter=interest.topic_filter,
                skips_qos0=True,
            )
        if self._added:
            return frame
        frame.removed_target_ids.extend(self._removed)
        self._removed = []
        waiters, self._waiters = self._waiters, []
        if not self._is_snapshot_complete:
            self._is_snapshot_complete = frame.snapshot_complete = True
            waiters.append(self._read)
        if waiters:
            self._sent.append((self._link.next_frame, waiters))
        return frame

    def _on_confirmed(self, through: int) -> None:
        while self._sent and self._sent[0][0] <= through:
            for waiter in self._sent.popleft()[1]:
                waiter()

    def _take(self, frame: router_pb2.LinkResponse) -> None:
        fanout = self._shard.fanout
        self._taken_through = frame.frame
        if frame.HasField("deliveries"):
            messages = self._messages(frame.deliveries)
            if fanout.is_busy:
                fanout.postpone(functools.partial(self._deliver, messages))
            else:
                self._deliver(messages)
            self._flush()
        self.confirm_taken()

    def confirm_taken(self) -> None:
        """Confirm what came unless some of it is postponed, so that the router's window bounds that."""
        if not self._shard.fanout.is_busy and not self._lossy:
            self._link.confirm(self._taken_through)

    def on_stored(self) -> None:
        """Note that losses are stored: a message that no log has would be gone unnoticed with this process before."""
        self._lossy -= 1
        self.confirm_taken()

    def _messages(self, batch: router_pb2.DeliveryBatch) -> Iterator[_Message]:
        """Return the messages of a frame; from now on what its logs bring counts as seen, or is left to reading."""
        fanout = self._shard.fanout
        logs = []
        for index, name in enumerate(batch.logs):
            log = fanout.logs.get(name)
            if log is None:
                log = fanout.logs.open(name, stream_names(name)[0])
                if not self.is_behind:  # What it had before was for nobody here; reports overtake one another a little.
                    log.met.read_to(_first_sequence(batch, index) - 1 - WINDOW)
            log.is_reading = log.is_reading or self.is_behind or not log.created
            if not log.created:
                fanout.logs.doubted.add(log)
                self.has_doubts.set()
            logs.append(log)
        topics = batch.topics
        targets: list[list[int]] = []
        start = 0
        all_targets = list(batch.target_ids)
        for count in batch.target_counts:
            targets.append(all_targets[start : start + count])
            start += count
        receipt_ids = iter(batch.receipt_ids)
        return (
            (
                topics[topic_index],
                targets[topic_index],
                payload,
                flags,
                logs[log_index],
                sequence,
                next(receipt_ids) if flags & WANTS_RECEIPT else 0,
            )
            for topic_index, payload, flags, log_index, sequence in zip(
                batch.topic_indexes, batch.payloads, batch.flags, batch.log_indexes, batch.log_sequences, strict=True
            )
        )

    def _deliver(self, messages: Iterator[_Message]) -> None:
        fanout = self._shard.fanout
        now_ms = self._clock.now_ms()
        is_lossy = False
        for topic, target_ids, payload, flags, log, sequence, receipt_id in messages:
            report = functools.partial(self._report, receipt_id) if receipt_id else None
            if not sequence:
                client_id = p2p_receiver(topic) if flags & KEPT_P2P else ""
                fanout.lose(log, topic, flags & QOS, target_ids, client_id)
                is_lossy = True
                if report is not None:
                    report(Outcome.NOT_KEPT)
            elif not flags & KEPT_P2P:
                fanout.deliver(log, sequence, topic, payload, flags & QOS, target_ids, now_ms)
            elif client_id := p2p_receiver(topic):
                fanout.deliver_p2p(log, sequence, client_id, topic, payload, now_ms, report)
            else:  # a backend had another topic shown; the log has the one that names the client
                self._read_again(log, sequence)
            if fanout.is_midway:
                fanout.postpone(functools.partial(self._deliver, messages), is_next=True)
                break
        if is_lossy:
            self._lossy += 1
            self._keep_until_stored(self)

    def _report(self, receipt_id: int, outcome: Outcome) -> None:
        self._reports[receipt_id] = outcome
        self._link.wake()


def _first_sequence(batch: router_pb2.DeliveryBatch, log_index: int) -> int:
    """Return the lowest sequence that a batch has of one of its logs; 1: none that is stored."""
    places = zip(batch.log_indexes, batch.log_sequences, strict=True)
    return min((sequence for index, sequence in places if index == log_index and sequence), default=1)
