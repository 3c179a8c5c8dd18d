"""Lifecycle events of client connections, and what they leave behind when folded in order."""

from __future__ import annotations

import json
from collections import deque
from json.encoder import encode_basestring as _quoted
from typing import Final

CONNECT: Final = "connect"
"""A client was let in."""
DISCONNECT: Final = "disconnect"
"""The client sent DISCONNECT; `tcpclean` follows."""
TCPCLEAN: Final = "tcpclean"
"""The TCP connection is gone; the last event of a connection."""

NO_GROUP: Final = "-"
"""Group of a client id that names none, as in the `standard` profile."""

MAX_GROUP_BYTES: Final = 64
"""Longest group id that is taken from a client id. A group is part of a NATS subject, whose length the server limits,
and a `standard` client may choose any client id."""

RECENT_CHANNELS: Final = 65_536
"""How many ended connections are remembered; the last that may be reported again after a restart."""

INDEX_BITS: Final = 12
"""An event index is its time in milliseconds, so many bits to the left, or the next number: it rises over restarts
without a counter kept for each client, and fits the 53 bits of a JSON number."""


class Event:
    """One lifecycle event."""

    __slots__ = ("address", "channel_id", "client_id", "edge", "index", "instance_id", "tag", "time_ms")

    def __init__(
        self,
        instance_id: str,
        client_id: str,
        tag: str,
        channel_id: str,
        address: str,
        time_ms: int,
        edge: str,
        index: int,
    ) -> None:
        self.instance_id = instance_id
        self.client_id = client_id
        self.tag = tag
        self.channel_id = channel_id
        self.address = address
        self.time_ms = time_ms
        self.edge = edge  # `<edge id>/<edge incarnation>`
        self.index = index  # rises from each event of a client to the next, not by one

    def body(self) -> bytes:
        """Return the JSON that consumers read."""
        # By hand: the encoder of `json` takes six times as long for so little.
        return (
            f'{{"clientId":{_quoted(self.client_id)},"time":{self.time_ms},"eventType":"{self.tag}",'
            f'"channelId":{_quoted(self.channel_id)},"clientIp":{_quoted(self.address)},"eventIndex":{self.index}}}'
        ).encode()


def parse_event(instance_id: str, body: bytes, edge: str) -> Event:
    """Return the event that `Event.body` made `body` of.

    Raises:
        ValueError: it can't have made it.
    """
    try:
        values = json.loads(body)
        return Event(
            instance_id,
            str(values["clientId"]),
            str(values["eventType"]),
            str(values["channelId"]),
            str(values["clientIp"]),
            int(values["time"]),
            edge,
            int(values.get("eventIndex", 0)),  # events of earlier versions have none
        )
    except (LookupError, TypeError) as error:
        raise ValueError(f"not a lifecycle event: {error!r}") from error


def group_of(client_id: str) -> str:
    """Return the group id that a client id names, else `NO_GROUP`."""
    group = client_id[: max(0, client_id.find("@@@"))]
    if not group or len(group) > MAX_GROUP_BYTES or (not group.isascii() and len(group.encode()) > MAX_GROUP_BYTES):
        return NO_GROUP
    return group


class RecentChannels:
    """The channel ids that were added last. Once it is full, its memory neither grows nor shrinks."""

    __slots__ = ("_ids", "_order", "_size")

    def __init__(self, size: int = RECENT_CHANNELS) -> None:
        self._size = size
        self._ids: set[str] = set()
        self._order: deque[str] = deque()  # the ids, oldest first

    def add(self, channel_id: str) -> None:
        """Remember a channel id; one that is known keeps its place."""
        if channel_id in self._ids:
            return
        if len(self._order) >= self._size:
            self._ids.remove(self._order.popleft())
        self._ids.add(channel_id)
        self._order.append(channel_id)

    def __contains__(self, channel_id: str) -> bool:
        return channel_id in self._ids


class Opened:
    """A connection that was announced and has not ended, as the events tell it."""

    __slots__ = ("address", "channel_id", "client_id", "connect_time_ms", "edge", "instance_id")

    def __init__(
        self, instance_id: str, client_id: str, channel_id: str, address: str, connect_time_ms: int, edge: str
    ) -> None:
        self.instance_id = instance_id
        self.client_id = client_id
        self.channel_id = channel_id
        self.address = address
        self.connect_time_ms = connect_time_ms
        self.edge = edge


class Fold:
    """What a sequence of events leaves behind. Events may repeat: the last one of a channel counts."""

    def __init__(self) -> None:
        self.opened: dict[str, Opened] = {}
        """Connections by channel id."""
        self.ended = RecentChannels()
        """Channel ids that ended."""
        self.last_time_ms = 0
        """Time of the latest event."""
        self.last_index = 0
        """Index of the latest event."""
        self.lost_edges: dict[str, int] = {}
        """Edges `<edge id>/<edge incarnation>` that were given up, and when."""

    def apply(self, event: Event) -> None:
        """Take the next event."""
        self.last_time_ms = max(self.last_time_ms, event.time_ms)
        self.last_index = max(self.last_index, event.index)
        channel_id = event.channel_id
        if event.tag == TCPCLEAN:
            self.opened.pop(channel_id, None)
            self.ended.add(channel_id)
        elif event.tag == CONNECT and channel_id not in self.ended:
            self.add(Opened(event.instance_id, event.client_id, channel_id, event.address, event.time_ms, event.edge))

    def add(self, opened: Opened) -> None:
        """Take a connection that a checkpoint holds."""
        self.opened[opened.channel_id] = opened
