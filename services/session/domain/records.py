"""Records of the presence: connections, their wills, claims for a client id, and edges."""

from __future__ import annotations

from typing import NamedTuple


class Edge:
    """One process of an edge, and what it holds."""

    __slots__ = (
        "claims", "connections", "deadline_ms", "edge_id", "incarnation", "is_lost", "name", "unseen", "wills",
    )  # fmt: skip

    def __init__(self, edge_id: str, incarnation: str) -> None:
        self.edge_id = edge_id
        self.incarnation = incarnation
        self.name = f"{edge_id}/{incarnation}"
        self.connections: dict[str, Connection] = {}  # by channel id
        self.claims: dict[str, Claim] = {}  # by channel id
        # By channel id. Here and not with the connections: a connection that was ended without the edge's closing may
        # still be open there, and its will is the edge's to send until the edge is lost.
        self.wills: dict[str, Will] = {}
        self.unseen: set[str] = set()  # channel ids that the running snapshot has not named yet
        self.deadline_ms = 0  # when it is given up; 0: it is linked
        self.is_lost = False  # its connections are gone, though not all announced so


class Connection:
    """A connection that was let in, or asks for it."""

    __slots__ = (
        "address", "channel_id", "client_id", "connect_time_ms", "edge", "instance_id", "is_evicted", "takeover",
    )  # fmt: skip

    def __init__(
        self, instance_id: str, client_id: str, channel_id: str, address: str, connect_time_ms: int, edge: Edge
    ) -> None:
        self.instance_id = instance_id
        self.client_id = client_id
        self.channel_id = channel_id
        self.address = address
        self.connect_time_ms = connect_time_ms  # 0: it was not let in
        self.edge = edge
        self.is_evicted = False  # its edge was asked to close it
        self.takeover = False  # it displaces older ones


class Publisher(NamedTuple):
    """By what a client may publish its will; see `weimq.router.v1.PublisherIdentity`."""

    account_id: str = ""
    access_key_id: str = ""
    token_ids: tuple[str, ...] = ()


class Will:
    """The message that is published when a connection ends without DISCONNECT [MQTT-3.1.2-8]."""

    __slots__ = (
        "channel_id", "clean_session", "client_id", "instance_id", "payload", "publisher", "qos", "retain", "topic",
    )  # fmt: skip

    def __init__(
        self,
        instance_id: str,
        client_id: str,
        channel_id: str,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        clean_session: bool,
        publisher: Publisher = Publisher(),  # noqa: B008 - immutable
    ) -> None:
        self.instance_id = instance_id
        self.client_id = client_id
        self.channel_id = channel_id
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.clean_session = clean_session  # of the client
        self.publisher = publisher

    def size(self) -> int:
        """Return about how many bytes it takes."""
        return len(self.payload) + len(self.topic) + len(self.client_id) + sum(map(len, self.publisher.token_ids))


class Claim:
    """A connection that waits for what holds its client id to go."""

    __slots__ = ("connection", "deadline_ms", "is_done", "will")

    def __init__(self, connection: Connection, will: Will | None, deadline_ms: int) -> None:
        self.connection = connection
        self.will = will
        self.deadline_ms = deadline_ms
        self.is_done = False


class Instance:
    """The clients of one instance."""

    __slots__ = ("clients", "groups", "waiting")

    def __init__(self) -> None:
        self.clients: dict[str, list[Connection]] = {}  # by client id, in order of admission; never empty
        self.groups: dict[str, set[str]] = {}  # by group: the keys of `clients`; never empty
        self.waiting: dict[str, list[Claim]] = {}  # by client id, in order of arrival; never empty
