"""Arbitration of client ids.

A client id that is free is given at once. One that is held:

| Opening | What happens | The new connection | The old one |
|---|---|---|---|
| plain | its edge probes the holder | refused when that is alive, or silent for 4 s | ended when it is dead |
| takeover | its edge is asked to close it | let in when it is closed, or after 4 s | ended |

Claims wait per client id: at most 8 plain ones (more are refused), or one with takeover, which displaces any other that
waits. When the id becomes free, the first claim gets it, the others are refused.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from services.session.domain.effects import Decide, Effect, Evict, Probe
from services.session.domain.events import CONNECT, DISCONNECT, INDEX_BITS, TCPCLEAN, Event, RecentChannels, group_of
from services.session.domain.records import Claim, Connection, Instance, Will

CLAIM_MS = 4_000
"""How long a claim waits for the holder of its client id to answer or to go; an edge answers a probe within 3 s."""
MAX_WAITING = 8
"""Plain claims that wait for one client id."""

_NOBODY: frozenset[str] = frozenset()


class Arbiter:
    """The connections of every client, and the claims for client ids. The inner half of `Presence`."""

    def __init__(self) -> None:
        self.instances: dict[str, Instance] = {}
        self.effects: list[Effect] = []
        self.ended = RecentChannels()
        self.last_time_ms = 0
        self.last_index = 0
        self._deadlines: list[tuple[int, int, Claim]] = []
        self._claim_count = 0

    def connections(self, instance_id: str, client_id: str) -> list[Connection]:
        """Return the connections of a client, oldest first."""
        instance = self.instances.get(instance_id)
        held = instance.clients.get(client_id, []) if instance else []
        return sorted((c for c in held if not c.edge.is_lost), key=lambda c: c.connect_time_ms)

    def members(self, instance_id: str, group_id: str) -> frozenset[str] | set[str]:
        """Return the clients of a group that have connections; to be read only."""
        instance = self.instances.get(instance_id)
        return instance.groups.get(group_id, _NOBODY) if instance else _NOBODY

    def keep(self, connection: Connection) -> None:
        """Note that a connection is alive: plain claims for its client id are refused."""
        instance = self.instances[connection.instance_id]
        waiting = instance.waiting.get(connection.client_id)
        if waiting and not waiting[0].connection.takeover:
            del instance.waiting[connection.client_id]
            self._refuse(waiting)

    def evict(self, instance_id: str, client_id: str) -> int:
        """Have every connection of a client closed; returns how many there are."""
        held = self.connections(instance_id, client_id)
        for connection in held:
            self._evict(connection)
        return len(held)

    def claim(self, connection: Connection, will: Will | None, now_ms: int) -> None:
        """Let a connection in, refuse it, or have it wait."""
        instance = self._instance(connection.instance_id)
        client_id = connection.client_id
        holders = instance.clients.get(client_id)
        if holders is not None:
            for holder in [each for each in holders if each.edge.is_lost]:
                self.end(holder, now_ms, disconnected=False)
            holders = instance.clients.get(client_id)
        if holders is None:
            self._admit(connection, will, now_ms)
            return
        claim = connection.edge.claims[connection.channel_id] = Claim(connection, will, now_ms + CLAIM_MS)
        waiting = instance.waiting.setdefault(client_id, [])
        if connection.takeover:
            if waiting and waiting[0].connection.takeover:
                claim.deadline_ms = waiting[0].deadline_ms  # the eviction began then
            displaced = waiting[:]
            waiting[:] = [claim]
            self._refuse(displaced)
            for holder in holders:
                if not holder.is_evicted:
                    self._evict(holder)
        elif len(waiting) >= MAX_WAITING or (waiting and waiting[0].connection.takeover):
            self._refuse([claim])
            return
        else:
            if not waiting:
                self._probe(holders)
            waiting.append(claim)
        self._claim_count += 1
        heapq.heappush(self._deadlines, (claim.deadline_ms, self._claim_count, claim))

    @property
    def is_waiting(self) -> bool:
        """Whether a claim may run out of time."""
        return bool(self._deadlines)

    def expire(self, now_ms: int) -> None:
        """End the waiting of claims that are out of time."""
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            claim = heapq.heappop(self._deadlines)[2]
            if not claim.is_done:
                self._run_out(claim, now_ms)

    def _instance(self, instance_id: str) -> Instance:
        instance = self.instances.get(instance_id)
        if instance is None:
            instance = self.instances[instance_id] = Instance()
        return instance

    def _run_out(self, claim: Claim, now_ms: int) -> None:
        connection = claim.connection
        if connection.takeover:
            # The edge that holds the client id does not close it; ending the last one lets the claim in.
            instance = self.instances[connection.instance_id]
            for holder in list(instance.clients.get(connection.client_id, ())):
                self.end(holder, now_ms, disconnected=False)
        else:
            self.withdraw(claim)
            self._refuse([claim])

    def _accept(self, claim: Claim, now_ms: int) -> None:
        claim.is_done = True
        del claim.connection.edge.claims[claim.connection.channel_id]
        self._admit(claim.connection, claim.will, now_ms)

    def _admit(self, connection: Connection, will: Will | None, now_ms: int) -> None:
        edge, channel_id = connection.edge, connection.channel_id
        time_ms = connection.connect_time_ms = self.announce(
            connection.instance_id, connection.client_id, CONNECT, channel_id, connection.address, edge.name, now_ms
        )
        self.add(connection)
        if will is not None:
            edge.wills[channel_id] = will
        self.effects.append(Decide(edge.edge_id, channel_id, accepted=True, connect_time_ms=time_ms))

    def _refuse(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            claim.is_done = True
            edge, channel_id = claim.connection.edge, claim.connection.channel_id
            edge.claims.pop(channel_id, None)
            self.ended.add(channel_id)
            self.effects.append(Decide(edge.edge_id, channel_id, accepted=False, connect_time_ms=0))

    def withdraw(self, claim: Claim) -> None:
        """Take a claim out of those that wait."""
        claim.is_done = True
        client_id = claim.connection.client_id
        waiting = self.instances[claim.connection.instance_id].waiting
        claims = waiting[client_id]
        claims.remove(claim)
        if not claims:
            del waiting[client_id]

    def add(self, connection: Connection) -> None:
        """Enter a connection that was announced."""
        instance = self._instance(connection.instance_id)
        connection.edge.connections[connection.channel_id] = connection
        held = instance.clients.get(connection.client_id)
        if held is None:
            instance.clients[connection.client_id] = [connection]
            group_id = group_of(connection.client_id)
            members = instance.groups.get(group_id)
            if members is None:
                members = instance.groups[group_id] = set()
            members.add(connection.client_id)
        else:
            held.append(connection)

    def see(self, connection: Connection, *, established: bool, takeover: bool) -> None:
        """Take an opening of a known connection, which a snapshot repeats."""
        edge = connection.edge
        edge.unseen.discard(connection.channel_id)
        connection.takeover = connection.takeover or takeover
        if not established:  # the decision was lost with the process that made it
            self.effects.append(
                Decide(edge.edge_id, connection.channel_id, accepted=True, connect_time_ms=connection.connect_time_ms)
            )
        if connection.is_evicted:
            self._evict(connection)
        self.confront(connection)

    def confront(self, connection: Connection) -> None:
        """Hold a connection that a snapshot names against the claims and connections that came before it."""
        waiting = self.instances[connection.instance_id].waiting.get(connection.client_id)
        if waiting and not waiting[0].connection.takeover:
            self._probe([connection])
        elif waiting and not connection.is_evicted:
            self._evict(connection)
        # A restart in the middle of a takeover left older ones.
        held = self.connections(connection.instance_id, connection.client_id)
        if len(held) > 1 and held[-1].takeover:
            for older in held[:-1]:
                if not older.is_evicted:
                    self._evict(older)

    def _evict(self, connection: Connection) -> None:
        connection.is_evicted = True
        self.effects.append(Evict(connection.edge.edge_id, connection.channel_id))

    def _probe(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            self.effects.append(Probe(connection.edge.edge_id, connection.channel_id))

    def end(self, connection: Connection, now_ms: int, *, disconnected: bool) -> None:
        """Announce the end of a connection, and give its client id to the first claim that waits for it."""
        edge = connection.edge
        channel_id = connection.channel_id
        edge.connections.pop(channel_id, None)
        edge.unseen.discard(channel_id)
        self.ended.add(channel_id)
        instance_id, client_id, address = connection.instance_id, connection.client_id, connection.address
        if disconnected:
            self.announce(instance_id, client_id, DISCONNECT, channel_id, address, edge.name, now_ms)
        self.announce(instance_id, client_id, TCPCLEAN, channel_id, address, edge.name, now_ms)
        instance = self.instances[instance_id]
        held = instance.clients[client_id]
        held.remove(connection)
        if held:
            return
        del instance.clients[client_id]
        group_id = group_of(client_id)
        members = instance.groups[group_id]
        members.discard(client_id)
        if not members:
            del instance.groups[group_id]
        waiting = instance.waiting.pop(client_id, None)
        if waiting is not None:
            self._accept(waiting[0], now_ms)
            self._refuse(waiting[1:])

    def announce(
        self, instance_id: str, client_id: str, tag: str, channel_id: str, address: str, edge: str, now_ms: int
    ) -> int:
        """Emit an event; returns its time, never before that of the last one."""
        time_ms = self.last_time_ms = max(self.last_time_ms, now_ms)
        index = self.last_index = max(self.last_index + 1, time_ms << INDEX_BITS)
        self.effects.append(Event(instance_id, client_id, tag, channel_id, address, time_ms, edge, index))
        return time_ms
