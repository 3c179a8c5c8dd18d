"""What waits for frames to a router: which messages go first, what keeps its order, and who waits for room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import pytest
from typing_extensions import override

from services.common import qos0_window
from services.edge import flow, lanes, pace
from services.edge.columns import RETAIN
from services.edge.flow import Flow
from services.edge.hub import Hub
from services.edge.lanes import Lanes
from services.edge.local_delivery import LocalDelivery
from services.edge.mqtt.packets import PublishRun
from services.edge.policy import TopicRule
from services.edge.routes import LocalRoute
from services.edge.short_way import ShortWay
from tests.unit.edge.test_short_way import FakeClient, FakeRouter


class World:
    """Both lanes of a link that takes what it gets, one frame after the other."""

    def __init__(self) -> None:
        self.lanes = Lanes()
        self.rule = TopicRule("i", "p/a", 0)
        self.sequence = 0
        self.frame = 0

    def add(self, flags: int, rule: TopicRule | None = None, size: int = 0) -> int:
        self.sequence += 1
        self.lanes.add(rule or self.rule, "c", self.sequence, bytes(size), flags, None)
        return self.sequence

    def take(self) -> list[int] | None:
        """Return the sequences of the next frame."""
        columns = self.lanes.take(self.frame + 1)
        if columns is None:
            return None
        self.frame += 1
        return columns.sequences

    def frames(self) -> list[list[int]]:
        found = []
        while (sequences := self.take()) is not None:
            found.append(sequences)
        return found

    def flood(self) -> None:
        """Have more of QoS 0 than may be under way."""
        for _ in range(2 * qos0_window.MOST_FRAMES):
            self.add(0, TopicRule("i", "flood", 0), qos0_window.FRAME_BYTES)


@pytest.fixture
def world() -> World:
    return World()


def test_qos_1_and_2_go_first(world: World) -> None:
    for qos in (0, 1, 0, 2, 0):
        world.add(qos)
    assert world.frames() == [[2, 4], [1, 3, 5]]
    assert world.lanes.is_empty


def test_they_go_when_no_more_of_qos_0_may(world: World) -> None:
    world.flood()
    assert world.frames()
    assert not world.lanes.is_empty
    acknowledged = world.add(1)
    assert world.take() == [acknowledged]
    assert world.take() is None
    world.lanes.window.confirmed(world.frame)
    assert world.take()


def test_qos_0_is_not_cut_off(world: World) -> None:
    qos0 = world.add(0)
    found: list[int] = []
    while qos0 not in found:
        world.add(1)
        found = world.take() or []
        assert world.sequence < 100


def test_messages_of_ordered_topics_keep_their_order_whatever_their_qos(world: World) -> None:
    ordered = TopicRule("i", "o/a", 1, is_ordered=True)
    for qos in (0, 1, 0, 2):
        world.add(qos, ordered)
    assert world.frames() == [[1, 2, 3, 4]]


def test_nothing_overtakes_a_retained_message_of_its_topic(world: World) -> None:
    other = TopicRule("i", "p/b", 0)
    world.add(0 | RETAIN)
    world.add(1)
    world.add(1 | RETAIN)
    world.add(1, other)
    assert world.frames() == [[4], [1, 2, 3]]
    world.lanes.window.confirmed(world.frame)
    world.add(0)
    world.add(1)
    assert world.frames() == [[6], [5]]  # it went


def test_a_question_follows_all_messages_of_its_topic(world: World) -> None:
    route = LocalRoute("i", "p/a", is_logged=False)
    world.rule.route = route

    def asked(frame: int) -> list[LocalRoute]:
        columns = world.lanes.take(frame)
        return columns.questions if columns is not None else []

    world.add(1)
    world.lanes.ask(route)
    assert asked(1) == [route]
    world.add(0)
    world.add(1)
    world.lanes.ask(route)
    assert [asked(2), asked(3)] == [[], [route]]
    world.add(0, TopicRule("i", "flood", 0))
    world.lanes.ask(route)  # its messages went
    assert [asked(4), asked(5)] == [[route], []]


def test_a_question_follows_qos_1_also_when_qos_0_has_its_turn_before(world: World) -> None:
    route = LocalRoute("i", "p/a", is_logged=False)
    world.rule.route = route
    for frame in range(1, qos0_window.PATIENCE + 1):
        world.add(1)
        world.lanes.take(frame)
    world.add(0)
    world.add(1)
    world.lanes.ask(route)
    qos0, first = world.lanes.take(98), world.lanes.take(99)
    assert qos0 is not None
    assert (bytes(qos0.flags), qos0.questions) == (b"\0", [])
    assert first is not None
    assert first.questions == [route]


@pytest.mark.parametrize(("qos", "max_messages"), [(0, qos0_window.FRAME_MESSAGES), (1, lanes.FRAME_MESSAGES)])
def test_frames_are_bounded(world: World, qos: int, max_messages: int) -> None:
    for _ in range(2 * max_messages + 1):
        world.add(qos)
    assert [len(frame) for frame in world.frames()] == [max_messages, max_messages, 1]
    assert world.lanes.first.bytes == world.lanes.qos0.bytes == 0


def test_all_that_was_not_sent_is_found_again(world: World) -> None:
    for qos in (0, 1, 0, 2, 0 | RETAIN, 1):
        world.add(qos)
    entries = world.lanes.clear()
    assert sorted(entry.sequence for entry in entries) == [1, 2, 3, 4, 5, 6]
    assert world.lanes.is_empty
    assert world.frames() == []
    again = world.add(1)
    assert world.take() == [again]  # the retained message that it would follow is gone


# --- who waits for room ------------------------------------------------------------------------


class Publisher(FakeClient):
    """Notes whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms_awaited = 0

    @override
    def wait_for_room(self) -> None:
        self.rooms_awaited += 1

    @override
    def have_room(self) -> None:
        self.rooms_awaited -= 1

    @override
    def resume(self) -> None:
        pass


class Clock:
    """A loop that knows when something is to be called, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.now = 1000.0
        self.calls: list[tuple[float, Callable[[], None]]] = []
        if monkeypatch is not None:
            monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Note it."""
        self.calls.append((self.now + delay_s, call))

    def wait(self, seconds: float) -> None:
        """Have time pass."""
        self.now += seconds
        calls, self.calls = self.calls, []
        for at, call in calls:
            if at <= self.now:
                call()
            else:
                self.calls.append((at, call))


class Reading(World):
    """What waits, and who is read from."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        hub = Hub(cast("asyncio.AbstractEventLoop", clock))
        hub.router = FakeRouter()  # type: ignore[assignment]  # no more is needed
        short = ShortWay(hub, lambda _: None, lambda *_: None)
        local = LocalDelivery(hub, lambda _: None, lambda *_: None)
        self.flow = Flow(hub, self.lanes, short, local)

    def publish(self, client: Publisher, qos: int, size: int) -> None:
        self.add(qos, size=size)
        self.flow.took(client, qos, size)

    def confirm(self) -> None:
        self.lanes.window.confirmed(self.frame)
        self.flow.relieve()

    def carry(self) -> None:
        """Have all frames go that may."""
        while self.take():
            self.flow.relieve()
            self.confirm()


def test_only_those_who_send_qos_0_wait_for_its_room() -> None:
    world, flooding, careful = Reading(), Publisher(), Publisher()
    while not flooding.rooms_awaited:
        world.publish(flooding, 0, 1000)
        world.publish(careful, 1, 10)
    assert world.lanes.qos0.bytes < flow.QOS0_HIGH_BYTES + 10_000
    world.publish(flooding, 0, 1000)
    assert flooding.rooms_awaited == 1
    world.publish(careful, 1, 10)
    assert not careful.rooms_awaited
    assert not world.flow.is_congested
    while world.take():
        world.flow.relieve()
        world.confirm()
    assert not flooding.rooms_awaited


def test_they_go_on_a_few_at_a_time_and_all_of_them() -> None:
    world = Reading()
    publishers = [Publisher() for _ in range(100)]
    world.publish(publishers[0], 0, flow.QOS0_HIGH_BYTES)
    for publisher in publishers[1:]:
        world.publish(publisher, 0, 1000)
    assert all(publisher.rooms_awaited for publisher in publishers)
    went_on = []
    while world.take():
        world.flow.relieve()
        went_on.append(sum(not publisher.rooms_awaited for publisher in publishers))
        world.confirm()
    assert 0 < went_on[0] <= flow.QOS0_LOW_BYTES // flow.READ_BYTES
    assert not any(publisher.rooms_awaited for publisher in publishers)


def test_beside_qos_1_that_is_late_they_go_on_at_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    world, careful = Reading(clock), Publisher()
    flooding = [Publisher() for _ in range(10)]

    def flow_on() -> None:
        world.publish(careful, 1, 10)
        world.carry()

    def judge() -> None:
        for _ in range(100):
            world.flow.judge(True)

    judge()
    flow_on()
    for each in flooding:
        world.publish(each, 0, pace.QUANTUM)
    assert all(each.rooms_awaited for each in flooding[1:])
    brought = len(flooding)
    for _ in range(1000):
        clock.wait(0.01)
        judge()
        flow_on()
        assert careful.rooms_awaited == 0
        for each in flooding:
            if not each.rooms_awaited:
                world.publish(each, 0, pace.QUANTUM)
                brought += 1
    bound = (clock.now - 1000) * pace.LEAST_RATE / pace.QUANTUM
    assert 0.5 * bound < brought <= bound + len(flooding) + 1
    assert sum(each.rooms_awaited for each in flooding) == len(flooding)


def test_they_all_go_on_when_qos_1_has_ended_whatever_was_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    world = Reading(clock)
    flooding = [Publisher() for _ in range(100)]
    for _ in range(100):
        world.flow.judge(True)
    world.publish(Publisher(), 1, 10)
    world.carry()
    for each in flooding:  # a debt of more than ten seconds
        world.publish(each, 0, pace.QUANTUM)
        world.carry()
    assert sum(each.rooms_awaited for each in flooding) > 90
    clock.wait(2 * (qos0_window.FLOW_S + flow.SETTLE_S))
    assert not any(each.rooms_awaited for each in flooding)


def test_everybody_waits_for_too_much_of_qos_1() -> None:
    world, publisher = Reading(), Publisher()
    world.publish(publisher, 1, flow.HIGH_BYTES)
    assert world.flow.is_congested
    assert not publisher.rooms_awaited
    while world.take():
        world.flow.relieve()
    assert not world.flow.is_congested


def test_qos_0_of_ordered_topics_counts_with_qos_1() -> None:
    world, publisher = Reading(), Publisher()
    world.rule.is_ordered = True
    world.publish(publisher, 0, flow.HIGH_BYTES)
    assert world.flow.is_congested


def test_runs_wait_with_qos_0(world: World) -> None:
    run = PublishRun("p/a", b"\x30\x06\x00\x03p/a1" * 3, 3, 1)
    world.lanes.add(world.rule, "c", 1, run.frames, 0, run)
    world.sequence = 1
    world.add(1)
    assert world.frames() == [[2], [1]]


def test_runs_of_qos_1_go_first_and_fill_a_frame_with_their_messages(world: World) -> None:
    count = lanes.FRAME_MESSAGES // 2
    run = PublishRun("p/a", b"\x32\x08\x00\x03p/a\x00\x011" * count, count, 1)
    world.add(0)
    for sequence in (10, 20, 30):
        world.lanes.add(world.rule, "c", sequence, run.frames, 1, run)
    assert world.frames() == [[10, 20], [30], [1]]


def test_a_question_follows_messages_that_wait_for_one_of_qos_0(world: World) -> None:
    route = world.rule.route = LocalRoute("i", "p/a", is_logged=False)
    world.flood()
    world.frames()
    world.add(RETAIN)
    world.add(1)  # behind it
    world.lanes.ask(route)
    assert world.take() is None
    assert world.lanes.qos0.open.questions == [route]
