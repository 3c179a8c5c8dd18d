"""Deliveries on their way into a frame, see `DeliveryBatch`. Hot path."""

from __future__ import annotations

from services.router.domain.outbox import Batch
from weimq.router.v1 import router_pb2


def fill(deliveries: router_pb2.DeliveryBatch, batch: Batch) -> None:
    """Fill the protobuf message with the columns of a batch."""
    deliveries.topics.extend(batch.topics)
    deliveries.target_counts.extend(batch.target_counts)
    deliveries.target_ids.extend(batch.target_ids)
    deliveries.topic_indexes.extend(batch.topic_indexes)
    deliveries.payloads.extend(batch.payloads)
    deliveries.flags = bytes(batch.flags)
    if batch.sequences:
        deliveries.origins.extend(batch.origins)
        deliveries.origin_indexes.extend(batch.origin_indexes)
        deliveries.sequences.extend(batch.sequences)
    if batch.runs:
        deliveries.run_counts.extend([run.count for run in batch.runs])
        deliveries.run_payload_bytes.extend([run.payload_bytes for run in batch.runs])
    if batch.receipt_ids:
        deliveries.receipt_ids.extend(batch.receipt_ids)
    if batch.log_sequences:
        deliveries.logs.extend(batch.logs)
        deliveries.log_indexes.extend(batch.log_indexes)
        deliveries.log_sequences.extend(batch.log_sequences)
