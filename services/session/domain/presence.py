"""Who is connected where, who may use a client id, and which events follow. No I/O; `now_ms` is an argument.

An edge whose link broke keeps its connections for a grace time. Then, or at once when a new process of the edge links,
they are gone: they count no more, and their `tcpclean` events come in slices (`expire`), since they may be very many.
Connections that such an edge still has, should it come back, are evicted. A connection that ended does not come back:
its channel id is remembered for a while, and what arrives about it afterwards is ignored.

Wills are the edge's to send: it does whenever it closes a connection without DISCONNECT, and then sends a closing. The
session service keeps the will of a connection until that closing, in memory only; the edge's snapshot brings it again.
When the edge is lost before - its grace is over, or a new process of it links - the will is published, once. That
includes connections that were ended while the edge was still to close them: a takeover it did not answer, a dead peer.
An edge that says goodbye has closed its connections and sent what was due.

Every event time is at least that of the event before it, whatever the clock does.
"""

from __future__ import annotations

import heapq
from collections import deque

from services.session.domain.arbiter import Arbiter
from services.session.domain.effects import Decide, Effect, Evict, Forget, PublishWills
from services.session.domain.events import CONNECT, DISCONNECT, INDEX_BITS, TCPCLEAN, Fold
from services.session.domain.records import Connection, Edge, Will

MAX_LOST_EDGES = 1_024
"""Edge processes given up that are remembered."""
SLICE = 1_000
"""Connections of lost edges that one call announces as gone."""


class Presence:
    """The connections of all edges. Owned by one event loop; what it wants done waits in `take_effects`.

    Args:
        edge_grace_ms: how long the connections of an edge outlive its link.
    """

    def __init__(self, *, edge_grace_ms: int) -> None:
        self._edge_grace_ms = edge_grace_ms
        self._edges: dict[str, Edge] = {}
        self._arbiter = Arbiter()
        self._gone: deque[Edge] = deque()  # lost edges with connections whose end is not announced
        self._awaited: set[str] = set()  # edges that have yet to say what they hold
        self._lost_edges: dict[str, int] = {}  # name -> when it was given up

    # What is known

    @property
    def last_time_ms(self) -> int:
        """Time of the latest event."""
        return self._arbiter.last_time_ms

    @property
    def lost_edges(self) -> dict[str, int]:
        """Edges that were given up, by `<edge id>/<edge incarnation>`, and when."""
        return self._lost_edges

    @property
    def is_clearing(self) -> bool:
        """Whether connections are gone whose end is not announced yet."""
        return bool(self._gone)

    @property
    def is_waiting(self) -> bool:
        """Whether something comes due: a claim, an edge without its link, or what is left of lost ones."""
        return self._arbiter.is_waiting or bool(self._gone) or any(edge.deadline_ms for edge in self._edges.values())

    @property
    def is_synchronized(self) -> bool:
        """Whether every edge has said what it holds."""
        return not self._awaited

    def connections(self, instance_id: str, client_id: str) -> list[Connection]:
        """Return the connections of a client, oldest first."""
        return self._arbiter.connections(instance_id, client_id)

    def connection(self, edge_id: str, channel_id: str) -> Connection | None:
        """Return a connection of an edge; None: it has ended, or was never let in."""
        edge = self._edges.get(edge_id)
        return edge.connections.get(channel_id) if edge is not None else None

    def is_certain(self, instance_id: str, client_id: str) -> bool:
        """Say whether `connections` is the truth: no edge that could contradict it is away."""
        return not self._awaited and not any(c.edge.deadline_ms for c in self.connections(instance_id, client_id))

    def group(self, instance_id: str, group_id: str, after_client_id: str, limit: int) -> list[str]:
        """Return the connected clients of a group whose id is greater, in order, up to `limit`."""
        members = self._arbiter.members(instance_id, group_id)
        return heapq.nsmallest(limit, (client_id for client_id in members if client_id > after_client_id))

    def group_size(self, instance_id: str, group_id: str) -> int:
        """Return how many clients of a group are connected."""
        return len(self._arbiter.members(instance_id, group_id))

    def announced(self, instance_id: str) -> list[Connection]:
        """Return the connections of an instance that were announced and not announced as gone."""
        instance = self._arbiter.instances.get(instance_id)
        return [c for held in instance.clients.values() for c in held] if instance else []

    def take_effects(self) -> list[Effect]:
        """Return what is to be done, in order, once."""
        effects = self._arbiter.effects
        self._arbiter.effects = []
        return effects

    # Edges

    def restore(self, fold: Fold, now_ms: int) -> None:
        """Start from what the events of the past left behind; its edges have the grace time to link."""
        self._arbiter.ended = fold.ended
        self._arbiter.last_time_ms = max(self._arbiter.last_time_ms, fold.last_time_ms)
        # A checkpoint holds no index, but its time: what comes is above all that was of that millisecond.
        self._arbiter.last_index = max(fold.last_index, (fold.last_time_ms + 1) << INDEX_BITS)
        self._lost_edges = fold.lost_edges
        processes: dict[str, Edge] = {}
        past: dict[str, Edge] = {}  # those parts of processes that were being announced as gone
        latest: dict[str, int] = {}
        for opened in fold.opened.values():
            is_past = opened.connect_time_ms <= self._lost_edges.get(opened.edge, -1)
            edge = (past if is_past else processes).get(opened.edge)
            if edge is None:
                edge_id, _, incarnation = opened.edge.rpartition("/")
                edge = Edge(edge_id, incarnation)
                (past if is_past else processes)[opened.edge] = edge
            connection = Connection(
                opened.instance_id, opened.client_id, opened.channel_id, opened.address, opened.connect_time_ms, edge
            )
            self._arbiter.add(connection)
            if not is_past:
                latest[edge.name] = max(latest.get(edge.name, 0), opened.connect_time_ms)
        for edge in past.values():
            edge.is_lost = True
            self._gone.append(edge)
        # Of several processes of one edge only the latest can be alive; the others' ends were being announced.
        for name in sorted(latest, key=latest.__getitem__, reverse=True):
            edge = processes[name]
            if edge.edge_id in self._edges:
                self._lose(edge, now_ms)
            else:
                self._edges[edge.edge_id] = edge
                edge.deadline_ms = now_ms + self._edge_grace_ms
                self._awaited.add(edge.edge_id)

    def open_edge(self, edge_id: str, incarnation: str, now_ms: int, *, resumed: bool) -> None:
        """Note that an edge has linked.

        Args:
            edge_id: name of the edge.
            incarnation: of its process.
            now_ms: the time.
            resumed: its frames go on where they ended; otherwise it sends a snapshot.
        """
        edge = self._edges.get(edge_id)
        if edge is not None and edge.incarnation != incarnation:
            self._lose(edge, now_ms)
            edge = None
        if edge is None:
            edge = self._edges[edge_id] = Edge(edge_id, incarnation)
        edge.deadline_ms = 0
        if not resumed:
            for claim in edge.claims.values():
                self._arbiter.withdraw(claim)  # the edge asks again
            edge.claims.clear()
            edge.unseen = edge.connections.keys() | edge.wills.keys()
            self._awaited.add(edge_id)
        self._clear(SLICE, now_ms)

    def break_edge(self, edge_id: str, incarnation: str, now_ms: int) -> None:
        """Note that the link of an edge broke; nothing happens when it has been given up."""
        edge = self._edges.get(edge_id)
        if edge is not None and edge.incarnation == incarnation:
            edge.deadline_ms = now_ms + self._edge_grace_ms

    def complete_snapshot(self, edge_id: str, now_ms: int) -> None:
        """Note that an edge has sent all that it holds: the rest of what was known of it is gone."""
        edge = self._edges[edge_id]
        self._awaited.discard(edge_id)
        if edge.unseen:
            vanished = Edge(edge_id, edge.incarnation)
            vanished.is_lost = True
            for channel_id in edge.unseen:
                edge.wills.pop(channel_id, None)  # the edge lives and has closed it
                connection = edge.connections.pop(channel_id, None)
                if connection is not None:
                    connection.edge = vanished
                    vanished.connections[channel_id] = connection
            edge.unseen = set()
            self._gone.append(vanished)
            self._clear(SLICE, now_ms)

    def close_edge(self, edge_id: str, now_ms: int) -> None:
        """Note that an edge has ended for good, having closed its connections and sent the wills that were due."""
        edge = self._edges[edge_id]
        edge.wills.clear()
        self._lose(edge, now_ms)
        self._clear(SLICE, now_ms)

    # Connections

    def open(
        self,
        edge_id: str,
        instance_id: str,
        client_id: str,
        channel_id: str,
        address: str,
        now_ms: int,
        *,
        established_ms: int,
        takeover: bool,
        will: Will | None = None,
    ) -> None:
        """Take an opening.

        Args:
            edge_id: edge that holds the connection, linked.
            instance_id: instance of the client.
            client_id: its client identifier.
            channel_id: of the connection.
            address: of the peer.
            now_ms: the time.
            established_ms: when it was let in before this link; 0: it asks to be let in.
            takeover: it displaces a connection with the same client id.
            will: what is published should the edge be lost; None: nothing.
        """
        edge = self._edges[edge_id]
        edge.unseen.discard(channel_id)
        known = edge.connections.get(channel_id)
        if known is not None:
            _keep_will(edge, channel_id, will)
            self._arbiter.see(known, established=established_ms > 0, takeover=takeover)
            return
        if channel_id in edge.claims:
            return  # it waits already
        is_past = self._is_past(edge, established_ms)
        if is_past or channel_id in self._arbiter.ended:
            if established_ms > 0:
                if not is_past:  # else it was published when the edge was given up
                    _keep_will(edge, channel_id, will)
                self._arbiter.effects.append(Evict(edge_id, channel_id))
            else:
                self._arbiter.effects.append(Decide(edge_id, channel_id, accepted=False, connect_time_ms=0))
            return
        if established_ms > 0:
            time_ms = self._arbiter.announce(instance_id, client_id, CONNECT, channel_id, address, edge.name, now_ms)
            connection = Connection(instance_id, client_id, channel_id, address, min(established_ms, time_ms), edge)
            connection.takeover = takeover
            self._arbiter.add(connection)
            _keep_will(edge, channel_id, will)
            self._arbiter.confront(connection)
            return
        connection = Connection(instance_id, client_id, channel_id, address, 0, edge)
        connection.takeover = takeover
        self._arbiter.claim(connection, will, now_ms)

    def close(
        self,
        edge_id: str,
        instance_id: str,
        client_id: str,
        channel_id: str,
        address: str,
        now_ms: int,
        *,
        connect_time_ms: int,
        disconnected: bool,
    ) -> None:
        """Take a closing.

        Args:
            edge_id: edge that held the connection, linked.
            instance_id: instance of the client.
            client_id: its client identifier.
            channel_id: of the connection.
            address: of the peer.
            now_ms: the time.
            connect_time_ms: when the client was let in, as the edge was told; 0: it was not.
            disconnected: the client sent DISCONNECT.
        """
        edge = self._edges[edge_id]
        edge.wills.pop(channel_id, None)  # the edge has sent it, or the client sent DISCONNECT
        connection = edge.connections.get(channel_id)
        if connection is not None:
            self._arbiter.end(connection, now_ms, disconnected=disconnected)
            return
        claim = edge.claims.pop(channel_id, None)
        if claim is not None:
            self._arbiter.withdraw(claim)
            self._arbiter.ended.add(channel_id)
            return
        if connect_time_ms <= 0 or channel_id in self._arbiter.ended or self._is_past(edge, connect_time_ms):
            return
        # Let in by a session process that ended before the event was stored.
        self._arbiter.announce(instance_id, client_id, CONNECT, channel_id, address, edge.name, now_ms)
        self._arbiter.ended.add(channel_id)
        if disconnected:
            self._arbiter.announce(instance_id, client_id, DISCONNECT, channel_id, address, edge.name, now_ms)
        self._arbiter.announce(instance_id, client_id, TCPCLEAN, channel_id, address, edge.name, now_ms)

    def probed(self, edge_id: str, channel_id: str, now_ms: int, *, alive: bool) -> None:
        """Take what an edge found about a connection; a dead one is ended, the edge closes it."""
        connection = self._edges[edge_id].connections.get(channel_id)
        if connection is None:
            return
        if alive:
            self._arbiter.keep(connection)
        else:
            self._arbiter.end(connection, now_ms, disconnected=False)

    def evict(self, instance_id: str, client_id: str) -> int:
        """Have every connection of a client closed; returns how many there are."""
        return self._arbiter.evict(instance_id, client_id)

    def expire(self, now_ms: int, limit: int = SLICE) -> None:
        """Do what is due: claims and edges out of time, and up to `limit` connections of lost edges."""
        self._arbiter.expire(now_ms)
        for edge in [e for e in self._edges.values() if e.deadline_ms and e.deadline_ms <= now_ms]:
            self._lose(edge, now_ms)
        self._clear(limit, now_ms)

    # Inside

    def _lose(self, edge: Edge, now_ms: int) -> None:
        edge.is_lost = True
        edge.deadline_ms = 0
        if self._edges.get(edge.edge_id) is edge:
            del self._edges[edge.edge_id]
            self._awaited.discard(edge.edge_id)
        for claim in edge.claims.values():
            self._arbiter.withdraw(claim)
        edge.claims.clear()
        if edge.connections:
            self._gone.append(edge)
        if edge.wills:
            self._arbiter.effects.append(PublishWills(list(edge.wills.values())))
            edge.wills.clear()
        self._lost_edges.pop(edge.name, None)
        lost_ms = max(now_ms, self._arbiter.last_time_ms)
        self._lost_edges[edge.name] = lost_ms
        self._arbiter.last_time_ms = lost_ms + 1  # what the process lets in later, should it come back, is later
        while len(self._lost_edges) > MAX_LOST_EDGES:
            del self._lost_edges[next(iter(self._lost_edges))]
        self._arbiter.effects.append(Forget(edge.edge_id, edge.incarnation))

    def _is_past(self, edge: Edge, connect_time_ms: int) -> bool:
        """Say whether a connection was let in before its edge was given up, and so has ended."""
        return 0 < connect_time_ms <= self._lost_edges.get(edge.name, 0)

    def _clear(self, limit: int, now_ms: int) -> None:
        while self._gone and limit > 0:
            connections = self._gone[0].connections
            if not connections:
                self._gone.popleft()
                continue
            limit -= 1
            self._arbiter.end(connections[next(reversed(connections))], now_ms, disconnected=False)


def _keep_will(edge: Edge, channel_id: str, will: Will | None) -> None:
    """Take what an opening says of the will of its connection."""
    if will is None:
        edge.wills.pop(channel_id, None)
    else:
        edge.wills[channel_id] = will
