"""Several routers and several session shards behind the ports of one.

A topic belongs to one router, by its parent topic, and a client to one session shard; targets are known to all routers.
With one router and one shard nothing of this is on the way of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.common.sharding import router_of, shard_of
from services.edge.countdown import countdown
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import TopicRule
from services.edge.ports import Client, Interest, Router
from services.edge.router_link import RouterLink
from services.edge.session_link import SessionLink

WILDCARDS = frozenset("+#")
"""First levels of topic filters that select topics of every router."""


class Routers:
    """The links with two routers or more; see `ports.Router`.

    Args:
        links: in the order in which every process lists the routers.
    """

    def __init__(self, links: Sequence[RouterLink]) -> None:
        self._links = tuple(links)

    @property
    def is_congested(self) -> bool:
        """Whether publishers must pause: one router that is behind slows them all, since a client's topics are many."""
        return any(link.is_congested for link in self._links)

    def add_target(self, target: Interest) -> None:
        """Register an interest with every router; see `ports.Router`."""
        for link in self._links:
            link.add_target(target)

    def remove_target(self, target_id: int) -> None:
        """Withdraw an interest from every router; see `ports.Router`."""
        for link in self._links:
            link.remove_target(target_id)

    def give_back(self, target: Interest, messages: list[tuple[OutboundMessage, int]]) -> None:
        """Return each message to the router of its topic; see `ports.Router`."""
        for message in messages:
            parent = message[0].topic.partition(b"/")[0].decode()
            self._links[router_of(target.instance_id, parent, len(self._links))].give_back(target, [message])

    def query_retained(self, query: Interest) -> int:
        """Ask the routers whose topics the filter may select; see `ports.Router`."""
        level = query.topic_filter.partition("/")[0]
        if level not in WILDCARDS:
            return self._links[router_of(query.instance_id, level, len(self._links))].query_retained(query)
        return sum(link.query_retained(query) for link in self._links)

    def notify(self, done: Callable[[], None]) -> None:
        """Tell once every router knows the targets; see `ports.Router`."""
        count = countdown(len(self._links), done)
        for link in self._links:
            link.notify(count)

    def publish(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> None:  # noqa: FBT001 - hot path
        """Give a message to the router of its parent topic; see `ports.Router`."""
        self._link(rule).publish(client, rule, publication, clean_session)

    def publish_run(self, client: Client, rule: TopicRule, run: PublishRun, clean_session: bool) -> None:  # noqa: FBT001 - hot path
        """Give messages to the router of their parent topic; see `ports.Router`."""
        self._link(rule).publish_run(client, rule, run, clean_session)

    def _link(self, rule: TopicRule) -> RouterLink:
        index = rule.router_index
        if index < 0:
            index = router_of(rule.instance_id, rule.topic.partition("/")[0], len(self._links))
            rule.router_index = index
        return self._links[index]


def router_group(links: Sequence[RouterLink]) -> Router:
    """Return the router of an edge: its only link, or the group of them."""
    return links[0] if len(links) == 1 else Routers(links)


class SessionShards:
    """The links with all session shards; see `ports.SessionShards`.

    Args:
        links: in the order in which every process lists the shards.
    """

    def __init__(self, links: Sequence[SessionLink]) -> None:
        self._links = tuple(links)

    def of(self, instance_id: str, client_id: str) -> SessionLink:
        """Return the link with the shard of a client."""
        return self._links[shard_of(instance_id, client_id, len(self._links))]
