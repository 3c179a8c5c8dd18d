"""Messages of topics with a log: the edge gives them to its own subscribers at once, and the router to all others.

They must pass through the router before their PUBACK, but need not come back. The edge sends them with the flag
`DELIVERED`; the router logs them and skips the targets of this edge, except those of shared subscriptions. It is asked
once for a topic that is published to often, for the targets here that match. A route is

    LONG      messages go to the router, which delivers them here, too; the next state is ASKED after some of them
    ASKED     messages are held back until the answer; it comes behind the deliveries of QoS 0 that were sent before
    DRAINING  messages are held back until those of QoS 1 and 2 that were sent before are acknowledged, for `DRAIN_S`
    LOCAL     messages are delivered here, and sent with the flag

and LONG again for a message of QoS 2, which the router delivers exactly once, for one with the retain flag, which a new
subscriber must get from the router or live, and when a target of a persistent session is added, since its shard has
some of the messages. What changes while it is ASKED makes the answer a no. Nothing is overtaken when it ends: all that
was LOCAL has been handed to the connections. It goes on while the router is away. A log that takes nothing must not
hold up messages of QoS 0: DRAINING ends then, and the router is not asked before it acknowledges something. Hot path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from services.edge.hub import Hub
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import TopicRule
from services.edge.ports import Client, Interest
from services.edge.routes import ASKED, DELIVERED, DRAINING, LOCAL, LONG, Held, LocalRoute, Routes, Send
from weimq.router.v1 import router_pb2

TAKEN: Final = -1
"""Answer of `take`: the message is held back."""

DRAIN_S: Final = 1.0
"""How long messages are held back for those before them to be acknowledged."""


class LocalDelivery:
    """Routes of the topics of one router that have a log. Owned by one event loop.

    Args:
        hub: knows the receivers.
        ask: sends the question for a topic, after all that was published before.
        send: takes a message the long way.
    """

    def __init__(self, hub: Hub, ask: Callable[[LocalRoute], None], send: Send) -> None:
        self._hub = hub
        self._ask = ask
        self._send = send
        self._routes = Routes(hub, is_logged=True)
        self.held_bytes = 0
        """Size of the messages that are held back."""

    def take(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> int:  # noqa: FBT001 - hot path
        """Deliver a message if that may be done; return the flags with which it is to be sent now, or `TAKEN`."""
        route = rule.route
        if route is None or route.is_forgotten:
            route = self._routes.of(rule)
            if route is None:
                return 0
        needs_router = publication.retain or publication.qos == 2  # noqa: PLR2004 - QoS 2
        if route.state == LOCAL:
            if needs_router:
                route.deny()
                return 0
            route.deliver(self._hub, publication)
            return DELIVERED
        if route.state == LONG:
            route.count = 0 if needs_router else route.count + 1
            if route.count < route.ask_at or route.is_stuck:
                return 0
            route.ask()
            self._ask(route)
        if needs_router:
            route.is_stale = True
        route.held.append(Held(client, rule, publication, clean_session))
        self.held_bytes += route.held[-1].size
        if needs_router and route.state == DRAINING:
            self._end(route)
        return TAKEN

    def take_run(self, rule: TopicRule, run: PublishRun) -> int:
        """Deliver messages if that may be done; return the flags with which they are to be sent.

        `TAKEN`: some of them are to be held back, so each must come to `take`.
        """
        route = rule.route
        if route is None or route.is_forgotten:
            route = self._routes.of(rule)
            if route is None:
                return 0
        if route.state == LOCAL:
            for receiver, granted in route.receivers_in(self._hub):
                receiver.deliver_run(run, granted)
            return DELIVERED
        if route.state == LONG and (route.count + run.count < route.ask_at or route.is_stuck):
            route.count += run.count
            return 0
        return TAKEN

    def answer(self, answer: router_pb2.RouteAnswer) -> None:
        """Take the answer to a question."""
        route = self._routes.get(answer.instance_id, answer.topic)
        if route is None or route.state != ASKED:
            return
        if not answer.is_local or route.is_stale:
            self._end(route)
            return
        route.target_ids = list({*answer.target_ids, *route.added_ids})
        route.version = -1
        route.state = DRAINING
        self.settle(route)
        if route.state == DRAINING:
            self._hub.call_later(DRAIN_S, functools.partial(self._give_up, route))

    def settle(self, route: LocalRoute) -> None:
        """Deliver what was held back, if nothing is under way that has to come before; called for each that is not."""
        route.is_stuck = False
        if route.state != DRAINING or route.under_way:
            return
        route.state = LOCAL
        for each in route.take_held():
            self.held_bytes -= each.size
            route.deliver(self._hub, each.publication)
            self._send(each.client, each.rule, each.publication, each.clean_session, DELIVERED)

    def on_target(self, target: Interest) -> None:
        """Note that this edge adds a target with a topic filter."""
        if target.share_name:
            return  # the router serves it
        for route in self._routes.selected(target.instance_id, target.topic_filter):
            if target.skips_acknowledged:
                if route.state == ASKED:
                    route.is_stale = True
                else:
                    self._end(route)
            elif route.state == ASKED:
                route.added_ids.append(target.target_id)
            else:
                route.target_ids = [*self._hub.known(route.target_ids), target.target_id]
                route.version = -1

    def start_anew(self) -> None:
        """Give what waits for an answer the long way: the router that was asked has forgotten us."""
        for route in self._routes.all():
            if route.state == ASKED:
                self._end(route)

    def _give_up(self, route: LocalRoute) -> None:
        if route.state == DRAINING:
            route.is_stuck = True
            self._end(route)

    def _end(self, route: LocalRoute) -> None:
        route.deny()
        for each in route.take_held():
            self.held_bytes -= each.size
            self._send(each.client, each.rule, each.publication, each.clean_session, 0)
