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

from services.edge.hub import Hub
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import TopicRule
from services.edge.ports import Client
from services.edge.routes import ASKED, FIRST_ASK, LOCAL, LONG, Held, LocalRoute, Routes, Send
from weimq.router.v1 import router_pb2


class ShortWay:
    """Routes of the topics of one router that have no log. Owned by one event loop.

    Args:
        hub: knows the receivers.
        ask: sends the question for a topic, after all that was published before.
        send: takes a message the long way.
    """

    def __init__(self, hub: Hub, ask: Callable[[LocalRoute], None], send: Send) -> None:
        self._hub = hub
        self._ask = ask
        self._send = send
        self._routes = Routes(hub, is_logged=False)
        self.held_bytes = 0
        """Size of the messages that wait for an answer."""
        self.delivered = 0
        """Messages that took the short way."""

    def take(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> bool:  # noqa: FBT001 - hot path
        """Take a message of a topic without a log over; False: it is to go the long way."""
        route = rule.route
        if route is None or route.is_forgotten:
            route = self._routes.of(rule)
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
            self.held_bytes += route.held[-1].size
            return True
        route.count += 1
        if route.count >= route.ask_at:
            route.ask()  # behind this message
            self._send(client, rule, publication, clean_session, 0)
            self._ask(route)
            return True
        return False

    def take_run(self, client: Client, rule: TopicRule, run: PublishRun, clean_session: bool) -> bool:  # noqa: FBT001 - hot path
        """Take messages of a topic without a log over; False: they are to go the long way, and be told to `sent`."""
        route = rule.route
        if route is None or route.is_forgotten:
            route = self._routes.of(rule)
            if route is None:
                return False
        if route.state == LOCAL:
            self.delivered += run.count
            for receiver, granted in route.receivers_in(self._hub):
                receiver.deliver_run(run, granted)
            if run.qos:
                client.on_run_published(run)
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
                route.ask()
                self._ask(route)

    def answer(self, answer: router_pb2.RouteAnswer) -> None:
        """Take the answer to a question: the messages that were held go one way or the other."""
        route = self._routes.get(answer.instance_id, answer.topic)
        if route is None or route.state != ASKED:
            return
        held = route.take_held()
        is_local = answer.is_local and not route.is_stale
        for each in held:
            self.held_bytes -= each.size
            is_local = is_local and not each.publication.retain
        if is_local:
            route.state = LOCAL
            route.target_ids = list(answer.target_ids)
            route.version = -1
            for each in held:
                self._deliver(route, each.client, each.publication)
        else:
            route.deny()
            for each in held:
                self._send(each.client, each.rule, each.publication, each.clean_session, 0)

    def revoke(self, instance_id: str, topic: str) -> None:
        """Note that a topic has a subscriber elsewhere."""
        route = self._routes.get(instance_id, topic)
        if route is not None:
            self._turn_long(route)

    def on_target(self, instance_id: str, topic_filter: str) -> None:
        """Note that this edge adds a target: the router must tell anew who is to get what it selects."""
        for route in self._routes.selected(instance_id, topic_filter):
            self._turn_long(route)
            route.ask_at = FIRST_ASK

    def on_broken(self) -> None:
        """Take the long way: nobody could tell us of a subscriber elsewhere."""
        for route in self._routes.all():
            if route.state == LOCAL:
                self._turn_long(route)

    def start_anew(self) -> None:
        """Give what is held the long way: the router that was asked has forgotten us."""
        self.on_broken()
        for route in self._routes.all():
            if route.state == ASKED:
                route.state = LONG
                route.count = 0
                for each in route.take_held():
                    self.held_bytes -= each.size
                    self._send(each.client, each.rule, each.publication, each.clean_session, 0)

    def _turn_long(self, route: LocalRoute) -> None:
        if route.state == ASKED:
            route.is_stale = True
        elif route.state == LOCAL:
            route.deny()

    def _deliver(self, route: LocalRoute, client: Client, publication: Publish) -> None:
        self.delivered += 1
        route.deliver(self._hub, publication)
        if publication.qos and publication.packet_identifier:  # a will has none
            client.on_published(publication.packet_identifier, publication.qos)
