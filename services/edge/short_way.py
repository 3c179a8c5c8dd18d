"""The short way of a message: from publisher to subscribers of the same edge, without the router.

For topics without a log whose every subscriber is here. The router says so, once it is asked for a topic that is
published to often, and takes it back before a subscriber elsewhere gets its SUBACK: see `services.router.short_way`.
A route is

    LONG    messages go to the router; the next state is ASKED after some of them
    ASKED   messages are held back until the answer, which comes after the deliveries of those before: none overtakes
    LOCAL   messages are delivered here and are answered at once

and LONG again when it is revoked, when the stream with the router breaks, when this edge adds a target that selects
the topic, and for a message with the retain flag, since the router keeps those. What changes while it is ASKED makes
the answer a no. Hot path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from services.common.topics import matches
from services.edge.hub import Hub, Receiver
from services.edge.mqtt.outbound import Heads, OutboundMessage
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import TopicRule
from services.edge.ports import Client
from weimq.router.v1 import router_pb2

LONG: Final = 0
ASKED: Final = 1
LOCAL: Final = 2

FIRST_ASK: Final = 8
"""Messages of a topic after which the router is asked for it: a topic that is seldom used is not worth it."""
LAST_ASK: Final = 1024
"""The number grows with every no, up to this."""
GROWTH: Final = 8
MAX_ROUTES = 4096
"""Topics that are remembered; beyond, all that are not ASKED are forgotten and found anew."""
MAX_CHARACTERS = 512
"""Longest topic that is remembered, so that hostile topics can't fill the memory."""
OVERHEAD_BYTES: Final = 64


class Held:
    """A message that waits for the answer."""

    __slots__ = ("clean_session", "client", "publication", "rule")

    def __init__(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> None:  # noqa: FBT001 - as the port has it
        self.client = client
        self.rule = rule
        self.publication = publication
        self.clean_session = clean_session


class LocalRoute:
    """What is known about one topic."""

    __slots__ = (
        "ask_at",
        "count",
        "heads",
        "held",
        "instance_id",
        "is_forgotten",
        "is_stale",
        "receivers",
        "state",
        "target_ids",
        "topic",
        "topic_bytes",
        "version",
    )

    def __init__(self, instance_id: str, topic: str) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.topic_bytes = topic.encode()
        self.heads = Heads(self.topic_bytes)
        self.state: int = LONG
        self.is_stale = False
        """Whether the answer that is to come is a no whatever it says."""
        self.is_forgotten = False
        """Whether a rule that still knows it must look again."""
        self.count = 0
        self.ask_at: int = FIRST_ASK
        self.held: list[Held] = []
        self.target_ids: list[int] = []
        self.receivers: list[tuple[Receiver, int]] = []
        self.version = -1
        """Of the hub, when `receivers` were found."""


class ShortWay:
    """Routes of the topics of one router. Owned by one event loop.

    Args:
        hub: knows the receivers.
        ask: sends the question for a topic, after all that was published before.
        publish: takes a message the long way.
    """

    def __init__(
        self,
        hub: Hub,
        ask: Callable[[LocalRoute], None],
        publish: Callable[[Client, TopicRule, Publish, bool], None],
    ) -> None:
        self._hub = hub
        self._ask = ask
        self._publish = publish
        self._routes: dict[tuple[str, str], LocalRoute] = {}
        self.held_bytes = 0
        """Size of the messages that wait for an answer."""
        self.delivered = 0
        """Messages that took the short way."""

    def take(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> bool:  # noqa: FBT001 - hot path
        """Take a message of a topic without a log over; False: it is to go the long way."""
        route = rule.route
        if route is None or route.is_forgotten:
            route = self._route(rule)
            if route is None:
                return False
        if route.state == LOCAL:
            if publication.retain:
                self._turn_long(route)
                return False
            self._deliver(route, client, publication)
            return True
        if route.state == ASKED:
            route.held.append(Held(client, rule, publication, clean_session))
            self.held_bytes += len(publication.payload) + OVERHEAD_BYTES
            return True
        route.count += 1
        if route.count >= route.ask_at:
            route.state = ASKED  # behind this message
            route.is_stale = False
            self._publish(client, rule, publication, clean_session)
            self._ask(route)
            return True
        return False

    def take_run(self, client: Client, rule: TopicRule, run: PublishRun, clean_session: bool) -> bool:  # noqa: FBT001 - hot path
        """Take messages of a topic without a log over; False: they are to go the long way, and `sent` follows."""
        route = rule.route
        if route is None or route.is_forgotten:
            route = self._route(rule)
            if route is None:
                return False
        if route.state == LOCAL:
            self.delivered += run.count
            for receiver, _ in self._receivers(route):
                receiver.deliver_run(run)
            return True
        if route.state == ASKED:
            for publication in run.publications():
                self.take(client, rule, publication, clean_session)
            return True
        return False

    def sent(self, rule: TopicRule, count: int) -> None:
        """Note that so many messages went the long way after `take_run`."""
        route = rule.route
        if route is not None and not route.is_forgotten and route.state == LONG:
            route.count += count
            if route.count >= route.ask_at:
                route.state = ASKED
                route.is_stale = False
                self._ask(route)

    def answer(self, answer: router_pb2.RouteAnswer) -> None:
        """Take the answer to a question: the messages that were held go one way or the other."""
        route = self._routes.get((answer.instance_id, answer.topic))
        if route is None or route.state != ASKED:
            return
        held = route.held
        route.held = []
        is_local = answer.is_local and not route.is_stale
        for each in held:
            self.held_bytes -= len(each.publication.payload) + OVERHEAD_BYTES
            is_local = is_local and not each.publication.retain
        if is_local:
            route.state = LOCAL
            route.target_ids = list(answer.target_ids)
            route.version = -1
            for each in held:
                self._deliver(route, each.client, each.publication)
        else:
            self._deny(route)
            for each in held:
                self._publish(each.client, each.rule, each.publication, each.clean_session)

    def revoke(self, instance_id: str, topic: str) -> None:
        """Note that a topic has a subscriber elsewhere."""
        route = self._routes.get((instance_id, topic))
        if route is not None:
            self._turn_long(route)

    def on_target(self, instance_id: str, topic_filter: str) -> None:
        """Note that this edge adds a target: the router must tell anew who is to get what it selects."""
        for route in self._routes.values():
            if route.state != LONG and route.instance_id == instance_id and matches(topic_filter, route.topic):
                self._turn_long(route)
                route.ask_at = FIRST_ASK

    def on_broken(self) -> None:
        """Take the long way: nobody could tell us of a subscriber elsewhere."""
        for route in self._routes.values():
            if route.state == LOCAL:
                self._turn_long(route)

    def start_anew(self) -> None:
        """Give what is held the long way: the router that was asked has forgotten us."""
        routes = list(self._routes.values())
        self.on_broken()
        for route in routes:
            if route.state == ASKED:
                route.state = LONG
                route.count = 0
                held = route.held
                route.held = []
                for each in held:
                    self.held_bytes -= len(each.publication.payload) + OVERHEAD_BYTES
                    self._publish(each.client, each.rule, each.publication, each.clean_session)

    def _route(self, rule: TopicRule) -> LocalRoute | None:
        if len(rule.topic) > MAX_CHARACTERS:
            return None
        key = (rule.instance_id, rule.topic)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                asked = {each: known for each, known in self._routes.items() if known.state == ASKED}
                if len(asked) >= MAX_ROUTES:
                    return None
                for known in self._routes.values():
                    known.is_forgotten = known.state != ASKED
                self._routes = asked
            route = self._routes[key] = LocalRoute(rule.instance_id, rule.topic)
        rule.route = route
        return route

    def _turn_long(self, route: LocalRoute) -> None:
        if route.state == ASKED:
            route.is_stale = True
        elif route.state == LOCAL:
            self._deny(route)

    def _deny(self, route: LocalRoute) -> None:
        route.state = LONG
        route.count = 0
        route.ask_at = min(route.ask_at * GROWTH, LAST_ASK)
        route.target_ids = []
        route.receivers = []

    def _deliver(self, route: LocalRoute, client: Client, publication: Publish) -> None:
        receivers = self._receivers(route)
        self.delivered += 1
        qos = publication.qos
        if receivers:
            message = OutboundMessage(route.topic_bytes, publication.payload, False, route.heads)  # noqa: FBT003 - retain [MQTT-3.3.1-9]
            for receiver, granted in receivers:
                receiver.deliver(message, qos if qos < granted else granted)
        if qos and publication.packet_identifier:  # a will has none
            client.on_published(publication.packet_identifier, qos)

    def _receivers(self, route: LocalRoute) -> list[tuple[Receiver, int]]:
        hub = self._hub
        if route.version != hub.version:
            route.version = hub.version
            route.receivers = hub.route(route.target_ids, route.topic) if route.target_ids else []
        return route.receivers
