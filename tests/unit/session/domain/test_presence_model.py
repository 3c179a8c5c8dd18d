"""Presence against simulated edges, with broken links, dying edges and crashes of the session process.

Whatever happens, once all is quiet: the events that are stored, folded, are the connections that the edges hold; each
connection has one `connect`, one `tcpclean` when it ended, and `disconnect` only between them; times never fall. The
wills published are those of the connections that a process of an edge held when it was given up, once each.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from services.session.domain.effects import Decide, Evict, Forget, Probe, PublishWills
from services.session.domain.events import CONNECT, DISCONNECT, TCPCLEAN, Event, Fold
from services.session.domain.presence import Presence
from services.session.domain.records import Will

GRACE_MS = 5_000
INSTANCE = "i"
CLIENTS = [f"client-{number}" for number in range(4)]


class Closed:
    """A closing that the edge keeps until it is confirmed."""

    def __init__(self, channel: str, client: str, connect_ms: int, *, disconnected: bool) -> None:
        self.channel = channel
        self.client = client
        self.connect_ms = connect_ms
        self.disconnected = disconnected
        self.confirmed_at = -1  # how many events are stored when it is confirmed


class Asked(NamedTuple):
    """An opening that waits for a decision."""

    channel: str
    client: str
    takeover: bool


class Probed(NamedTuple):
    """The answer to a probe."""

    channel: str
    alive: bool


class EdgeModel:
    """An edge process that keeps the contract of `SessionService.Link`."""

    def __init__(self, edge_id: str, number: int) -> None:
        self.edge_id = edge_id
        self.incarnation = str(number)
        self.is_linked = False
        self.is_known = False  # the session process can resume the link
        self.open: dict[str, tuple[str, int, bool]] = {}  # client, connect time, takeover
        self.pending: dict[str, tuple[str, bool]] = {}  # client, takeover
        self.closings: list[Closed] = []
        self.unsent: list[Asked | Closed | Probed] = []
        self.inbox: list[Decide | Probe | Evict] = []


class World:
    """Edges, the session process, the stored events and a clock."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ms = 1_000_000
        self.channels = 0
        self.processes = 0
        self.events: list[Event] = []  # emitted, in order; a crash loses the tail
        self.wills: list[str] = []  # channels whose will was published
        self.owed: dict[str, list[str]] = {}  # by edge process: channels that were let in and have sent no closing
        self.due: list[str] = []  # channels that an edge process owed when it was given up
        self.presence = Presence(edge_grace_ms=GRACE_MS)
        self.edges = [self.new_edge(name) for name in "ABC"]

    def new_edge(self, edge_id: str) -> EdgeModel:
        self.processes += 1
        return EdgeModel(edge_id, self.processes)

    def drain(self) -> None:
        for effect in self.presence.take_effects():
            if isinstance(effect, Event):
                self.events.append(effect)
                if effect.tag == CONNECT:
                    self.owed.setdefault(effect.edge, []).append(effect.channel_id)
                continue
            if isinstance(effect, PublishWills):
                self.wills += [will.channel_id for will in effect.wills]
                continue
            edge = next(e for e in self.edges if e.edge_id == effect.edge_id)
            if isinstance(effect, Forget):
                self.due += self.owed.pop(f"{effect.edge_id}/{effect.incarnation}", [])
                if edge.incarnation == effect.incarnation:
                    edge.is_known = False
                    edge.inbox.clear()
            elif edge.is_known:
                edge.inbox.append(effect)

    # Edge to session

    def link(self, edge: EdgeModel) -> None:
        edge.is_linked = True
        if edge.is_known:
            self.presence.open_edge(edge.edge_id, edge.incarnation, self.now_ms, resumed=True)
            self.drain()
            self.flush(edge)
            return
        edge.inbox.clear()
        edge.unsent.clear()
        self.presence.open_edge(edge.edge_id, edge.incarnation, self.now_ms, resumed=False)
        self.drain()
        edge.is_known = True
        for channel, (client, connect_ms, takeover) in list(edge.open.items()):
            self.send_open(edge, channel, client, connect_ms, takeover=takeover)
        for channel, (client, takeover) in list(edge.pending.items()):
            self.send_open(edge, channel, client, 0, takeover=takeover)
        for closed in edge.closings:
            self.send_close(edge, closed)
        self.presence.complete_snapshot(edge.edge_id, self.now_ms)
        self.drain()

    def send_open(self, edge: EdgeModel, channel: str, client: str, connect_ms: int, *, takeover: bool) -> None:
        self.presence.open(
            edge.edge_id,
            INSTANCE,
            client,
            channel,
            "10.0.0.1:1",
            self.now_ms,
            established_ms=connect_ms,
            takeover=takeover,
            will=Will(INSTANCE, client, channel, "t", b"", qos=0, retain=False, clean_session=True),
        )
        self.drain()

    def send_close(self, edge: EdgeModel, closed: Closed) -> None:
        self.presence.close(
            edge.edge_id,
            INSTANCE,
            closed.client,
            closed.channel,
            "10.0.0.1:1",
            self.now_ms,
            connect_time_ms=closed.connect_ms,
            disconnected=closed.disconnected,
        )
        self.drain()
        name = f"{edge.edge_id}/{edge.incarnation}"
        self.owed[name] = [channel for channel in self.owed.get(name, ()) if channel != closed.channel]
        closed.confirmed_at = len(self.events)

    def send(self, edge: EdgeModel, what: Asked | Closed | Probed) -> None:
        edge.unsent.append(what)
        if edge.is_linked and edge.is_known:
            self.flush(edge)

    def flush(self, edge: EdgeModel) -> None:
        unsent, edge.unsent = edge.unsent, []
        for what in unsent:
            if isinstance(what, Asked):
                self.send_open(edge, what.channel, what.client, 0, takeover=what.takeover)
            elif isinstance(what, Closed):
                self.send_close(edge, what)
            else:
                self.presence.probed(edge.edge_id, what.channel, self.now_ms, alive=what.alive)
                self.drain()

    def close(self, edge: EdgeModel, channel: str, *, disconnected: bool) -> None:
        if channel in edge.open:
            client, connect_ms, _ = edge.open.pop(channel)
        else:
            client, _ = edge.pending.pop(channel)
            connect_ms = 0
        closed = Closed(channel, client, connect_ms, disconnected=disconnected and connect_ms > 0)
        edge.closings.append(closed)
        self.send(edge, closed)

    # What may happen

    def step(self) -> None:
        choice = self.random.random()
        edge = self.random.choice(self.edges)
        if choice < 0.35:
            self.channels += 1
            channel = f"c{self.channels}"
            client, takeover = self.random.choice(CLIENTS), self.random.random() < 0.5
            edge.pending[channel] = (client, takeover)
            self.send(edge, Asked(channel, client, takeover))
        elif choice < 0.5 and (edge.open or edge.pending):
            channel = self.random.choice([*edge.open, *edge.pending])
            self.close(edge, channel, disconnected=self.random.random() < 0.5)
        elif choice < 0.75:
            self.receive(edge)
        elif choice < 0.85:
            self.now_ms += self.random.choice([0, 10, 1_000, 2_900])
            if self.random.random() < 0.05:
                self.now_ms -= 10_000
            self.presence.expire(self.now_ms, self.random.choice([0, 1, 1_000]))
            self.drain()
        elif choice < 0.90:
            if edge.is_linked:
                edge.is_linked = False
                self.presence.break_edge(edge.edge_id, edge.incarnation, self.now_ms)
            else:
                self.link(edge)
        elif choice < 0.92:
            self.restart_edge(edge)
        elif choice < 0.94 and edge.is_linked:
            edge.is_known = False  # the edge lost its place: a new link without a break of either process
            self.link(edge)
        elif choice < 0.97:
            self.crash()
        elif edge.is_linked:
            self.presence.evict(INSTANCE, self.random.choice(CLIENTS))
            self.drain()

    def receive(self, edge: EdgeModel) -> None:
        if not (edge.is_linked and edge.inbox):
            return
        effect = edge.inbox.pop(0)
        channel = effect.channel_id
        if isinstance(effect, Decide):
            if channel in edge.pending:
                client, takeover = edge.pending.pop(channel)
                if effect.accepted:
                    edge.open[channel] = (client, effect.connect_time_ms, takeover)
                else:
                    closed = Closed(channel, client, 0, disconnected=False)
                    edge.closings.append(closed)
                    self.send(edge, closed)
        elif isinstance(effect, Evict):
            if channel in edge.open:
                self.close(edge, channel, disconnected=False)
        else:
            is_held = channel in edge.open or channel in edge.pending
            alive = is_held and self.random.random() < 0.5
            self.send(edge, Probed(channel, alive))
            if is_held and not alive:
                self.close(edge, channel, disconnected=False)

    def restart_edge(self, edge: EdgeModel) -> None:
        self.edges[self.edges.index(edge)] = self.new_edge(edge.edge_id)
        if edge.is_linked:
            self.presence.break_edge(edge.edge_id, edge.incarnation, self.now_ms)

    def crash(self) -> None:
        """Start a new session process; the events that were on their way may be lost."""
        self.drain()
        self.now_ms += self.random.choice([0, 500])
        stored = self.random.randint(max(0, len(self.events) - 6), len(self.events))
        del self.events[stored:]
        fold = Fold()
        for event in self.events:
            fold.apply(event)
        self.presence = Presence(edge_grace_ms=GRACE_MS)
        self.presence.restore(fold, self.now_ms)
        for edge in self.edges:
            # Some confirmations were on their way, too: such a closing is sent again.
            edge.closings = [
                c for c in edge.closings if not 0 <= c.confirmed_at <= stored or self.random.random() < 0.2
            ]
            edge.is_linked = False
            edge.is_known = False
        self.drain()

    def quiet(self) -> None:
        for edge in self.edges:
            if not (edge.is_linked and edge.is_known):
                self.link(edge)
        for _ in range(4):
            while any(edge.inbox for edge in self.edges):
                for edge in self.edges:
                    self.receive(edge)
            self.now_ms += GRACE_MS
            self.presence.expire(self.now_ms)
            self.drain()
            while self.presence.is_clearing:
                self.presence.expire(self.now_ms)
                self.drain()


@settings(max_examples=300)
@given(seed=st.integers(min_value=0, max_value=2**32), steps=st.integers(min_value=10, max_value=250))
def test_folded_events_are_the_open_connections_whatever_fails(seed: int, steps: int) -> None:
    world = World(seed)
    for _ in range(steps):
        world.step()
    world.quiet()

    stored: list[Event] = []  # without the repeats that JetStream drops
    seen: set[tuple[str, str]] = set()
    for event in world.events:
        if (event.channel_id, event.tag) not in seen:
            seen.add((event.channel_id, event.tag))
            stored.append(event)

    held = {channel for edge in world.edges for channel in edge.open}
    assert not any(edge.pending for edge in world.edges)
    assert {c.channel_id for c in world.presence.announced(INSTANCE)} == held
    fold = Fold()
    for event in stored:
        fold.apply(event)
    assert set(fold.opened) == held
    assert world.presence.is_synchronized

    tags: dict[str, list[str]] = {}
    for event in stored:
        tags.setdefault(event.channel_id, []).append(event.tag)
    for channel, sequence in tags.items():
        assert sequence in ([CONNECT], [CONNECT, TCPCLEAN], [CONNECT, DISCONNECT, TCPCLEAN]), channel
        assert (TCPCLEAN not in sequence) == (channel in held)
    times = [event.time_ms for event in stored]
    assert times == sorted(times)


@given(seed=st.integers(min_value=0, max_value=2**32))
def test_without_crashes_each_event_is_emitted_once_and_ids_are_never_shared(seed: int) -> None:
    world = World(seed)
    world.crash = lambda: None  # type: ignore[method-assign]
    online: dict[str, set[str]] = {client: set() for client in CLIENTS}
    checked = 0
    for _ in range(200):
        world.step()
        for event in world.events[checked:]:
            if event.tag == CONNECT:
                assert not online[event.client_id], "let in beside another"
                online[event.client_id].add(event.channel_id)
            elif event.tag == TCPCLEAN:
                online[event.client_id].remove(event.channel_id)
        checked = len(world.events)
    world.quiet()
    emitted = [(event.channel_id, event.tag) for event in world.events]
    assert len(emitted) == len(set(emitted))


@settings(max_examples=300)
@given(seed=st.integers(min_value=0, max_value=2**32), steps=st.integers(min_value=10, max_value=250))
def test_wills_published_are_those_of_connections_that_were_open_on_edges_given_up(seed: int, steps: int) -> None:
    world = World(seed)
    world.crash = lambda: None  # type: ignore[method-assign]
    for _ in range(steps):
        world.step()
    world.quiet()
    assert sorted(world.wills) == sorted(world.due)
    assert len(world.wills) == len(set(world.wills))
