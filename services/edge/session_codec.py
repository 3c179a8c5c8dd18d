"""Between the messages of `weimq.session.v1` and what the edge works with."""

from __future__ import annotations

from collections.abc import Mapping

from services.edge.hub import Receiver
from services.edge.mqtt.inflight import Identifiers
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.policy import Instance
from services.edge.ports import StoredSession
from weimq.session.v1 import session_pb2

QOS = 3
"""Bits of `Deliveries.flags`."""

NO_SESSION = StoredSession(is_present=False)
"""Of a client that has none."""

_WAITS_FOR_FIRST_ANSWER = 0
_WAITS_FOR_PUBCOMP = 1
"""`InflightState.stages`."""


def rules(instance: Instance) -> session_pb2.SessionRules:
    """Return how persistent sessions of an instance are kept."""
    return session_pb2.SessionRules(
        keeps_qos2=instance.is_standard,
        strict_order=instance.strict_order,
        batch_messages=instance.offline_batch_messages,
        batch_interval_ms=instance.offline_batch_interval_ms,
        acknowledgement_timeout_ms=instance.acknowledgement_timeout_ms,
        offline_retention_ms=instance.offline_retention_ms,
        max_offline_messages=instance.max_offline_messages,
        session_expiry_ms=instance.session_expiry_ms,
    )


def stored_session(decision: session_pb2.Decision) -> StoredSession:
    """Return what a decision that lets a client in says about its session."""
    stored = decision.subscriptions
    return StoredSession(
        is_present=decision.session_present,
        # To go through an empty field costs an exception within, more than all the rest.
        subscriptions=[(one.topic_filter, one.qos) for one in stored] if stored else (),
        identifiers=identifiers(decision.inflight) if decision.HasField("inflight") else None,
    )


def identifiers(state: session_pb2.InflightState) -> Identifiers:
    """Return packet identifiers with delivery ids as tokens."""
    sent: tuple[list[tuple[int, object]], list[tuple[int, object]]] = ([], [])
    for delivery_id, packet_identifier, stage in zip(
        state.delivery_ids, state.packet_identifiers, state.stages, strict=True
    ):
        sent[stage].append((packet_identifier, delivery_id))
    return Identifiers(
        sent[_WAITS_FOR_FIRST_ANSWER],
        sent[_WAITS_FOR_PUBCOMP],
        list(state.received_packet_identifiers),
        [(each.topic_filter, each.qos) for each in state.retained],
    )


def inflight_state(used: Identifiers) -> session_pb2.InflightState:
    """Return the inverse of `identifiers`."""
    sent = [*used.unacknowledged, *used.released]
    return session_pb2.InflightState(
        delivery_ids=[token for _, token in sent if isinstance(token, int)],
        packet_identifiers=[packet_identifier for packet_identifier, _ in sent],
        stages=bytes(len(used.unacknowledged)) + bytes((_WAITS_FOR_PUBCOMP,)) * len(used.released),
        received_packet_identifiers=used.received,
        retained=[session_pb2.Subscription(topic_filter=name, qos=qos) for name, qos in used.retained],
    )


def hand_over(deliveries: session_pb2.Deliveries, by_channel: Mapping[str, Receiver]) -> None:
    """Give deliveries to their connections; those that are gone are left out: their closing is on its way."""
    topics = [topic.encode() for topic in deliveries.topics]
    messages = [
        OutboundMessage(topics[topic], payload, retain=False)
        for topic, payload in zip(deliveries.topic_indexes, deliveries.payloads, strict=True)
    ]
    receivers = [by_channel.get(channel_id) for channel_id in deliveries.channel_ids]
    for message, channel, delivery_id, flags, packet_identifier in zip(
        deliveries.message_indexes,
        deliveries.channel_indexes,
        deliveries.delivery_ids,
        deliveries.flags,
        deliveries.packet_identifiers,
        strict=True,
    ):
        receiver = receivers[channel]
        if receiver is not None:
            receiver.deliver_kept(messages[message], flags & QOS, delivery_id, packet_identifier)
