"""Topics whose messages this edge may deliver by itself: what is known of each. Hot path.

`services.edge.short_way` and `services.edge.local_delivery` say when it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from services.common.topics import matches
from services.edge.hub import Hub, Receiver
from services.edge.mqtt.outbound import Heads, OutboundMessage
from services.edge.mqtt.packets import Publish
from services.edge.policy import TopicRule
from services.edge.ports import Client

LONG: Final = 0
ASKED: Final = 1
LOCAL: Final = 2
DRAINING: Final = 3
"""States of a route; what they mean differs, see the modules above."""

FIRST_ASK: Final = 8
"""Messages of a topic after which the router is asked for it: a topic that is seldom used is not worth it."""
LAST_ASK: Final = 1024
"""The number grows with every no, up to this."""
GROWTH: Final = 8
MAX_ROUTES = 4096
"""Topics that are remembered; beyond, all that are not busy are forgotten and found anew."""
MAX_CHARACTERS = 512
"""Longest topic that is remembered, so that hostile topics can't fill the memory."""
OVERHEAD_BYTES: Final = 64
"""What a message costs besides its payload, while it is held."""

DELIVERED: Final = 64
"""Bit of `PublishBatch.flags`: the message has been delivered here."""


class Held:
    """A message that waits for its route."""

    __slots__ = ("clean_session", "client", "publication", "rule", "size")

    def __init__(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> None:  # noqa: FBT001 - as the port has it
        self.client = client
        self.rule = rule
        self.publication = publication
        self.clean_session = clean_session
        self.size = len(publication.payload) + OVERHEAD_BYTES


class LocalRoute:
    """What is known about one topic."""

    __slots__ = (
        "added_ids",
        "ask_at",
        "count",
        "heads",
        "held",
        "instance_id",
        "is_forgotten",
        "is_logged",
        "is_stale",
        "is_stuck",
        "last_qos0",
        "receivers",
        "state",
        "target_ids",
        "topic",
        "topic_bytes",
        "under_way",
        "version",
    )

    def __init__(self, instance_id: str, topic: str, *, is_logged: bool) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.is_logged = is_logged
        self.topic_bytes = topic.encode()
        self.heads = Heads(self.topic_bytes)
        self.state: int = LONG
        self.is_stale = False
        """Whether the answer that is to come is a no whatever it says."""
        self.is_stuck = False
        """Whether what is under way was waited for in vain, and nothing was acknowledged since."""
        self.is_forgotten = False
        """Whether a rule that still knows it must look again."""
        self.count = 0
        self.ask_at: int = FIRST_ASK
        self.held: list[Held] = []
        self.under_way = 0
        """Messages of QoS 1 and 2 that the router is to deliver here and has not acknowledged; with a log only."""
        self.last_qos0 = 0
        """Batch of the messages of QoS 0 that were sent last; see `lanes`."""
        self.target_ids: list[int] = []
        self.added_ids: list[int] = []
        """Targets that were added since the question."""
        self.receivers: list[tuple[Receiver, int]] = []
        self.version = -1
        """Of the hub, when `receivers` were found."""

    @property
    def is_busy(self) -> bool:
        """Whether messages are under way whose order depends on it."""
        return self.state in (ASKED, DRAINING) or self.under_way > 0

    def ask(self) -> None:
        """Begin to wait for an answer."""
        self.state = ASKED
        self.is_stale = False
        self.added_ids = []

    def deny(self) -> None:
        """Go the long way, and do not ask again too soon."""
        self.state = LONG
        self.count = 0
        self.ask_at = min(self.ask_at * GROWTH, LAST_ASK)
        self.target_ids = []
        self.receivers = []

    def take_held(self) -> list[Held]:
        """Return and forget the messages that wait."""
        held, self.held = self.held, []
        return held

    def receivers_in(self, hub: Hub) -> list[tuple[Receiver, int]]:
        """Return who gets its messages, with the QoS that was granted."""
        if self.version != hub.version:
            self.version = hub.version
            self.receivers = hub.route(self.target_ids, self.topic) if self.target_ids else []
        return self.receivers

    def forget_receivers(self) -> None:
        """Find them anew when they are needed."""
        self.version = -1
        self.receivers = []

    def deliver(self, hub: Hub, publication: Publish) -> None:
        """Give a message to them."""
        receivers = self.receivers_in(hub)
        if receivers:
            qos = publication.qos
            message = OutboundMessage(self.topic_bytes, publication.payload, False, self.heads)  # noqa: FBT003 - retain [MQTT-3.3.1-9]
            for receiver, granted in receivers:
                receiver.deliver(message, qos if qos < granted else granted)


class Routes:
    """Topics that are remembered.

    Args:
        hub: knows the receivers.
        is_logged: whether they are those with a log.
    """

    def __init__(self, hub: Hub, *, is_logged: bool) -> None:
        hub.on_changed.append(self._let_go)
        self._is_logged = is_logged
        self._routes: dict[tuple[str, str], LocalRoute] = {}
        self._limit = 0
        self._last_qos0 = 0  # of those that were forgotten

    def of(self, rule: TopicRule) -> LocalRoute | None:
        """Return the route of a topic, and let its rule know it; None: the topic is too long."""
        if len(rule.topic) > MAX_CHARACTERS:
            return None
        key = (rule.instance_id, rule.topic)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= MAX_ROUTES and len(self._routes) >= self._limit:
                self._forget()
            route = self._routes[key] = LocalRoute(rule.instance_id, rule.topic, is_logged=self._is_logged)
            route.last_qos0 = self._last_qos0
        rule.route = route
        return route

    def get(self, instance_id: str, topic: str) -> LocalRoute | None:
        """Return the route of a topic; None: it is not remembered."""
        return self._routes.get((instance_id, topic))

    def all(self) -> list[LocalRoute]:
        """Return all of them."""
        return list(self._routes.values())

    def selected(self, instance_id: str, topic_filter: str) -> list[LocalRoute]:
        """Return those that a topic filter selects, and that do not simply go the long way."""
        if "+" not in topic_filter and "#" not in topic_filter:
            route = self._routes.get((instance_id, topic_filter))
            return [route] if route is not None and route.state != LONG else []
        return [
            route
            for route in self._routes.values()
            if route.state != LONG and route.instance_id == instance_id and matches(topic_filter, route.topic)
        ]

    def _let_go(self) -> None:
        """Find receivers anew when they are needed: some are gone, and hold what they were to be sent."""
        for route in self._routes.values():
            route.forget_receivers()

    def _forget(self) -> None:
        busy = {key: route for key, route in self._routes.items() if route.is_busy}
        for route in self._routes.values():
            route.is_forgotten = not route.is_busy
            route.forget_receivers()
            self._last_qos0 = max(self._last_qos0, route.last_qos0)
        self._routes = busy
        # Those are as many as messages under way at the most, which are bounded.
        self._limit = 2 * len(busy)


Send = Callable[[Client, TopicRule, Publish, bool, int], None]
"""Takes a message the long way, with the flags besides those that it has from its packet."""
