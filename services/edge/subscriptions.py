"""The subscriptions of one connection: what is granted, and known to the routers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence

from services.common.topics import split_share
from services.edge.hub import Hub
from services.edge.mqtt.inflight import SessionState
from services.edge.mqtt.packets import SUBACK_FAILURE, Subscribe, Unsubscribe
from services.edge.policy import Permissions
from services.edge.shared import GONE, Shares, SharingClient

logger = logging.getLogger(__name__)


class Subscriptions:
    """Topic filters with their granted QoS. Owned by its connection."""

    __slots__ = ("_filters", "_hub", "_receiver", "_shares")

    def __init__(self, hub: Hub, receiver: SharingClient) -> None:
        self._hub = hub
        self._receiver = receiver
        self._filters: dict[str, int] = {}
        self._shares: Shares | None = None

    @property
    def granted(self) -> Mapping[str, int]:
        """Topic filters as the client sent them, with their granted QoS."""
        return self._filters

    def add(self, packet: Subscribe, grant: Permissions, done: Callable[[list[int]], None]) -> str | None:
        """Take a SUBSCRIBE packet; `done` is called with the codes of SUBACK once the routers know the filters.

        Returns:
            A topic filter for which the connection must be closed; None: there is none.
        """
        codes = []
        added = []
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
                self._subscribe(topic_filter, qos)
                self._send_retained(topic_filter, qos)
                codes.append(qos)
                added.append((topic_filter, qos))
        self._put_in_force(added, functools.partial(done, codes))
        return None

    def remove(self, packet: Unsubscribe, done: Callable[[], None]) -> None:
        """Take an UNSUBSCRIBE packet; `done` is called when UNSUBACK is due. A filter that is not there is no fault."""
        for topic_filter in packet.filters:
            if self._filters.pop(topic_filter, None) is not None:
                self._unsubscribe(topic_filter)
        done()

    def rejudge(self, grant: Permissions) -> None:
        """Drop what is not allowed any more; MQTT 3.1.1 has no packet that would tell the client."""
        denied = [topic_filter for topic_filter in self._filters if not grant.may_subscribe(topic_filter)]
        for topic_filter in denied:
            del self._filters[topic_filter]
            self._unsubscribe(topic_filter)
        self._on_denied(denied)

    def unanswered(self, _sent: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return topic filter and QoS of the retained messages that the next connection is to ask for; after `clear`.

        Args:
            _sent: those that were sent and not acknowledged.
        """
        return []

    def clear(self, session: SessionState) -> None:
        """Drop everything: the connection ends; what `session` holds of shared subscriptions is returned. Last call."""
        for topic_filter in self._filters:
            self._unsubscribe(topic_filter)
        if self._shares is not None:
            self._shares.give_back(session)
        self._filters.clear()
        self._shares = None
        self._receiver = GONE

    def _on_denied(self, denied: Sequence[str]) -> None:
        if denied:
            logger.info("subscriptions denied", extra={"client_id": self._receiver.client_id, "filters": denied})

    def _subscribe(self, topic_filter: str, qos: int) -> None:
        share_name, shared_filter = split_share(topic_filter)
        if not share_name:
            self._subscribe_own(topic_filter, qos)
            return
        if self._shares is None:
            self._shares = Shares(self._receiver, self._hub)
        self._shares.subscribe(share_name, shared_filter, qos)

    def _unsubscribe(self, topic_filter: str) -> None:
        share_name, shared_filter = split_share(topic_filter)
        if share_name and self._shares is not None:
            self._shares.unsubscribe(share_name, shared_filter)
        else:
            self._unsubscribe_own(topic_filter)

    def _subscribe_own(self, topic_filter: str, qos: int) -> None:
        self._hub.subscribe(self._receiver, topic_filter, qos)

    def _unsubscribe_own(self, topic_filter: str) -> None:
        self._hub.unsubscribe(self._receiver, topic_filter)

    def _send_retained(self, topic_filter: str, qos: int) -> None:
        if not split_share(topic_filter)[0]:  # MQTT 5.0 section 4.8.2: shared ones get none
            self._hub.send_retained(self._receiver, topic_filter, qos)

    def _put_in_force(self, _added: Sequence[tuple[str, int]], done: Callable[[], None]) -> None:
        self._hub.router.notify(done)
