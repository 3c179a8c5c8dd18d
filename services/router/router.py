"""Routing of published messages: to their log, to the edges and shards that want them, and acknowledgements back.

A message of QoS 1 or 2 goes to its log first, when its topic has one. One without a log that a session shard is to
keep goes to the stream of `services.router.kept` first, so that it has a position. What is pending is measured and
bounded, see `services.router.pressure`. Two things don't wait:

- a message of QoS 0 is not written to a full log that takes nothing, nor above the high mark while NATS is away; it is
  delivered all the same;
- an edge that confirms nothing is not waited for longer than `services.router.members` says.

A retained message counts like one of QoS 1 even at QoS 0: were its copy not written, an older one would come back.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable

from services.common.errors import StreamContractError
from services.common.sharding import router_of
from services.router.delivery import Delivery
from services.router.domain.columns import DELIVERED, LOGGED, P2P, QOS, REPEATED, RETAIN, RUN, Columns
from services.router.domain.routing import Route, Routing
from services.router.edge_link import EdgeLink
from services.router.flooding import Flooding
from services.router.full_logs import FullLogs
from services.router.interests import Interests, check_filter
from services.router.kept import Kept
from services.router.log_reports import LogReports
from services.router.ports import Log, Source
from services.router.pressure import Pressure
from services.router.publication import HeaderLines, Publication, columns_of
from services.router.queries import Answers, Query
from services.router.retained import Retained
from services.router.runs import Runs
from services.router.shards import Shards
from services.router.shares import Shares
from services.router.short_way import ShortWay
from weimq.router.v1 import router_pb2

HIGH_BYTES = 32 << 20
LOW_BYTES = 16 << 20
"""Marks of the back-pressure, each for the logs together and for every edge."""

STREAM_TOKENS = 4
"""Tokens of a log subject that name its stream: `mq.out.<instance>.<parent>`."""


class Router:
    """Interests and messages of all edges. Owned by one event loop.

    Args:
        retained: the retained messages.
        kept: the streams of messages without a log that shards keep.
        shards: links of the session shards.
        index: of this router among all.
        count: of the routers.
        high_bytes: pending bytes above which sources are held.
        low_bytes: pending bytes below which they go on.
    """

    def __init__(
        self,
        *,
        retained: Retained,
        kept: Kept,
        shards: Shards,
        index: int = 0,
        count: int = 1,
        high_bytes: int = HIGH_BYTES,
        low_bytes: int = LOW_BYTES,
    ) -> None:
        self._retained = retained
        self.kept = kept
        """The streams of kept messages."""
        self._shards = shards
        self._index = index
        self._count = count
        self._answers = Answers(
            retained=retained, origin=f"retained-{secrets.token_hex(8)}", max_pending_bytes=low_bytes
        )
        self._high_bytes = high_bytes
        self.pressure = Pressure(high_bytes, low_bytes)
        """Back-pressure, which is told when streams of links come and go."""
        self.flooding = Flooding()
        """Back-pressure on messages of QoS 0 alone."""
        self._routing = Routing()
        self._interests = Interests(self._routing)
        self._edges: list[EdgeLink | None] = []  # by slot
        self._free: list[int] = []
        self.shares = Shares(self._routing, self._edges, self.pressure, self.flooding)
        """Shared subscriptions."""
        self.short_way = ShortWay(self._routing, self._edges, shards)
        """Topics that edges serve by themselves."""
        self._header_lines = HeaderLines()
        self._delivery = Delivery(
            edges=self._edges,
            kept=kept,
            retained=retained,
            shares=self.shares,
            pressure=self.pressure,
            flooding=self.flooding,
        )
        self._runs = Runs(
            shards=shards,
            kept=kept,
            header_lines=self._header_lines,
            delivery=self._delivery,
            pressure=self.pressure,
        )
        self.reports = LogReports(
            routing=self._routing,
            shards=shards,
            kept=kept,
            retained=retained,
            delivery=self._delivery,
            pressure=self.pressure,
        )
        """Takes what the log reports."""
        self.full_logs = FullLogs(self.edges)
        """Logs whose publishers wait."""
        self._log: Log | None = None
        self._waiting: deque[tuple[EdgeLink, Columns]] = deque()  # until `begin`
        self._delivered_before = [0, 0]  # to edges and shards that are gone
        self.on_receipt: Callable[[int, router_pb2.DeliveryOutcome.ValueType], None]
        self.published = 0
        """Messages to be routed."""
        self.unlogged_messages = 0
        """Messages of QoS 0 that were not written to their log while NATS was away."""

    def begin(self, log: Log) -> None:
        """Route what waits, and from now on what comes.

        Args:
            log: calls `reports`; made with `STREAM_TOKENS`.
        """
        self._log = log
        self.pressure.begin(log)
        self._retained.begin(log)
        while self._waiting:
            self.publish(*self._waiting.popleft())
        for edge in self._edges:
            if edge is not None:
                self.on_confirmed(edge)
        self.pressure.relieve()

    @property
    def is_begun(self) -> bool:
        """Whether messages are routed."""
        return self._log is not None

    @property
    def can_store(self) -> bool:
        """Whether NATS takes messages now."""
        return self._log is not None and self._log.is_connected

    @property
    def pending_bytes(self) -> int:
        """Deliveries that edges and shards have not confirmed."""
        return sum(edge.pending_bytes for edge in self.edges())

    def edges(self) -> list[EdgeLink]:
        """Return the edges and shards that take part."""
        return [edge for edge in self._edges if edge is not None]

    def delivered(self, *, is_shard: bool) -> int:
        """Return how many messages were sent to edges, or to shards."""
        now = sum(edge.delivered for edge in self.edges() if edge.is_shard == is_shard)
        return self._delivered_before[is_shard] + now

    def serves(self, instance_id: str, topic: str) -> bool:
        """Say whether this router has a topic; each parent topic has one router, which keeps the order of its log."""
        if self._count == 1:
            return True
        return router_of(instance_id, topic.partition("/")[0], self._count) == self._index

    def join(self, edge: EdgeLink) -> None:
        """Let a new edge or shard take part, under its slot."""
        self._edges[edge.slot] = edge

    def new_slot(self) -> int:
        """Return a slot that no edge has."""
        if self._free:
            return self._free.pop()
        self._edges.append(None)
        return len(self._edges) - 1

    def leave(self, edge: EdgeLink) -> None:
        """Forget an edge or a shard: its interests, and what it owes."""
        if edge.is_gone:
            return
        self._interests.remove_all(edge)
        self.short_way.leave(edge)
        # Nobody was told that these are safe, so they may go with their edge.
        self._waiting = deque(each for each in self._waiting if each[0] is not edge)
        shared = edge.leave()
        self._delivered_before[edge.is_shard] += edge.delivered
        self._edges[edge.slot] = None
        self._free.append(edge.slot)
        for each in shared:
            self.shares.hand_on(each)
        self._end_receipts(edge)
        self.flooding.leave(edge)
        self.pressure.leave(edge)

    def release(self, shard: EdgeLink) -> None:
        """Let nobody wait for a shard without a stream; its interests stay."""
        shard.drop_deliveries()
        self._end_receipts(shard)
        self.pressure.confirmed(shard)

    def _end_receipts(self, edge: EdgeLink) -> None:
        """Report for an edge whose connections are gone, or for a shard, whose message is in the log."""
        outcome = router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT
        if edge.is_shard:
            outcome = router_pb2.DELIVERY_OUTCOME_OFFLINE_KEPT
        while edge.wanted_receipts:
            self.on_receipt(edge.wanted_receipts.pop(), outcome)

    def take(self, edge: EdgeLink, request: router_pb2.LinkRequest) -> None:
        """Take a frame over, and confirm it unless its sender is held.

        Raises:
            StreamContractError: the frame breaks the contract of the link.
        """
        if request.HasField("open"):
            raise StreamContractError("`open` comes first and only there", rule="opening")
        filters = [target for target in request.added_targets if self._interests.add(edge, target)]
        self.short_way.revoke(edge, filters)  # P2P messages take the long way
        for target_id in request.removed_target_ids:
            self._interests.remove(edge, target_id)
        if request.snapshot_complete:
            self._interests.complete(edge)
        for query in request.retained_queries:
            self._ask(edge, query)
        if request.HasField("returned"):
            self.shares.take_back(edge, request.returned)
        for receipt_id, outcome in zip(request.receipt_ids, request.receipt_outcomes, strict=False):
            edge.wanted_receipts.discard(receipt_id)
            self.on_receipt(receipt_id, outcome)  # set by `services.router.receipts`
        if request.HasField("publishes"):
            self._take_publishes(edge, request.publishes)
        for question in request.route_questions:
            self.short_way.answer(edge, question, is_begun=self.is_begun)
        edge.go_on(lazily=request.HasField("publishes") and not request.is_awaited)

    def _take_publishes(self, edge: EdgeLink, publishes: router_pb2.PublishBatch) -> None:
        if edge.is_shard:
            raise StreamContractError("a session shard publishes nothing", rule="publishes")
        columns = columns_of(publishes)
        edge.link.gather(columns.messages)
        if self._log is not None:
            self.publish(edge, columns)
            return
        for index in range(len(columns.topics)):
            self._route(columns, index)  # refused now or never
        self._waiting.append((edge, columns))
        self.pressure.hold(edge)

    def on_confirmed(self, edge: EdgeLink) -> None:
        """Note that an edge confirmed deliveries."""
        if edge.queries and self._log is not None:
            self._answers.answer(edge)
        if edge.is_flooded:
            self.flooding.confirmed(edge)
        if edge.is_congested:
            self.pressure.confirmed(edge)

    def _ask(self, edge: EdgeLink, query: router_pb2.RetainedQuery) -> None:
        if not query.query_id or query.query_id in edge.targets:
            raise StreamContractError("a query has a positive id that no target has", rule="retained_queries")
        check_filter(query.topic_filter, "retained_queries")
        edge.ask(Query(query.query_id, query.instance_id, query.topic_filter))
        if self._log is not None:
            self._answers.answer(edge)
        if edge.pending_bytes > self._high_bytes:
            self.pressure.hold_for_edge(edge, edge)

    def publish(
        self,
        source: Source,
        columns: Columns,
        *,
        message_ids: dict[int, str] | None = None,
        shown_topics: dict[int, str] | None = None,
    ) -> None:
        """Route messages, after `begin`.

        Args:
            source: is told when those of QoS 1 and 2 are safe.
            columns: of the messages.
            message_ids: by sequence; None: made of incarnation and sequence.
            shown_topics: by sequence, topics that clients see instead of the one by which a message was routed.

        Raises:
            StreamContractError: a topic is not acceptable.
        """
        log = self._log
        assert log is not None  # noqa: S101 - for the type checker
        shown_topics = shown_topics or None
        topic_flags = columns.topic_flags
        self.published += columns.messages
        routes: list[Route | None] = [None] * len(topic_flags)
        keeps_all = self._shards.unknown > 0
        runs = iter(columns.runs)
        deliver = self._delivery.deliver
        for index, sequence, payload, flag, publisher in zip(
            columns.topic_indexes,
            columns.sequences,
            columns.payloads,
            columns.flags,
            columns.publisher_indexes,
            strict=True,
        ):
            route = routes[index]
            if route is None:
                route = routes[index] = self._route(columns, index)
            if flag & RUN:
                client_id = columns.publishers[publisher]
                self._runs.publish(log, source, route, next(runs), sequence, flag, topic_flags[index], client_id)
                log.push()
                continue
            qos = flag & QOS
            topic_flag = topic_flags[index]
            if not qos and not topic_flag and not flag & RETAIN and shown_topics is None:  # the most frequent
                deliver(source, route, payload, 0, sequence, None)
                continue
            retained_by: str | None = None
            if topic_flag & P2P:
                route = self._shards.p2p_route(route, topic_flag, flag)
            elif flag & RETAIN:
                retained_by = columns.publishers[publisher]
            if topic_flag & LOGGED:
                is_written = self._may_log(log, route, qos, source)
                in_kept = False
            else:
                is_written = in_kept = qos > 0 and (
                    len(route.shard_legs) > 0 or route.is_kept or (keeps_all and not topic_flag & P2P)
                )
            shown_topic = "" if shown_topics is None else shown_topics.get(sequence, "")
            if is_written:
                message_id = message_ids[sequence] if message_ids else f"{source.incarnation}-{sequence}"
                client_id = columns.publishers[publisher]
                lines = self._header_lines.of(route, flag, topic_flag, client_id, source.origin, shown_topic, in_kept)
                publication: Publication | None = None
                if qos:
                    publication = Publication(
                        source, route, payload, flag, sequence, retained_by, topic_flag, in_kept, shown_topic
                    )
                is_found = qos < 2 and message_ids is None and not source.origin  # noqa: PLR2004 - exactly once
                self._write(log, route, payload, message_id, lines, publication, flag & REPEATED != 0, is_found)
                log.push()
                if qos:
                    continue  # `reports` delivers it
            if shown_topic:
                route = route.shown_as(shown_topic)
            deliver(source, route, payload, qos, sequence, retained_by, is_delivered=flag & DELIVERED != 0)

    def _write(
        self,
        log: Log,
        route: Route,
        payload: bytes,
        message_id: str,
        lines: bytes,
        publication: Publication | None,
        may_repeat: bool,  # noqa: FBT001 - hot path
        is_found: bool,  # noqa: FBT001
    ) -> None:
        if publication is not None and publication.in_kept:
            self.kept.write(log, route.instance_id, payload, message_id, lines, publication, may_repeat)
            self.pressure.written(publication.source)
            return
        log.write_lines(route.subject, payload, message_id, lines, publication, may_repeat, is_found)

    def _route(self, columns: Columns, index: int) -> Route:
        instance_id = columns.instances[columns.topic_instances[index]]
        topic = columns.topics[index]
        if not self.serves(instance_id, topic):
            raise StreamContractError("another router has that topic", rule="topics")
        try:
            return self._routing.route(instance_id, topic, is_p2p=columns.topic_flags[index] & P2P != 0)
        except ValueError as error:
            raise StreamContractError(str(error), rule="topics") from error

    def _may_log(self, log: Log, route: Route, qos: int, source: Source) -> bool:
        if qos == 0 and self.full_logs.logs and log.is_stuck(route.subject):
            self.unlogged_messages += 1
            return False
        if log.backlog_bytes > self._high_bytes:
            if qos == 0 and not log.is_connected:
                self.unlogged_messages += 1
                return False
            self.pressure.written(source)
        return True
