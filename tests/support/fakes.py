"""Fake session service and router behind real gRPC, for tests of the edge alone."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio
from typing_extensions import override

from services.common.link import Link, LinkBrokenError
from services.router.domain.columns import RUN, Run
from weimq.router.v1 import router_pb2, router_pb2_grpc
from weimq.session.v1 import session_pb2, session_pb2_grpc


async def _read(context: aio.ServicerContext[Any, Any]) -> Any:
    message = await context.read()
    return None if message is aio.EOF else message


async def _read_until(context: aio.ServicerContext[Any, Any], cut: asyncio.Event) -> Any:
    """Return the next message, None at the end of the stream or when it is cut."""
    reading = asyncio.ensure_future(_read(context))
    cutting = asyncio.ensure_future(cut.wait())
    await asyncio.wait((reading, cutting), return_when=asyncio.FIRST_COMPLETED)
    return reading.result() if reading.done() else None


class FakeSession(session_pb2_grpc.SessionServiceServicer):
    """Lets in every client id that is not in `taken`; notes what it is told; stores changes while `stores`."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.decisions: dict[str, session_pb2.Decision] = {}
        """What the decision on a client id says of its session."""
        self.changes: list[session_pb2.SubscriptionChange] = []
        self.stores = True
        self.acknowledged: list[tuple[str, int, int]] = []
        """(channel, delivery id, outcome)."""
        self.pulls: list[session_pb2.OfflinePull] = []
        self.cut = asyncio.Event()
        self.openings: list[session_pb2.Opening] = []
        self.closings: list[session_pb2.Closing] = []
        self.released: list[str] = []
        self.probe_results: list[session_pb2.ProbeResult] = []
        self.snapshots = 0
        self.goodbyes = 0
        self.confirms = True
        self.to_send = session_pb2.LinkResponse()
        self.link: Link[session_pb2.LinkResponse, session_pb2.LinkRequest] = Link(
            build=self._build, bare=session_pb2.LinkResponse, take=self._take, confirmed=lambda _: None
        )

    def channel_of(self, client_id: str) -> str:
        """Return the channel of the latest connection of a client."""
        return next(
            opening.connection.channel_id
            for opening in reversed(self.openings)
            if opening.connection.client_id == client_id
        )

    def deliver(
        self,
        client_id: str,
        delivery_id: int,
        payload: bytes,
        qos: int = 1,
        *,
        topic: str = "demo/a",
        identifier: int = 0,
    ) -> None:
        """Send a kept message to the latest connection of a client; with `identifier` it was sent before."""
        deliveries = self.to_send.deliveries
        deliveries.topics.append(topic)
        deliveries.channel_ids.append(self.channel_of(client_id))
        deliveries.topic_indexes.append(len(deliveries.topics) - 1)
        deliveries.payloads.append(payload)
        deliveries.message_indexes.append(len(deliveries.payloads) - 1)
        deliveries.channel_indexes.append(len(deliveries.channel_ids) - 1)
        deliveries.delivery_ids.append(delivery_id)
        deliveries.flags += bytes((qos | (8 if identifier else 0),))
        deliveries.packet_identifiers.append(identifier)
        self.link.wake()

    def store(self, change: session_pb2.SubscriptionChange) -> None:
        """Answer a change."""
        self.to_send.stored_changes.add(channel_id=change.channel_id, number=change.number)
        self.link.wake()

    def _build(self) -> session_pb2.LinkResponse | None:
        frame, self.to_send = self.to_send, session_pb2.LinkResponse()
        return frame if frame.ByteSize() else None

    def _take(self, frame: session_pb2.LinkRequest) -> None:
        self.openings.extend(frame.openings)
        self.closings.extend(frame.closings)
        self.released.extend(frame.released_channel_ids)
        self.probe_results.extend(frame.probe_results)
        self.snapshots += frame.snapshot_complete
        self.goodbyes += frame.goodbye
        for opening in frame.openings:
            if not opening.established:
                connection = opening.connection
                taken = connection.client_id in self.taken
                stored = self.decisions.get(connection.client_id)
                if stored is None and not taken:
                    self.to_send.admitted_channel_ids.append(connection.channel_id)
                    self.to_send.admitted_times_ms.append(1)
                    continue
                decision = self.to_send.decisions.add()
                decision.CopyFrom(stored or session_pb2.Decision())
                decision.channel_id = connection.channel_id
                decision.admission = session_pb2.ADMISSION_DUPLICATE if taken else session_pb2.ADMISSION_ACCEPTED
                decision.connect_time_ms = 1
        self.changes.extend(frame.subscription_changes)
        if self.stores:
            for change in frame.subscription_changes:
                self.store(change)
        acks = frame.acknowledgements
        self.acknowledged += [
            (acks.channel_ids[channel], delivery_id, outcome)
            for channel, delivery_id, outcome in zip(
                acks.channel_indexes, acks.delivery_ids, acks.outcomes, strict=True
            )
        ]
        self.pulls.extend(frame.offline_pulls)
        if self.confirms:
            self.link.confirm(frame.frame)
        self.link.wake()

    @override
    async def Link(self, request_iterator: Any, context: aio.ServicerContext[Any, Any]) -> None:  # type: ignore[override]  # reads and writes by its context
        await context.read()
        self.link.reset()
        self.cut.clear()
        await context.write(session_pb2.LinkResponse(opened=session_pb2.LinkOpened(session_incarnation="s")))
        try:
            await self.link.exchange(lambda: _read_until(context, self.cut), context.write)
        except LinkBrokenError:
            return

    @override
    async def GetClient(
        self, request: session_pb2.GetClientRequest, context: aio.ServicerContext[Any, Any]
    ) -> session_pb2.GetClientResponse:
        raise NotImplementedError

    @override
    async def CloseConnections(
        self, request: session_pb2.CloseConnectionsRequest, context: aio.ServicerContext[Any, Any]
    ) -> session_pb2.CloseConnectionsResponse:
        raise NotImplementedError

    @override
    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: aio.ServicerContext[Any, Any]
    ) -> session_pb2.ListSessionsResponse:
        raise NotImplementedError

    @override
    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: aio.ServicerContext[Any, Any]
    ) -> session_pb2.GetSessionResponse:
        raise NotImplementedError

    @override
    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: aio.ServicerContext[Any, Any]
    ) -> session_pb2.DeleteSessionResponse:
        raise NotImplementedError


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Notes targets and publications; acknowledges when told to; delivers what the test queues."""

    def __init__(self) -> None:
        self.targets: dict[int, router_pb2.Target] = {}
        self.published: list[tuple[str, bytes, int, int, str]] = []
        """(topic, payload, flags, sequence, publisher)."""
        self.queries: list[router_pb2.RetainedQuery] = []
        self.returned: list[tuple[str, str, bytes, int]] = []
        """(shared subscription, topic, payload, QoS)."""
        self.receipts: dict[int, int] = {}
        """Outcome by receipt id."""
        self.local_topics: dict[str, list[int]] = {}
        """Topics that the edge may serve by itself, with its targets."""
        self.missed = False
        self.largest_frame = 0
        self.acknowledges = True
        self.confirms = True
        self.goodbyes = 0
        self.to_send = router_pb2.LinkResponse()
        self.cut = asyncio.Event()
        self.link: Link[router_pb2.LinkResponse, router_pb2.LinkRequest] = Link(
            build=self._build, bare=router_pb2.LinkResponse, take=self._take, confirmed=lambda _: None
        )

    def target_of(self, interest: str) -> int:
        """Return the target id of a topic filter or client id."""
        for target in self.targets.values():
            shared = f"$share/{target.share_name}/{target.topic_filter}"
            if interest in (shared if target.share_name else target.topic_filter, target.client_id):
                return target.target_id
        raise KeyError(interest)

    def deliver(
        self, topic: str, payload: bytes, qos: int, *interests: str, sequence: int = 0, receipt_id: int = 0
    ) -> None:
        """Send a message to the targets of `interests`; with `receipt_id` it wants a receipt."""
        batch = self.to_send.deliveries
        batch.topics.append(topic)
        batch.target_counts.append(len(interests))
        batch.target_ids.extend(self.target_of(interest) for interest in interests)
        batch.topic_indexes.append(len(batch.topics) - 1)
        batch.payloads.append(payload)
        batch.flags += bytes((qos | (16 if receipt_id else 0),))
        if receipt_id:
            batch.receipt_ids.append(receipt_id)
        if qos == 2:
            batch.origins.append("other")
            batch.origin_indexes.append(len(batch.origins) - 1)
            batch.sequences.append(sequence)
        self.link.wake()

    def _build(self) -> router_pb2.LinkResponse | None:
        frame, self.to_send = self.to_send, router_pb2.LinkResponse()
        return frame if frame.ByteSize() else None

    def _take(self, frame: router_pb2.LinkRequest) -> None:
        self.largest_frame = max(self.largest_frame, frame.ByteSize())
        for target in frame.added_targets:
            self.targets[target.target_id] = target
        for target_id in frame.removed_target_ids:
            self.targets.pop(target_id, None)
        self.goodbyes += frame.goodbye
        self.receipts.update(zip(frame.receipt_ids, frame.receipt_outcomes, strict=True))
        for n, index in enumerate(frame.returned.target_indexes):
            target = frame.returned.targets[index]
            share = f"$share/{target.share_name}/{target.topic_filter}"
            topic = frame.returned.topics[frame.returned.topic_indexes[n]]
            self.returned.append((share, topic, frame.returned.payloads[n], frame.returned.flags[n]))
        self.queries.extend(frame.retained_queries)
        batch = frame.publishes
        runs = iter(zip(batch.run_counts, batch.run_payload_bytes, strict=True))
        for n, sequence in enumerate(batch.sequences):
            topic = batch.topics[batch.topic_indexes[n]]
            publisher = batch.publishers[batch.publisher_indexes[n]]
            flags = batch.flags[n]
            payloads = Run(batch.payloads[n], *next(runs)).payloads() if flags & RUN else [batch.payloads[n]]
            for number, payload in enumerate(payloads, sequence):
                self.published.append((topic, payload, flags & ~RUN, number, publisher))
            if self.acknowledges and batch.flags[n] & 3:
                self.to_send.acknowledged_sequences.append(sequence)
        for question in frame.route_questions:
            self.to_send.route_answers.add(
                instance_id=question.instance_id,
                topic=question.topic,
                is_logged=question.is_logged,
                is_local=question.topic in self.local_topics,
                target_ids=self.local_topics.get(question.topic, ()),
            )
        if self.confirms:
            self.link.confirm(frame.frame)
        self.link.wake()

    @override
    async def Publish(
        self, request: router_pb2.PublishRequest, context: aio.ServicerContext[Any, Any]
    ) -> router_pb2.PublishResponse:
        raise NotImplementedError

    @override
    async def Link(self, request_iterator: Any, context: aio.ServicerContext[Any, Any]) -> None:  # type: ignore[override]  # reads and writes by its context
        await context.read()
        self.link.reset()
        self.cut.clear()
        opened = router_pb2.LinkOpened(router_incarnation="r", missed=self.missed)
        await context.write(router_pb2.LinkResponse(opened=opened))
        try:
            await self.link.exchange(lambda: _read_until(context, self.cut), context.write)
        except LinkBrokenError:
            return
