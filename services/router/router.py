"""Routing of published messages: to their log, to the edges that want them, and acknowledgements back.

Back-pressure. Everything that can pile up is measured: the messages that the log has not stored, and for each edge
what it has not confirmed. When one of these passes its high mark, frames of the edges whose messages went
there are taken and not confirmed (*held*), so that their link windows (8 MiB each) fill and they stop reading from
their clients. When all of them are below the low mark, the held frames are confirmed. Two things don't wait:

- a message of QoS 0 is not written to a log above the high mark while NATS is away; it is delivered all the same;
- an edge that confirms nothing is not waited for longer than `services.router.members` says.

A retained message counts like one of QoS 1 even at QoS 0: were its copy not written, an older one would come back.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque

from services.common.errors import StreamContractError
from services.common.topics import InvalidTopicError, validate_topic_filter
from services.router.domain.columns import CLEAN_SESSION, LOGGED, P2P, QOS, RETAIN, Columns
from services.router.domain.outbox import Receipt
from services.router.domain.routing import Route, Routing
from services.router.edge_link import EdgeLink
from services.router.ports import DeadLetter, Log, Source
from services.router.queries import Answers, Query
from services.router.retained import Retained, RetainedWrite
from weimq.router.v1 import router_pb2

logger = logging.getLogger(__name__)

HIGH_BYTES = 32 << 20
LOW_BYTES = 16 << 20
"""Marks of the back-pressure, each for the logs together and for every edge."""

STREAM_TOKENS = 4
"""Tokens of a log subject that name its stream: `mq.out.<instance>.<parent>`."""

_QOS_TEXT = ("0", "1", "2")


class _Publication:
    """A message of QoS 1 or 2 on its way to the log."""

    __slots__ = ("instance_id", "is_p2p", "payload", "qos", "retained_by", "sequence", "shown_topic", "source", "topic")

    def __init__(
        self,
        source: Source,
        route: Route,
        payload: bytes,
        qos: int,
        sequence: int,
        retained_by: str | None,
        *,
        is_p2p: bool,
    ) -> None:
        self.source = source
        self.instance_id = route.instance_id
        self.topic = route.topic
        self.is_p2p = is_p2p
        self.payload = payload
        self.qos = qos
        self.sequence = sequence
        self.retained_by = retained_by
        self.shown_topic = ""  # empty: `topic`


class Router:
    """Interests and messages of all edges. Owned by one event loop.

    Args:
        retained: the retained messages.
        high_bytes: pending bytes above which sources are held.
        low_bytes: pending bytes below which they go on.
    """

    def __init__(self, *, retained: Retained, high_bytes: int = HIGH_BYTES, low_bytes: int = LOW_BYTES) -> None:
        self._retained = retained
        self._answers = Answers(
            retained=retained, origin=f"retained-{secrets.token_hex(8)}", max_pending_bytes=low_bytes
        )
        self._high_bytes = high_bytes
        self._low_bytes = low_bytes
        self._routing = Routing()
        self._edges: list[EdgeLink | None] = []  # by slot
        self._free: list[int] = []
        self._log: Log | None = None
        self._waiting: deque[tuple[EdgeLink, Columns]] = deque()  # until `begin`
        self._held: list[Source] = []
        self._congested_edges = 0
        self._is_log_congested = False
        self.refused_messages = 0
        """Messages that a log can never store; delivered and acknowledged all the same."""
        self.unlogged_messages = 0
        """Messages of QoS 0 that were not written to their log while NATS was away."""

    def begin(self, log: Log) -> None:
        """Route what waits, and from now on what comes.

        Args:
            log: calls `stored` and `failed`; made with `STREAM_TOKENS`.
        """
        self._log = log
        self._retained.begin(log)
        while self._waiting:
            self._publish(*self._waiting.popleft())
        for edge in self._edges:
            if edge is not None:
                self.on_confirmed(edge)
        self.relieve()

    @property
    def is_begun(self) -> bool:
        """Whether messages are routed."""
        return self._log is not None

    @property
    def can_store(self) -> bool:
        """Whether NATS takes messages now."""
        return self._log is not None and self._log.is_connected

    def publish(
        self,
        source: Source,
        columns: Columns,
        *,
        message_ids: dict[int, str] | None = None,
        shown_topics: dict[int, str] | None = None,
    ) -> None:
        """Route messages that come from no edge.

        Args:
            source: is told when those of QoS 1 and 2 are safe.
            columns: of the messages.
            message_ids: by sequence; None: made of incarnation and sequence.
            shown_topics: by sequence, topics that clients see instead of the one by which a message was routed.

        Raises:
            StreamContractError: a topic is not acceptable.
        """
        self._publish(source, columns, message_ids, shown_topics or None)

    def join(self, edge: EdgeLink) -> None:
        """Let a new edge take part, under its slot."""
        self._edges[edge.slot] = edge

    def new_slot(self) -> int:
        """Return a slot that no edge has."""
        if self._free:
            return self._free.pop()
        self._edges.append(None)
        return len(self._edges) - 1

    def leave(self, edge: EdgeLink) -> None:
        """Forget an edge: its interests, and what it owes."""
        if edge.is_gone:
            return
        for target in edge.targets.values():
            self._remove(edge, target)
        edge.targets.clear()
        if edge.is_congested:
            edge.is_congested = False
            self._congested_edges -= 1
        # Nobody was told that these are safe, so they may go with their edge.
        self._waiting = deque(each for each in self._waiting if each[0] is not edge)
        edge.leave()
        self._edges[edge.slot] = None
        self._free.append(edge.slot)
        self.relieve()

    def take(self, edge: EdgeLink, request: router_pb2.LinkRequest) -> None:
        """Take a frame of an edge over, and confirm it unless its sender is held.

        Raises:
            StreamContractError: the frame breaks the contract of the link.
        """
        if request.HasField("open"):
            raise StreamContractError("`open` comes first and only there", rule="opening")
        for target in request.added_targets:
            self._add(edge, target)
        for target_id in request.removed_target_ids:
            if target_id in edge.targets:
                self._remove(edge, edge.targets.pop(target_id))
        if request.snapshot_complete:
            self._complete_snapshot(edge)
        for query in request.retained_queries:
            self._ask(edge, query)
        if request.HasField("publishes"):
            columns = _columns(request.publishes)
            if self._log is None:
                for index in range(len(columns.topics)):
                    self._route(columns, index)  # refused now or never
                self._waiting.append((edge, columns))
                self._hold(edge)
            else:
                self._publish(edge, columns)
        if not edge.is_held:
            edge.link.confirm(request.frame)

    def on_confirmed(self, edge: EdgeLink) -> None:
        """Note that an edge confirmed deliveries."""
        if edge.queries and self._log is not None:
            self._answers.answer(edge)
        if edge.is_congested and edge.pending_bytes <= self._low_bytes:
            edge.is_congested = False
            self._congested_edges -= 1
            self.relieve()

    def stored(self, token: object, _sequence: int, _is_duplicate: bool) -> None:  # noqa: FBT001 - LogWriter's
        """Deliver a message that its log has, also when the log had it before: its edge did not hear of it."""
        if isinstance(token, _Publication):
            self._route_stored(token)
        elif isinstance(token, RetainedWrite):
            self._retained.stored(token)
        elif isinstance(token, DeadLetter):
            token.stored()
        if self._is_log_congested:
            self.relieve()

    def failed(self, token: object, _reason: str) -> None:
        """Deliver a message that no log can ever store (too long a topic, too large): trying again changes nothing."""
        self.refused_messages += 1
        if isinstance(token, _Publication):
            self._route_stored(token)
        elif isinstance(token, RetainedWrite):
            self._retained.failed(token)
        elif isinstance(token, DeadLetter):
            token.stored()

    def _route_stored(self, publication: _Publication) -> None:
        route = self._routing.route(publication.instance_id, publication.topic, is_p2p=publication.is_p2p)
        if publication.shown_topic:
            route = route.shown_as(publication.shown_topic)
        self._deliver(
            publication.source,
            route,
            publication.payload,
            publication.qos,
            publication.sequence,
            publication.retained_by,
        )

    def relieve(self) -> None:
        """Let held edges go on when nothing is congested any more."""
        log = self._log
        if log is None:
            return
        if self._is_log_congested and log.backlog_bytes <= self._low_bytes:
            self._is_log_congested = False
        if self._held and not self._is_log_congested and not self._congested_edges:
            held = self._held
            self._held = []
            for source in held:
                source.release()

    def _hold(self, source: Source) -> None:
        if not source.is_held:
            source.is_held = True
            self._held.append(source)

    def _hold_for_edge(self, source: Source, edge: EdgeLink) -> None:
        """Hold a source because too much is pending for an edge."""
        if not edge.is_congested:
            edge.is_congested = True
            self._congested_edges += 1
            logger.warning("edge is slow, holding its publishers", extra={"edge_id": edge.edge_id})
        self._hold(source)

    def _add(self, edge: EdgeLink, target: router_pb2.Target) -> None:
        target_id = target.target_id
        known = edge.targets.get(target_id)
        if edge.snapshot is not None:
            edge.snapshot.add(target_id)
        if known is not None:
            if known == target:
                return
            raise StreamContractError(f"target id {target_id} has another interest", rule="targets")
        interest = target.WhichOneof("interest")
        if not target_id or interest is None:
            raise StreamContractError("a target has a positive id and an interest", rule="targets")
        if interest == "client_id":
            self._routing.add_client(target.instance_id, target.client_id, edge.slot, target_id)
        else:
            try:
                validate_topic_filter(target.topic_filter)
            except InvalidTopicError as error:
                raise StreamContractError(str(error), rule="targets") from error
            self._routing.add_filter(target.instance_id, target.topic_filter, edge.slot, target_id)
        kept = edge.targets[target_id] = router_pb2.Target()  # `target` would keep its whole frame alive
        kept.CopyFrom(target)

    def _remove(self, edge: EdgeLink, target: router_pb2.Target) -> None:
        if target.HasField("client_id"):
            self._routing.remove_client(target.instance_id, target.client_id, edge.slot, target.target_id)
        else:
            self._routing.remove_filter(target.instance_id, target.topic_filter, edge.slot, target.target_id)

    def _ask(self, edge: EdgeLink, query: router_pb2.RetainedQuery) -> None:
        if not query.query_id or query.query_id in edge.targets:
            raise StreamContractError("a query has a positive id that no target has", rule="retained_queries")
        try:
            validate_topic_filter(query.topic_filter)
        except InvalidTopicError as error:
            raise StreamContractError(str(error), rule="retained_queries") from error
        edge.ask(Query(query.query_id, query.instance_id, query.topic_filter))
        if self._log is not None:
            self._answers.answer(edge)
        if edge.pending_bytes > self._high_bytes:
            self._hold_for_edge(edge, edge)

    def _complete_snapshot(self, edge: EdgeLink) -> None:
        if edge.snapshot is None:
            raise StreamContractError("the snapshot is complete already", rule="snapshot")
        for target_id in edge.targets.keys() - edge.snapshot:
            self._remove(edge, edge.targets.pop(target_id))
        edge.snapshot = None

    def _publish(
        self,
        source: Source,
        columns: Columns,
        message_ids: dict[int, str] | None = None,
        shown_topics: dict[int, str] | None = None,
    ) -> None:
        log = self._log
        assert log is not None  # noqa: S101 - for the type checker
        topic_flags = columns.topic_flags
        routes: list[Route | None] = [None] * len(topic_flags)
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
            qos = flag & QOS
            retained_by: str | None = None
            if flag & RETAIN and not topic_flags[index] & P2P:
                retained_by = columns.publishers[publisher]
            if topic_flags[index] & LOGGED and self._may_log(log, qos, source):
                headers = {
                    "Nats-Msg-Id": message_ids[sequence] if message_ids else f"{source.incarnation}-{sequence}",
                    "qoslevel": _QOS_TEXT[qos],
                    "cleansessionflag": "true" if flag & CLEAN_SESSION else "false",
                    "clientId": columns.publishers[publisher],
                }
                if route.second_topic:
                    headers["mqttSecondTopic"] = route.second_topic
                if source.origin:
                    headers["mqttOrigin"] = source.origin
                if shown_topics is not None and sequence in shown_topics:
                    headers["mqttRealTopic"] = shown_topics[sequence]
                if qos:
                    is_p2p = topic_flags[index] & P2P != 0
                    publication = _Publication(source, route, payload, qos, sequence, retained_by, is_p2p=is_p2p)
                    if shown_topics is not None:
                        publication.shown_topic = shown_topics.get(sequence, "")
                    log.write(route.subject, payload, headers, publication)
                    continue  # `stored` delivers it
                log.write(route.subject, payload, headers, None)
            if shown_topics is not None and sequence in shown_topics:
                route = route.shown_as(shown_topics[sequence])
            self._deliver(source, route, payload, qos, sequence, retained_by)

    def _route(self, columns: Columns, index: int) -> Route:
        instance_id = columns.instances[columns.topic_instances[index]]
        is_p2p = columns.topic_flags[index] & P2P != 0
        try:
            return self._routing.route(instance_id, columns.topics[index], is_p2p=is_p2p)
        except ValueError as error:
            raise StreamContractError(str(error), rule="topics") from error

    def _may_log(self, log: Log, qos: int, source: Source) -> bool:
        if log.backlog_bytes > self._high_bytes:
            if qos == 0 and not log.is_connected:
                self.unlogged_messages += 1
                return False
            self._is_log_congested = True
            self._hold(source)
        return True

    def _deliver(
        self, source: Source, route: Route, payload: bytes, qos: int, sequence: int, retained_by: str | None
    ) -> None:
        legs = route.legs
        receipt = None
        origin = ""
        if qos:
            waiting = len(legs) if retained_by is None else len(legs) + 1
            if not waiting:
                source.acknowledge(sequence)
                return
            receipt = Receipt(source, sequence, waiting)
            origin = source.incarnation
        for leg in legs:
            edge = self._edges[leg.slot]
            # A route is found anew after its interests changed, and an edge that left has none.
            assert edge is not None  # noqa: S101 - for the type checker
            # Those who subscribed before get it without the retain flag [MQTT-3.3.1-9].
            edge.deliver(leg, payload, qos, origin, sequence, receipt)
            if edge.pending_bytes > self._high_bytes:
                self._hold_for_edge(source, edge)
        if retained_by is not None:
            # Now and not when it is stored: who subscribes from here on has missed the live message.
            self._retained.keep(route.instance_id, route.topic, payload, qos, retained_by, receipt)
            if self._log is not None and self._log.backlog_bytes > self._high_bytes:
                self._is_log_congested = True
                self._hold(source)


def _columns(batch: router_pb2.PublishBatch) -> Columns:
    return Columns(
        instances=list(batch.instances),
        topics=list(batch.topics),
        topic_instances=list(batch.topic_instances),
        topic_flags=batch.topic_flags,
        publishers=list(batch.publishers),
        topic_indexes=list(batch.topic_indexes),
        sequences=list(batch.sequences),
        payloads=list(batch.payloads),
        flags=batch.flags,
        publisher_indexes=list(batch.publisher_indexes),
    )
