"""The edge's end of the link with the router: interests and publications up, deliveries down.

Publications gather in columns (see `lanes`) while a frame is being sent. Those of QoS 1 and 2
stay in `_unacknowledged` until the router says that they are safe, and are sent again when it restarts. Hot path.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence

from grpc import aio

from services.common import utf8
from services.common.grpc_client import call_metadata
from services.common.link import Link
from services.common.linking import Opened, keep_linked
from services.common.readiness import Readiness
from services.common.settings import Secret
from services.edge.arrivals import Arrivals
from services.edge.columns import (
    CLEAN_SESSION,
    OVERHEAD_BYTES,
    REPEATED,
    RETAIN,
    Columns,
    Entry,
    Unacknowledged,
)
from services.edge.flow import Flow
from services.edge.hub import Hub
from services.edge.lanes import FRAME_BYTES, Lanes
from services.edge.local_delivery import TAKEN, LocalDelivery
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import FLAG_LOGGED, TopicRule
from services.edge.ports import Client, Interest
from services.edge.pulse import Pulse
from services.edge.receipts import Outcome
from services.edge.returns import Returns, write_target
from services.edge.routes import LocalRoute
from services.edge.sequences import Sequences
from services.edge.short_way import ShortWay
from weimq.router.v1 import router_pb2, router_pb2_grpc


class RouterLink:
    """Carries messages to and from the router; owned by one event loop."""

    def __init__(
        self,
        *,
        channel: aio.Channel,
        token: Secret,
        hub: Hub,
        readiness: Readiness,
        edge_id: str,
        edge_incarnation: str,
        sequences: Sequences,
        name: str = "router",
    ) -> None:
        """Make the end of a link; `run` keeps it up.

        Args:
            channel: to the router.
            token: of the cluster.
            hub: takes the deliveries.
            readiness: told, by `name`, whether the link is up.
            edge_id: name of this edge.
            edge_incarnation: of this process.
            sequences: shared by the links with all routers.
            name: of the router, in logs and for `readiness`.
        """
        self._stub = router_pb2_grpc.RouterServiceStub(channel)
        self._metadata = call_metadata(token)
        self._hub = hub
        self._readiness = readiness
        self._edge_id = edge_id
        self._edge_incarnation = edge_incarnation
        self._name = name
        self._peer_incarnation = ""
        self._added: list[Interest] = []
        self._removed: list[int] = []
        self._queries: deque[router_pb2.RetainedQuery] = deque()
        self._unanswered: dict[int, router_pb2.RetainedQuery] = {}
        self._notices: list[Callable[[], None]] = []
        self._waiting: deque[tuple[int, list[Callable[[], None]]]] = deque()
        self._returns = Returns()
        self._reports: dict[int, Outcome] = {}
        self._arrivals = Arrivals(hub, self._report)
        self._short = ShortWay(hub, self._ask, self._send)
        self._local = LocalDelivery(hub, self._ask, self._send)
        self._lanes = Lanes()
        self._pulse = Pulse()
        self._flow = Flow(hub, self._lanes, self._short, self._local)
        self._sequences = sequences
        self._unacknowledged: dict[int, Unacknowledged] = {}
        self._full_logs: set[tuple[str, str]] = set()  # instance and parent topic
        self._snapshot_complete = False
        self._goodbye = False
        self.link: Link[router_pb2.LinkRequest, router_pb2.LinkResponse] = Link(
            build=self._build, bare=router_pb2.LinkRequest, take=self._take, confirmed=self._on_confirmed
        )

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        await keep_linked(
            name=self._name,
            link=self.link,
            readiness=self._readiness,
            open_stream=lambda: self._stub.Link(metadata=self._metadata, wait_for_ready=True),
            greeting=self._greeting,
            opened=self._on_opened,
            broken=self._short.on_broken,
        )

    # --- the port ------------------------------------------------------------------------------

    @property
    def is_congested(self) -> bool:
        """Whether all publishers must pause; see `ports.Router`."""
        return self._flow.is_congested

    def add_target(self, target: Interest) -> None:
        """Register an interest; see `ports.Router`."""
        self._added.append(target)
        if target.topic_filter:
            self._short.on_target(target.instance_id, target.topic_filter)
            self._local.on_target(target)
        self.link.wake()

    def remove_target(self, target_id: int) -> None:
        """Withdraw an interest; see `ports.Router`."""
        self._removed.append(target_id)
        self.link.wake()

    def give_back(self, target: Interest, messages: list[tuple[OutboundMessage, int]]) -> None:
        """Return messages of a shared subscription; see `ports.Router`."""
        self._returns.add(target, messages)
        self.link.wake()

    def query_retained(self, query: Interest) -> int:
        """Ask for retained messages; see `ports.Router`."""
        asked = router_pb2.RetainedQuery(
            query_id=query.target_id, instance_id=query.instance_id, topic_filter=query.topic_filter
        )
        self._unanswered[query.target_id] = asked
        self._queries.append(asked)
        self.link.wake()
        return 1

    def notify(self, done: Callable[[], None]) -> None:
        """Tell once the targets are known; see `ports.Router`."""
        self._notices.append(done)
        self.link.wake()

    def publish(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> None:  # noqa: FBT001 - hot path
        """Take a message over; see `ports.Router`."""
        flags = 0
        if not rule.flags:
            if self._short.take(client, rule, publication, clean_session):
                flags = TAKEN
        elif rule.flags == FLAG_LOGGED and not rule.is_ordered:  # what is held back is overtaken by other topics
            flags = self._local.take(client, rule, publication, clean_session)
        if flags != TAKEN:
            self._send(client, rule, publication, clean_session, flags)
        else:
            self._flow.took(client, publication.qos, 0)

    def publish_run(self, client: Client, rule: TopicRule, run: PublishRun, clean_session: bool) -> None:  # noqa: FBT001 - hot path
        """Take messages over; see `ports.Router`."""
        flags = 0
        if not rule.flags:
            if self._short.take_run(client, rule, run, clean_session):
                self._flow.took(client, run.qos, 0)
                return
        elif rule.flags == FLAG_LOGGED and not rule.is_ordered and run.qos <= 1:
            flags = self._local.take_run(rule, run)
        if flags == TAKEN or run.qos > 1:  # the router takes those of QoS 2 one by one
            for publication in run.publications():
                self.publish(client, rule, publication, clean_session)
        elif rule.flags and not run.qos:
            for publication in run.publications():
                self._send(client, rule, publication, clean_session, flags)
        else:
            self._send_run(client, rule, run, clean_session, flags)
            if not rule.flags:
                self._short.sent(rule, run.count)

    def _send_run(self, client: Client, rule: TopicRule, run: PublishRun, clean_session: bool, flags: int) -> None:  # noqa: FBT001 - hot path
        qos = run.qos
        flags |= qos | (CLEAN_SESSION if clean_session else 0)
        sequence = self._sequences.take(run.count)
        if qos:
            self._keep(sequence, Unacknowledged(client, rule, run, flags))
        self._gather(rule, client.client_id, sequence, run.frames, flags, run)
        self._flow.took(client, qos, 0 if rule.is_ordered else len(run.frames))

    def _send(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool, flags: int) -> None:  # noqa: FBT001 - hot path
        qos = publication.qos
        flags |= qos | (RETAIN if publication.retain else 0) | (CLEAN_SESSION if clean_session else 0)
        sequence = self._sequences.take(1)
        if qos:
            self._keep(sequence, Unacknowledged(client, rule, publication, flags))
        self._gather(rule, client.client_id, sequence, publication.payload, flags, None)
        self._flow.took(client, qos, 0 if rule.is_ordered else len(publication.payload) + OVERHEAD_BYTES)

    def _keep(self, sequence: int, entry: Unacknowledged) -> None:
        self._unacknowledged[sequence] = entry
        if self._full_logs and (entry.rule.instance_id, entry.rule.log) in self._full_logs:
            entry.client.wait_for_answers()

    def say_goodbye(self) -> None:
        """Tell the router that this edge ends for good, after all that is to be sent."""
        self._goodbye = True
        self.link.wake()

    @property
    def is_idle(self) -> bool:
        """Whether everything was sent, confirmed and acknowledged."""
        return not (
            not self._lanes.is_empty
            or self._flow.held_bytes
            or self._unacknowledged
            or self._removed
            or not self._returns.is_empty
            or self._goodbye
            or self.link.has_unconfirmed
        )

    # --- up ------------------------------------------------------------------------------------

    def _gather(
        self, rule: TopicRule, client_id: str, sequence: int, payload: bytes, flags: int, run: PublishRun | None
    ) -> None:
        if self._lanes.add(rule, client_id, sequence, payload, flags, run):
            self.link.wake()

    def _build(self) -> router_pb2.LinkRequest | None:
        if self._returns.has_unsent and self._snapshot_complete:
            return self._returns.build(self.link.next_frame)
        if self._reports and self._snapshot_complete:
            reports, self._reports = self._reports, {}
            return router_pb2.LinkRequest(receipt_ids=list(reports), receipt_outcomes=list(reports.values()))
        has_changes = bool(self._added or self._removed or self._queries or self._notices)
        frame = router_pb2.LinkRequest()
        if has_changes and not self._add_changes(frame):
            return frame  # full, and what follows must not overtake the interests that are left
        is_late = self._pulse.look(self._unacknowledged)
        if is_late is not None:
            self._flow.judge(is_late)
        columns = self._lanes.take(self.link.next_frame)
        if columns is None and not has_changes and self._snapshot_complete:
            if not self._goodbye or not self._lanes.is_empty:
                return None
            self._goodbye = False
            frame.goodbye = True
            return frame
        if not self._snapshot_complete:
            self._snapshot_complete = frame.snapshot_complete = True
        if columns is not None:
            self._write(columns, frame)
            self._flow.relieve()
        return frame

    def _write(self, columns: Columns, frame: router_pb2.LinkRequest) -> None:
        for route in columns.questions:
            frame.route_questions.add(instance_id=route.instance_id, topic=route.topic, is_logged=route.is_logged)
        if columns.is_awaited:
            frame.is_awaited = True
        if columns.sequences:
            self.link.gather(len(columns.sequences))
            columns.write_to(frame.publishes)
        if columns.is_first:
            self._pulse.sent(columns, self._unacknowledged)
        elif columns.sequences and self._lanes.window.is_narrow:
            self.link.skip_pause()  # messages of QoS 1 and 2 that come now are not to wait for this frame's pause

    def _ask(self, route: LocalRoute) -> None:
        self._lanes.ask(route)
        self.link.wake()

    def _add_changes(self, frame: router_pb2.LinkRequest) -> bool:
        """Add changes of interests up to the size of a frame; return whether all are in it."""
        added = self._added
        size = count = 0
        while count < len(added) and size < FRAME_BYTES:
            size += len(added[count].topic_filter) * utf8.MAX_BYTES + OVERHEAD_BYTES
            count += 1
        targets = frame.added_targets
        for target in added[:count]:
            write_target(target, targets.add())
        del added[:count]
        while self._queries and not added and size < FRAME_BYTES:
            query = self._queries.popleft()
            size += len(query.topic_filter) * utf8.MAX_BYTES + OVERHEAD_BYTES
            frame.retained_queries.append(query)
        if added or self._queries:
            return False
        frame.removed_target_ids.extend(self._removed)
        self._removed.clear()
        if self._notices:
            self._waiting.append((self.link.next_frame, self._notices))
            self._notices = []
            frame.is_awaited = True
        return True

    def _on_confirmed(self, through: int) -> None:
        self._lanes.window.confirmed(through)
        self._flow.relieve()
        self._returns.confirm(through)
        while self._waiting and self._waiting[0][0] <= through:
            _, notices = self._waiting.popleft()
            for done in notices:
                done()

    # --- open ----------------------------------------------------------------------------------

    def _greeting(self) -> router_pb2.LinkRequest:
        return router_pb2.LinkRequest(
            open=router_pb2.LinkOpen(
                edge_id=self._edge_id,
                edge_incarnation=self._edge_incarnation,
                router_incarnation=self._peer_incarnation,
                received_through=self.link.confirmed_through,
            )
        )

    def _on_opened(self, first: router_pb2.LinkResponse) -> Opened:
        opened = first.opened
        self._peer_incarnation = opened.router_incarnation
        if not opened.resumed:
            self._start_anew()
        if opened.missed:
            self._hub.close_all()
        return Opened(resumed=opened.resumed, received_through=opened.received_through)

    def _start_anew(self) -> None:
        """Gather every interest and every unacknowledged publication for a router that knows nothing of us."""
        self._added = list(self._hub.interests())
        self._removed = []
        self._returns.start_anew()
        self._reports = {}  # their calls ended with the router
        self._full_logs.clear()
        self._pulse = Pulse()  # the way to it may be longer
        self._queries = deque(self._unanswered.values())
        self._notices[:0] = [done for _, notices in self._waiting for done in notices]
        self._waiting.clear()
        self._snapshot_complete = False
        # Messages of QoS 0 that had been gathered are kept; those in lost frames are gone, as QoS 0 may be. All in the
        # order of publishing, which the logs of ordered topics promise.
        again = [
            Entry(sequence, entry.rule, entry.client_id, entry.payload, entry.flags | REPEATED, entry.run)
            for sequence, entry in self._unacknowledged.items()
        ]
        again += [entry for entry in self._lanes.clear() if entry.sequence not in self._unacknowledged]
        for each in sorted(again, key=operator.attrgetter("sequence")):
            self._gather(each.rule, each.client_id, each.sequence, each.payload, each.flags, each.run)
        self._short.start_anew()
        self._local.start_anew()
        self._flow.relieve()

    # --- down ----------------------------------------------------------------------------------

    def _take(self, frame: router_pb2.LinkResponse) -> None:
        for revoked in frame.revoked_routes:
            self._short.revoke(revoked.instance_id, revoked.topic)
        if frame.acknowledged_sequences:
            self._acknowledge(frame.acknowledged_sequences)
        if frame.HasField("deliveries"):
            self.link.gather(len(frame.deliveries.flags))
            self._arrivals.deliver(frame.deliveries)
        if frame.route_answers:
            for answer in frame.route_answers:
                (self._local if answer.is_logged else self._short).answer(answer)
            self._flow.relieve()
        for query_id in frame.answered_query_ids:
            if self._unanswered.pop(query_id, None) is not None:
                self._hub.end_query(query_id)
        for state in frame.log_states:
            log = (state.instance_id, state.parent_topic)
            (self._full_logs.add if state.is_full else self._full_logs.discard)(log)
        if frame.HasField("holds_qos0"):
            self._lanes.window.is_held = frame.holds_qos0
            self.link.wake()
        self.link.confirm(frame.frame, lazily=not frame.is_awaited)

    def _acknowledge(self, sequences: Sequence[int]) -> None:
        self.link.gather(len(sequences))
        unacknowledged = self._unacknowledged
        for sequence in sequences:
            entry = unacknowledged.pop(sequence, None)
            if entry is not None:
                entry.acknowledged()
                if entry.route is not None:
                    self._local.settle(entry.route)

    def _report(self, receipt_id: int, outcome: Outcome) -> None:
        self._reports[receipt_id] = outcome
        self.link.wake()


def _sequence(entry: Entry) -> int:
    return entry.sequence
