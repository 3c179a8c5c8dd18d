"""Deliveries of a router on their way to the connections, in columns: see `DeliveryBatch`. Hot path."""

from __future__ import annotations

from collections.abc import Callable

from services.common.link import LinkBrokenError
from services.edge.columns import QOS, RETAIN, RUN
from services.edge.hub import Hub, Receiver
from services.edge.mqtt.outbound import Heads, OutboundMessage
from services.edge.mqtt.packets import PublishRun
from services.edge.receipts import Outcome
from weimq.router.v1 import router_pb2

WANTS_RECEIPT = 16
"""Bit of `DeliveryBatch.flags`."""


class Arrivals:
    """Hands what a router delivers to those whom its targets stand for.

    Args:
        hub: knows the targets.
        report: takes what became of a message that wants a receipt.
    """

    def __init__(self, hub: Hub, report: Callable[[int, Outcome], None]) -> None:
        self._hub = hub
        self._report = report

    def deliver(self, batch: router_pb2.DeliveryBatch) -> None:
        """Hand the messages of a batch over.

        Raises:
            LinkBrokenError: its columns do not fit together.
        """
        try:
            self._deliver(batch)
        except (IndexError, StopIteration, ValueError) as error:  # `zip` and `next`; connections raise nothing
            raise LinkBrokenError(f"the columns of a batch do not fit together: {error}") from error

    def _deliver(self, batch: router_pb2.DeliveryBatch) -> None:
        hub = self._hub
        names = list(batch.topics)
        topics = [topic.encode() for topic in names]
        heads = [Heads(topic) for topic in topics]
        target_ids = list(batch.target_ids)
        routes = []
        start = 0
        for topic_name, count in zip(names, batch.target_counts, strict=True):
            routes.append(hub.route(target_ids[start : start + count], topic_name))
            start += count
        exactly_once = 0
        receipt_ids = iter(batch.receipt_ids)
        run_counts = iter(batch.run_counts)
        run_payload_bytes = iter(batch.run_payload_bytes)
        for topic, payload, flags in zip(batch.topic_indexes, batch.payloads, batch.flags, strict=True):
            route = routes[topic]
            if flags & RUN:
                run = PublishRun(names[topic], payload, next(run_counts), next(run_payload_bytes))
                _check(run, flags & QOS, heads[topic])
                for receiver, granted in route:
                    receiver.deliver_run(run, granted)
                continue
            qos = flags & QOS
            if qos == 2:  # noqa: PLR2004 - QoS 2
                origin = batch.origins[batch.origin_indexes[exactly_once]]
                sequence = batch.sequences[exactly_once]
                exactly_once += 1
                if hub.is_repeated(origin, sequence):
                    if flags & WANTS_RECEIPT:
                        next(receipt_ids)
                    continue
            if not route:
                if flags & WANTS_RECEIPT:
                    self._report(next(receipt_ids), router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT)
                continue
            message = OutboundMessage(topics[topic], payload, bool(flags & RETAIN), heads[topic])
            if flags & WANTS_RECEIPT:
                self._deliver_watched(message, qos, route, next(receipt_ids))
                continue
            for receiver, granted in route:
                receiver.deliver(message, qos if qos < granted else granted)

    def _deliver_watched(
        self, message: OutboundMessage, qos: int, route: list[tuple[Receiver, int]], receipt_id: int
    ) -> None:
        receiver, granted = route[0]  # P2P: the target of one connection
        receipt = self._hub.receipts.open(receiver, receipt_id, self._report)
        receiver.deliver_watched(message, qos if qos < granted else granted, receipt)


def _check(run: PublishRun, qos: int, heads: Heads) -> None:
    if qos > 1:
        raise LinkBrokenError("a run of QoS 2")
    head = heads.get(qos, run.payload_bytes)
    step = len(head) + 2 * qos + run.payload_bytes  # with the packet identifier at QoS 1
    if not run.frames.startswith(head) or len(run.frames) != run.count * step:
        raise LinkBrokenError("a run does not hold the packets that it should")
