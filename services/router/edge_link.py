"""What the router holds for one process of an edge; outlives the streams of its link."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from services.common.errors import DomainError
from services.common.link import Link
from services.common.qos0_window import Qos0Window
from services.router.delivery_batch import fill
from services.router.domain.columns import RUN, Run
from services.router.domain.outbox import Batch, Outbox, Receipt, SharedDelivery
from services.router.domain.routing import Leg
from services.router.queries import Query
from weimq.router.v1 import router_pb2

Kept: TypeAlias = tuple[str, str, str, str, int]
"""A target as it is kept: its interest, instance id, client id or topic filter, share name, and kind in the routing."""

MAX_FRAME_ACKNOWLEDGEMENTS = 16_384
"""Acknowledgements in one frame, so that no frame outgrows the window."""


class Stream:
    """One stream of a link, and the way to end it from outside."""

    def __init__(self, *, is_resumed: bool, has_missed: bool) -> None:
        self.is_resumed = is_resumed
        """Whether the frames of the stream before go on."""
        self.has_missed = has_missed
        """Whether messages may have been routed without the edge since its last link."""
        self._end = asyncio.Event()
        self._error: DomainError | None = None
        self.left = asyncio.Event()
        """Set when the stream is no longer used."""

    def end(self, error: DomainError | None = None) -> None:
        """End the stream: with the status of `error`, or normally."""
        if not self._end.is_set():
            self._error = error
            self._end.set()

    async def ended(self) -> None:
        """Wait until `end` is called, and raise its error."""
        await self._end.wait()
        if self._error is not None:
            raise self._error


class _Owed:
    """A frame with deliveries that the edge has not confirmed."""

    __slots__ = ("frame", "receipts", "response", "shared", "size")

    def __init__(self, frame: int, response: router_pb2.LinkResponse, batch: Batch) -> None:
        self.frame = frame
        self.response = response
        self.receipts = batch.receipts
        self.shared = batch.shared
        self.size = batch.size


class EdgeLink:
    """Interests of one edge process, the deliveries and acknowledgements it is to get, and its link.

    Args:
        edge_id: name of the edge.
        incarnation: of its process.
        router_incarnation: what the edge is told: unique for this object, so that an edge whose state was dropped
            meanwhile starts anew and does not resume.
        slot: number of this object among those that live.
        shard_index: of a session shard; -1: it is an edge.
        take: called with this object and each frame.
        confirmed: called with this object when deliveries were confirmed.
    """

    def __init__(
        self,
        *,
        edge_id: str,
        incarnation: str,
        router_incarnation: str,
        slot: int,
        shard_index: int = -1,
        take: Callable[[EdgeLink, router_pb2.LinkRequest], None],
        confirmed: Callable[[EdgeLink], None],
    ) -> None:
        self.edge_id = edge_id
        self.incarnation = incarnation
        self.router_incarnation = router_incarnation
        self.slot = slot
        self.origin = ""
        self.wants_receipts = False
        self.shard_index = shard_index
        self.is_shard = shard_index >= 0
        self._on_taken = take
        self._on_confirmed = confirmed
        self._qos0 = Qos0Window()
        self._outbox = Outbox(self._qos0)
        self._owed: deque[_Owed] = deque()
        self._again: deque[_Owed] = deque()  # frames of an earlier numbering, to be sent first
        self._owed_bytes = 0
        self._acknowledged: list[int] = []
        self._log_states: dict[tuple[str, str], bool] = {}
        self._revoked: list[tuple[router_pb2.RouteQuestion, Receipt]] = []
        self._holds_qos0 = False  # what the edge was told
        self.targets: dict[int, Kept] = {}
        """Interests by target id."""
        self.snapshot: set[int] | None = set()
        """Target ids sent since the link started anew; None once the snapshot is complete."""
        self.queries: deque[Query] = deque()
        """Queries for retained messages that are not answered; the first may be in part."""
        self._query_bytes = 0
        self.wanted_receipts: set[int] = set()
        """Ids of the messages whose end it has yet to report."""
        self.delivered = 0
        """Messages sent to it, counted when their frame is made."""
        self.is_gone = False
        """Whether its state was dropped; nothing is delivered or acknowledged to it any more."""
        self.is_held = False
        """Whether its frames are not confirmed for now."""
        self.fences = 0
        """How many of its frames wait until routes of other edges are revoked; none is confirmed meanwhile."""
        self.is_congested = False
        """Whether more is pending for it than the high mark."""
        self.is_flooded = False
        """Whether more of QoS 0 is pending for it than the high mark."""
        self.is_slowed = False
        """Whether it is to send no messages of QoS 0 for now."""
        self.stream: Stream | None = None
        self.broken_s = 0.0
        """Seconds without a stream."""
        self.silent_s = 0.0
        """Seconds with a stream, without a confirmation, while deliveries are owed."""
        self.stalls = 0
        """Streams in a row that were ended because nothing was confirmed."""
        self.link: Link[router_pb2.LinkResponse, router_pb2.LinkRequest] = Link(
            build=self._build, bare=router_pb2.LinkResponse, take=self._take, confirmed=self._confirm
        )

    @property
    def pending_bytes(self) -> int:
        """Deliveries gathered and not confirmed, and queries that wait."""
        return self._outbox.size + self._owed_bytes + self._query_bytes

    @property
    def delivery_bytes(self) -> int:
        """Deliveries gathered and not confirmed."""
        return self._outbox.size + self._owed_bytes

    @property
    def qos0_bytes(self) -> int:
        """Deliveries of QoS 0 gathered."""
        return self._outbox.qos0_size

    @property
    def owes(self) -> bool:
        """Whether the edge has deliveries to confirm."""
        return bool(self._owed)

    def deliver(
        self, leg: Leg, payload: bytes, flags: int, origin: str, sequence: int, receipt: Receipt | None
    ) -> None:
        """Send a message to the targets of `leg`; see `Outbox.add`."""
        self._outbox.add(leg, payload, flags, origin, sequence, receipt)
        self.link.wake()

    def deliver_run(self, leg: Leg, run: Run, qos: int, receipt: Receipt | None) -> None:
        """Send messages of QoS 0 or 1 to the targets of `leg`; `receipt` is that of all of them."""
        self._outbox.add(leg, run.packets, RUN | qos, "", 0, receipt)
        self._outbox.run(run)
        self.link.wake()

    def deliver_kept(
        self, leg: Leg, payload: bytes, flags: int, origin: str, sequence: int, receipt: Receipt, log: str, place: int
    ) -> None:
        """Send a message to a session shard, with its place in a log."""
        self._outbox.add(leg, payload, flags, origin, sequence, receipt)
        self._outbox.place(log, place)
        self.link.wake()

    def deliver_each(self, leg: Leg, payloads: list[bytes], flags: int, receipt: Receipt, log: str, first: int) -> None:
        """Send messages of QoS 1 to a session shard, with their places from `first` on; see `Outbox.add_each`."""
        self._outbox.add_each(leg, payloads, flags, receipt, log, first)
        self.link.wake()

    def want_receipt(self, receipt_id: int) -> None:
        """Say that the message sent last wants a receipt."""
        self._outbox.want_receipt(receipt_id)
        self.wanted_receipts.add(receipt_id)

    def deliver_shared(self, leg: Leg, shared: SharedDelivery, origin: str, sequence: int) -> None:
        """Send a message to a member of a shared subscription; one of QoS 1 or 2 is given back when the edge goes."""
        self._outbox.add(leg, shared.payload, shared.qos, origin, sequence, None)
        if shared.qos:
            self._outbox.share(shared)
        self.link.wake()

    def ask(self, query: Query) -> None:
        """Add a query for retained messages."""
        self.queries.append(query)
        self._query_bytes += query.size

    def next_query(self) -> Query:
        """Return and forget the oldest query."""
        query = self.queries.popleft()
        self._query_bytes -= query.size
        return query

    def answered(self, query_id: int) -> None:
        """Tell the edge, after what was delivered before, that a query has its answer."""
        self._outbox.answer(query_id)
        self.link.wake()

    def acknowledge(self, sequence: int) -> None:
        """Tell the edge that a message it published is safe."""
        if not self.is_gone:
            self._acknowledged.append(sequence)
            self.link.wake()

    def tell(self, log: tuple[str, str], *, is_full: bool) -> None:
        """Tell the edge that the log of a parent topic, with its instance, is full or has room again."""
        self._log_states[log] = is_full
        self.link.wake()

    def answer_route(self, answer: router_pb2.RouteAnswer) -> None:
        """Answer a question of the edge: a yes after what was delivered before."""
        self._outbox.answer_route(answer, is_last=answer.is_local)
        self.link.wake()

    def revoke_route(self, route: router_pb2.RouteQuestion, receipt: Receipt) -> None:
        """Take back that the edge may serve a topic, ahead of all that waits; settles `receipt` when it knows."""
        self._revoked.append((route, receipt))
        self.link.wake()

    def slow(self, *, is_slowed: bool) -> None:
        """Have the edge send no more messages of QoS 0, or go on."""
        self.is_slowed = is_slowed
        self.link.wake()

    def resume(self, received_through: int) -> None:
        """Go on over a new stream; see `Link.resume`."""
        self.link.resume(received_through)
        self._joined()

    def restart(self) -> None:
        """Go on with an edge process that knows nothing of this link: it sends its interests anew."""
        self.link.reset()
        # What was sent and not confirmed stays owed: target ids are not reused while deliveries are on their way.
        self._again.extendleft(reversed(self._owed))
        self._owed.clear()
        self._qos0.reset()
        self._holds_qos0 = False
        self._log_states.clear()
        self._acknowledged.clear()  # the edge sends again what it has no acknowledgement of
        self._forget_queries()  # it asks again
        self.snapshot = set()
        self._joined()

    def _joined(self) -> None:
        self.broken_s = 0.0
        self.silent_s = 0.0

    def _forget_queries(self) -> None:
        self.queries.clear()
        self._query_bytes = 0
        self._outbox.forget_answers()

    def sent(self, sequence: int, ways: int, *, is_kept: bool) -> None:
        """Nothing: there are no receipts; see `ports.Source`."""

    def release(self) -> None:
        """Confirm the frames that were held."""
        self.is_held = False
        self.go_on()

    def go_on(self, *, lazily: bool = False) -> None:
        """Confirm all frames that were taken, unless there still is a reason not to; `lazily`: see `Link.confirm`."""
        if not self.is_held and not self.fences:
            self.link.confirm(self.link.received_through, lazily=lazily)

    def leave(self) -> list[SharedDelivery]:
        """Drop everything: the edge is gone, and nobody waits for it any more; see `drop_deliveries`."""
        self.is_gone = True
        self._forget_queries()
        self._acknowledged.clear()
        return self.drop_deliveries()

    def drop_deliveries(self) -> list[SharedDelivery]:
        """Forget what is owed, and settle its receipts.

        Returns:
            Messages of shared subscriptions among it, whose receipts are not settled.
        """
        owed = [*self._again, *self._owed]
        receipts = [receipt for each in owed for receipt in each.receipts]
        receipts += [receipt for _, receipt in self._revoked]
        self._revoked.clear()
        shared = [delivery for each in owed for delivery in each.shared]
        while (batch := self._outbox.take() or self._outbox.take_qos0()) is not None:
            receipts.extend(batch.receipts)
            shared.extend(batch.shared)
        self._again.clear()
        self._owed.clear()
        self._owed_bytes = 0
        for receipt in receipts:
            receipt.settle()
        return shared

    def _take(self, request: router_pb2.LinkRequest) -> None:
        self._on_taken(self, request)

    def _build(self) -> router_pb2.LinkResponse | None:
        if self._again:
            return self._build_again()
        outbox = self._outbox
        has_turn = outbox.has_qos0 and self._qos0.has_turn(outbox.has_first, time.monotonic())
        batch = outbox.take_qos0() if has_turn else outbox.take()
        if batch is None and self._revoked:
            batch = Batch(0)
        is_told = self._holds_qos0 == self.is_slowed
        if batch is None and is_told and not self._acknowledged and not self._log_states:
            return None
        response = router_pb2.LinkResponse()
        if not is_told:
            response.holds_qos0 = self._holds_qos0 = self.is_slowed
        if self._log_states:
            for (instance_id, parent_topic), is_full in self._log_states.items():
                response.log_states.add(instance_id=instance_id, parent_topic=parent_topic, is_full=is_full)
            self._log_states.clear()
        if self._acknowledged:
            self.link.gather(len(self._acknowledged))
            response.acknowledged_sequences.extend(self._acknowledged[:MAX_FRAME_ACKNOWLEDGEMENTS])
            del self._acknowledged[:MAX_FRAME_ACKNOWLEDGEMENTS]
        if batch is not None:
            self._add(batch, response)
        return response

    def _build_again(self) -> router_pb2.LinkResponse:
        owed = self._again.popleft()
        owed.frame = self.link.next_frame
        del owed.response.acknowledged_sequences[:]
        del owed.response.answered_query_ids[:]
        del owed.response.log_states[:]
        del owed.response.route_answers[:]
        del owed.response.revoked_routes[:]
        owed.response.ClearField("holds_qos0")
        self._owed.append(owed)
        return owed.response

    def _add(self, batch: Batch, response: router_pb2.LinkResponse) -> None:
        response.answered_query_ids.extend(batch.answered)
        response.route_answers.extend(batch.routes)
        # Publishers wait for those with receipts, and what follows in answers to queries for every confirmation.
        is_awaited = bool(batch.receipts or batch.shared or self._revoked or self.queries)
        for route, receipt in self._revoked:
            response.revoked_routes.append(route)
            batch.receipts.append(receipt)
        self._revoked.clear()
        if batch.is_qos0:
            is_awaited = self._qos0.sent(self.link.next_frame) or is_awaited
            if self._qos0.is_narrow:
                self.link.skip_pause()
        elif batch.payloads:
            self._qos0.passed(time.monotonic())
        response.is_awaited = is_awaited
        self.delivered += len(batch.payloads) - len(batch.runs) + sum(run.count for run in batch.runs)
        if batch.payloads:
            self.link.gather(len(batch.payloads))
            fill(response.deliveries, batch)
        if not self._owed:
            self.silent_s = 0.0
        self._owed.append(_Owed(self.link.next_frame, response, batch))
        self._owed_bytes += batch.size

    def _confirm(self, through: int) -> None:
        self.silent_s = 0.0
        self.stalls = 0
        self._qos0.confirmed(through)
        owed = self._owed
        if not owed or owed[0].frame > through:
            return
        while owed and owed[0].frame <= through:
            each = owed.popleft()
            self._owed_bytes -= each.size
            for receipt in each.receipts:
                receipt.settle()
            for shared in each.shared:
                if shared.receipt is not None:
                    shared.receipt.settle()
        self._on_confirmed(self)
