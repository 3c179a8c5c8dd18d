"""Packet identifiers that a connection had in use whose edge was killed and could not tell. Pure."""

from __future__ import annotations

from services.session.domain.sessions import UNKEPT, WAITS_ACKNOWLEDGEMENT, WAITS_COMPLETION, Carried, Channel

MAX_IDENTIFIER = 65_535


def presumed_identifiers(channel: Channel) -> Carried | None:
    """Return what a connection is presumed to leave for the next one; call it before the connection is taken away.

    An edge gives a message the identifier that follows from its delivery id unless that is in use, in which case it is
    left out here: the message is then sent like a new one, and goes by the same rule. Under its identifier the client
    takes it for a repeat if it has it, and no other message is [MQTT-4.4.0-1]. What its edge had received is unknown.
    """
    told = channel.carried.deliveries if channel.carried is not None else ()
    known = {delivery_id: packet_identifier for delivery_id, packet_identifier, _ in told}
    completing = {delivery_id for delivery_id, _, stage in told if stage == WAITS_COMPLETION}
    by_identifier: dict[int, tuple[int, int, int]] = {}
    for delivery_id in (*channel.packet_identifiers, *channel.inflight):
        packet_identifier = known.get(delivery_id) or delivery_id % MAX_IDENTIFIER + 1
        stage = WAITS_COMPLETION if delivery_id in completing else WAITS_ACKNOWLEDGEMENT
        by_identifier.setdefault(packet_identifier, (delivery_id, packet_identifier, stage))
    for delivery_id, packet_identifier, stage in told:
        if delivery_id == UNKEPT:  # to release one that was released does no harm
            by_identifier.setdefault(packet_identifier, (delivery_id, packet_identifier, stage))
    return Carried(list(by_identifier.values()), []) or None
