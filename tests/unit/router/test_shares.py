"""Messages of a shared subscription while the edges of its members come and go, against what was promised."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from services.router.edge_link import EdgeLink
from services.router.router import Router
from tests.unit.router.test_router import FakeLog, join, new_router, publish, take
from weimq.router.v1 import router_pb2

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 3)),
        st.tuples(st.just("publish"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["send", "confirm", "leave", "cut", "link"]), st.integers(0, 4)),
    ),
    max_size=60,
)


class World:
    """One publisher, and edges whose targets are all members of one shared subscription."""

    def __init__(self) -> None:
        self.router: Router = new_router(high_bytes=400, low_bytes=100)  # so that edges are congested at times
        self.router.begin(FakeLog())
        self.publisher = join(self.router, "publisher")
        self.edges: list[EdgeLink] = []
        self.confirmed: list[bytes] = []
        self.published: dict[int, int] = {}  # sequence to QoS
        self._sent: dict[EdgeLink, list[router_pb2.LinkResponse]] = {}
        self._joined = 0

    def join(self, members: int) -> None:
        self._joined += 1
        edge = join(self.router, f"edge-{self._joined}")
        targets = [
            router_pb2.Target(target_id=number + 1, instance_id="i", topic_filter="+", share_name="x")
            for number in range(members)
        ]
        take(edge, added_targets=targets)
        self.edges.append(edge)
        self._sent[edge] = []

    def publish(self, qos: int) -> None:
        sequence = len(self.published) + 1
        self.published[sequence] = qos
        publish(self.publisher, b"%d" % sequence, qos=qos, sequence=sequence)

    def act(self, name: str, number: int) -> None:
        if not self.edges:
            return
        edge = self.edges[number % len(self.edges)]
        if name == "send":
            self.send(edge)
        elif name == "confirm":
            self.confirm(edge)
        elif name == "leave":
            self.edges.remove(edge)
            before = self.router.shares.dropped_messages
            self.router.leave(edge)
            assert self.router.shares.dropped_messages == before or not self.edges
        else:
            self.router.pressure.linked(edge, is_linked=name == "link")

    def send(self, edge: EdgeLink) -> None:
        while (frame := edge.link._next_message()) is not None:
            if frame.frame:
                self._sent[edge].append(frame)

    def confirm(self, edge: EdgeLink) -> None:
        frames, self._sent[edge] = self._sent[edge], []
        for frame in frames:
            self.confirmed += frame.deliveries.payloads
            edge.link._drop_confirmed(frame.frame)

    def acknowledged(self) -> list[int]:
        frame = self.publisher.link._next_message()
        return list(frame.acknowledged_sequences) if frame is not None else []


@hypothesis.given(STEPS)
def test_each_message_is_with_one_member_or_dropped_for_want_of_any(steps: list[tuple[str, int]]) -> None:
    world = World()
    for name, number in steps:
        if name == "join":
            world.join(number)
        elif name == "publish":
            world.publish(number)
        else:
            world.act(name, number)
    while any(edge.pending_bytes for edge in world.edges):
        for edge in world.edges:
            world.send(edge)
            world.confirm(edge)
    assert len(set(world.confirmed)) == len(world.confirmed), "no member gets what another one has confirmed"
    kept = {sequence for sequence, qos in world.published.items() if qos}
    assert sorted(world.acknowledged()) == sorted(kept), "every publisher is answered, once"
    lost = kept - {int(payload) for payload in world.confirmed} - published_to_nobody(steps)
    assert len(lost) == world.router.shares.dropped_messages, "only what no member was left for is dropped"
    assert not world.publisher.is_held


def published_to_nobody(steps: list[tuple[str, int]]) -> set[int]:
    """Return the messages that were published while there was no member."""
    edges = sequence = 0
    found: set[int] = set()
    for name, _ in steps:
        if name == "join":
            edges += 1
        elif name == "leave" and edges:
            edges -= 1
        elif name == "publish":
            sequence += 1
            if not edges:
                found.add(sequence)
    return found
