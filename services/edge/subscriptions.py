"""The subscriptions of one connection: what is granted, and the SUBACKs that wait for the router."""

from __future__ import annotations

from collections.abc import Mapping

from services.edge.hub import Hub, Receiver
from services.edge.mqtt.packets import SUBACK_FAILURE, Subscribe, Unsubscribe
from services.edge.policy import Grant


class Subscriptions:
    """Topic filters with their granted QoS. Owned by its connection."""

    __slots__ = ("_filters", "_hub", "_receiver", "_subacks")

    def __init__(self, hub: Hub, receiver: Receiver) -> None:
        self._hub = hub
        self._receiver = receiver
        self._filters: dict[str, int] = {}
        self._subacks: dict[int, list[int]] = {}

    @property
    def granted(self) -> Mapping[str, int]:
        """Topic filters as the client sent them, with their granted QoS."""
        return self._filters

    def add(self, packet: Subscribe, grant: Grant) -> str | None:
        """Take a SUBSCRIBE packet; its SUBACK is due when the router knows the filters.

        Returns:
            A topic filter for which the connection must be closed; None: there is none.
        """
        codes = []
        limit = grant.instance.max_subscriptions
        for topic_filter, qos in packet.filters:
            if not grant.may_subscribe(topic_filter):
                if not grant.instance.refuse_filters:
                    return topic_filter
                codes.append(SUBACK_FAILURE)
            elif topic_filter not in self._filters and len(self._filters) >= limit:
                codes.append(SUBACK_FAILURE)
            else:
                self._filters[topic_filter] = qos
                self._hub.subscribe(self._receiver, topic_filter, qos)
                codes.append(qos)
        self._subacks[packet.packet_identifier] = codes
        self._hub.router.notify_subscribed(self._receiver, packet.packet_identifier)
        return None

    def remove(self, packet: Unsubscribe) -> None:
        """Take an UNSUBSCRIBE packet; a filter that is not there is no fault."""
        for topic_filter in packet.filters:
            if self._filters.pop(topic_filter, None) is not None:
                self._hub.unsubscribe(self._receiver, topic_filter)

    def take_suback(self, packet_identifier: int) -> list[int] | None:
        """Return the codes of a SUBACK that waits; None: it does not wait any more."""
        return self._subacks.pop(packet_identifier, None)

    def clear(self) -> None:
        """Drop everything: the connection ends."""
        for topic_filter in self._filters:
            self._hub.unsubscribe(self._receiver, topic_filter)
        self._filters.clear()
        self._subacks.clear()
