"""What the presence asks its driver to do."""

from __future__ import annotations

from services.session.domain.events import Event
from services.session.domain.records import Will


class Decide:
    """Answer an opening."""

    __slots__ = ("accepted", "channel_id", "connect_time_ms", "edge_id")

    def __init__(self, edge_id: str, channel_id: str, *, accepted: bool, connect_time_ms: int) -> None:
        self.edge_id = edge_id
        self.channel_id = channel_id
        self.accepted = accepted
        self.connect_time_ms = connect_time_ms


class Probe:
    """Ask the edge whether the peer of a connection still answers."""

    __slots__ = ("channel_id", "edge_id")

    def __init__(self, edge_id: str, channel_id: str) -> None:
        self.edge_id = edge_id
        self.channel_id = channel_id


class Evict:
    """Have the edge close a connection."""

    __slots__ = ("channel_id", "edge_id")

    def __init__(self, edge_id: str, channel_id: str) -> None:
        self.edge_id = edge_id
        self.channel_id = channel_id


class Forget:
    """Give up an edge: its next link starts anew."""

    __slots__ = ("edge_id", "incarnation")

    def __init__(self, edge_id: str, incarnation: str) -> None:
        self.edge_id = edge_id
        self.incarnation = incarnation


class PublishWills:
    """Publish the wills of connections that their edge can't publish any more."""

    __slots__ = ("wills",)

    def __init__(self, wills: list[Will]) -> None:
        self.wills = wills


Effect = Event | Decide | Probe | Evict | Forget | PublishWills
"""An event is to be stored."""
