"""The places of the session shards, and who has them.

Nobody waits for a shard that is away, since it reads what it missed from the logs. Its filters stay, so that what it
will look for is in a log; those of its next link replace them once it has sent them all. As long as a place has not
been filled since the router started, its filters are not known, and every message of QoS 1 and 2 is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.sharding import shard_of
from services.router.domain.columns import CLEAN_SESSION, KEPT_IF_OFFLINE, QOS
from services.router.domain.routing import Leg, Route, p2p_receiver
from services.router.edge_link import EdgeLink


class _Place:
    __slots__ = ("link", "registered")

    def __init__(self) -> None:
        self.link: EdgeLink | None = None  # has a stream
        self.registered: EdgeLink | None = None  # has sent all its filters


class Shards:
    """Links of session shards by index.

    Args:
        count: of the shards.
    """

    def __init__(self, count: int) -> None:
        self._places = [_Place() for _ in range(count)]
        self.count = count
        """Number of shards."""
        self.unknown = count
        """Number of those whose filters are not known."""

    def linked(self, index: int) -> EdgeLink | None:
        """Return the link of a shard that has a stream."""
        return self._places[index].link

    def kept_route(self, instance_id: str, topic: str, edges: Sequence[Leg] = ()) -> Route:
        """Return the route of a kept P2P message: to its receiver's shard, when that is there, and to `edges`."""
        shard = self.linked(shard_of(instance_id, p2p_receiver(topic), self.count))
        legs = [Leg(topic, shard.slot, [])] if shard is not None else []
        return Route(instance_id, topic, edges, shard_legs=legs, is_kept=True)

    def p2p_route(self, route: Route, topic_flags: int, flags: int) -> Route:
        """Return the route of a P2P message with these flags: `route`, or that of one that is kept."""
        is_kept = topic_flags & KEPT_IF_OFFLINE and flags & (QOS | CLEAN_SESSION) == 1 and self.count
        return self.kept_route(route.instance_id, route.topic) if is_kept else route

    def links(self) -> list[EdgeLink]:
        """Return the links that have a stream."""
        return [place.link for place in self._places if place.link is not None]

    def link(self, shard: EdgeLink) -> None:
        """Note that a shard has a stream, in place of the link it had."""
        self._places[shard.shard_index].link = shard

    def complete(self, shard: EdgeLink) -> EdgeLink | None:
        """Note that a shard has sent all its filters; return the link whose filters they replace."""
        place = self._places[shard.shard_index]
        before, place.registered = place.registered, shard
        if before is None:
            self.unknown -= 1
        return before

    def unlink(self, shard: EdgeLink) -> bool:
        """Note that a shard has no stream any more, and return whether its filters stay."""
        place = self._places[shard.shard_index]
        if place.link is shard:
            place.link = None
        return place.registered is shard
