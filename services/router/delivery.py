"""The ways of a message that is where it has to be stored: to edges, session shards and shared subscriptions."""

from __future__ import annotations

from collections.abc import Sequence

from services.router.domain.columns import KEPT_P2P, Run
from services.router.domain.outbox import Publisher, Receipt
from services.router.domain.routing import Leg, Route
from services.router.edge_link import EdgeLink
from services.router.flooding import HIGH_BYTES as FLOOD_BYTES
from services.router.flooding import Flooding
from services.router.kept import Kept
from services.router.ports import Source
from services.router.pressure import Pressure
from services.router.retained import Retained
from services.router.shares import Shares


class Delivery:
    """Hands messages to the links of edges and shards. Hot path.

    Args:
        edges: and shards, by slot.
        kept: knows the stream of kept messages.
        retained: the retained messages.
        shares: the shared subscriptions.
        pressure: is told when too much is pending for an edge.
        flooding: is told when too much of QoS 0 waits for an edge.
    """

    def __init__(
        self,
        *,
        edges: Sequence[EdgeLink | None],
        kept: Kept,
        retained: Retained,
        shares: Shares,
        pressure: Pressure,
        flooding: Flooding,
    ) -> None:
        self._edges = edges
        self._kept = kept
        self._retained = retained
        self._shares = shares
        self._pressure = pressure
        self._flooding = flooding
        self._high_bytes = pressure.high_bytes

    def deliver(
        self,
        source: Source,
        route: Route,
        payload: bytes,
        qos: int,
        sequence: int,
        retained_by: str | None,
        in_kept: bool = False,  # noqa: FBT001, FBT002 - hot path
        log_sequence: int = 0,
        is_delivered: bool = False,  # noqa: FBT001, FBT002 - hot path
    ) -> None:
        """Send a message to the edges and shards of its route, and keep it when it is a retained one.

        Args:
            source: is told when all of them have confirmed it.
            route: found since the last change of an interest.
            payload: of the message.
            qos: of the publication.
            sequence: of the message in the incarnation of its source.
            retained_by: client id of the publisher of a retained message; None: it is none.
            in_kept: the log that has it is that of kept messages.
            log_sequence: of the message in its log; 0: it is in none; when a shard was to have it, none can store it.
            is_delivered: the source is an edge, and its own subscribers have it; shared ones do not.
        """
        legs = route.legs
        receipt = None
        origin = ""
        if qos and (log_sequence or not route.shard_legs):  # else also those who would get it from a shard
            legs = route.acknowledged_legs
        legs = self._others(legs, source, is_delivered=is_delivered)
        if qos:
            receipt = Receipt(source, sequence, len(legs) + 1)  # one more, until it is on all its ways
            origin = source.incarnation
        for leg in legs:
            edge = self._edges[leg.slot]
            # A route is found anew after its interests changed, and an edge that left has none.
            assert edge is not None  # noqa: S101 - for the type checker
            # Those who subscribed before get it without the retain flag [MQTT-3.3.1-9].
            edge.deliver(leg, payload, qos, origin, sequence, receipt)
            if source.wants_receipts:
                edge.want_receipt(sequence)
            self._measure(source, edge)
        if not route.is_plain:
            if receipt is not None:
                log = self._kept.log(route.instance_id) if in_kept else route.log
                self._deliver_to_shards(source, route, payload, qos, receipt, log, log_sequence)
            self._shares.deliver(source, route, payload, qos, receipt)
        if retained_by is not None:
            if receipt is not None:
                receipt.waiting += 1
            # Now and not when it is stored: who subscribes from here on has missed the live message.
            self._retained.keep(route.instance_id, route.topic, payload, qos, retained_by, receipt)
            self._pressure.written(source)
        if receipt is not None:
            if source.wants_receipts:
                source.sent(sequence, receipt.waiting - 1, is_kept=route.is_kept)
            receipt.settle()

    def deliver_qos0_run(self, source: Source, route: Route, run: Run) -> None:
        """Send messages of QoS 0 to the edges of their route; each to one member of every shared subscription."""
        for leg in route.legs:
            edge = self._edges[leg.slot]
            assert edge is not None  # noqa: S101 - for the type checker, as above
            edge.deliver_run(leg, run, 0, None)
            self._measure(source, edge)
        if route.shares:
            for payload in run.payloads():
                self._shares.deliver(source, route, payload, 0, None)

    def deliver_run(
        self,
        source: Source,
        publisher: Publisher,
        route: Route,
        run: Run,
        sequence: int,
        log_sequence: int = 0,
        in_kept: bool = False,  # noqa: FBT001, FBT002 - hot path
        is_delivered: bool = False,  # noqa: FBT001, FBT002 - hot path
    ) -> None:
        """Send messages of QoS 1 as `deliver` does; to shards and shared subscriptions one by one.

        Args:
            source: of the messages.
            publisher: is told the sequence when all ways of all messages are confirmed.
            route: as there.
            run: the messages.
            sequence: of the first one in the incarnation of its source.
            log_sequence: of the first one in its log, where the others follow; 0: as there.
            in_kept: as there.
            is_delivered: as there.
        """
        legs = route.legs
        if log_sequence or not route.shard_legs:
            legs = route.acknowledged_legs
        legs = self._others(legs, source, is_delivered=is_delivered)
        receipt = Receipt(publisher, sequence, len(legs) + 1)
        for leg in legs:
            edge = self._edges[leg.slot]
            assert edge is not None  # noqa: S101 - for the type checker, as above
            edge.deliver_run(leg, run, 1, receipt)
            self._measure(source, edge)
        if not route.is_plain:
            payloads = run.payloads()
            log = self._kept.log(route.instance_id) if in_kept else route.log
            self._deliver_run_to_shards(source, route, payloads, receipt, log, log_sequence)
            if route.shares:
                for payload in payloads:
                    self._shares.deliver(source, route, payload, 1, receipt)
        receipt.settle()

    def _others(self, legs: Sequence[Leg], source: Source, *, is_delivered: bool) -> Sequence[Leg]:
        return [leg for leg in legs if self._edges[leg.slot] is not source] if is_delivered else legs

    def is_delivered_to_all(self, source: Source, route: Route) -> bool:
        """Say whether nobody is left to get a message of QoS 1 that its edge has delivered to its own subscribers."""
        legs = route.acknowledged_legs
        return route.is_plain and (not legs or (len(legs) == 1 and self._edges[legs[0].slot] is source))

    def _measure(self, source: Source, edge: EdgeLink) -> None:
        if edge.qos0_bytes > FLOOD_BYTES:
            self._flooding.slow(source, edge)
        if edge.pending_bytes > self._high_bytes:
            self._pressure.hold_for_edge(source, edge)

    def _deliver_to_shards(
        self, source: Source, route: Route, payload: bytes, qos: int, receipt: Receipt, log: str, log_sequence: int
    ) -> None:
        flags = qos | KEPT_P2P if route.is_kept else qos
        for leg in route.shard_legs:
            shard = self._edges[leg.slot]
            assert shard is not None  # noqa: S101 - for the type checker, as with edges
            if shard.stream is None:
                continue  # it reads the message from the log when it is back
            receipt.waiting += 1
            shard.deliver_kept(leg, payload, flags, source.incarnation, receipt.sequence, receipt, log, log_sequence)
            if source.wants_receipts:
                shard.want_receipt(receipt.sequence)
            if shard.pending_bytes > self._high_bytes:
                self._pressure.hold_for_edge(source, shard)

    def _deliver_run_to_shards(
        self, source: Source, route: Route, payloads: list[bytes], receipt: Receipt, log: str, log_sequence: int
    ) -> None:
        for leg in route.shard_legs:
            shard = self._edges[leg.slot]
            assert shard is not None  # noqa: S101 - for the type checker, as with edges
            if shard.stream is None:
                continue  # as above
            receipt.waiting += 1
            shard.deliver_each(leg, payloads, 1 | KEPT_P2P if route.is_kept else 1, receipt, log, log_sequence)
            if shard.pending_bytes > self._high_bytes:
                self._pressure.hold_for_edge(source, shard)
