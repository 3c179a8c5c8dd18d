"""Whether messages of QoS 1 and 2 are acknowledged in time."""

from __future__ import annotations

import time

import pytest

from services.edge import pulse
from services.edge.columns import Columns, Unacknowledged
from services.edge.mqtt.packets import Publish
from services.edge.policy import FLAG_LOGGED, TopicRule
from services.edge.pulse import Pulse
from tests.unit.edge.test_short_way import FakeClient


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pulse = Pulse()
        self.waiting: dict[int, Unacknowledged] = {}
        self.sequence = 0
        self._now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self._now)

    def send(self, flags: int = 0) -> None:
        self.sequence += 1
        rule, columns = TopicRule("i", "p/a", flags), Columns()
        publication = Publish("p/a", b"", 1, False, False, self.sequence)
        self.waiting[self.sequence] = Unacknowledged(FakeClient(), rule, publication, 1)
        columns.add(rule, "c", self.sequence, b"", 1)
        self.pulse.sent(columns, self.waiting)

    def look(self) -> bool | None:
        return self.pulse.look(self.waiting)

    def wait(self, seconds: float) -> None:
        self._now += seconds

    def take(self, seconds: float) -> bool | None:
        """Send a message and have it acknowledged after so long; return the judgement."""
        self.send()
        self.wait(seconds)
        self.waiting.clear()
        return self.look()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_what_takes_long_is_late_and_judged_once(world: World) -> None:
    assert world.look() is None
    world.send()
    assert world.look() is None
    world.wait(1.5 * pulse.LATE_S)
    world.send()
    assert world.look() is True
    assert world.look() is None
    del world.waiting[1]
    assert world.look() is None
    world.send()
    world.waiting.pop(3)
    assert world.look() is False
    assert world.look() is None


def test_what_the_network_takes_is_not_late(world: World) -> None:
    network_s = 2 * pulse.LATE_S
    assert world.take(network_s) is True
    assert world.take(network_s) is False
    assert world.take(network_s + 0.5 * pulse.LATE_S) is False
    assert world.take(network_s + 1.5 * pulse.LATE_S) is True
    assert world.take(0.5 * pulse.LATE_S) is False
    assert world.take(network_s) is True


def test_a_way_that_becomes_longer_is_known_after_some_minutes_and_not_by_many_messages(world: World) -> None:
    assert world.take(0.1 * pulse.LATE_S) is False
    for _ in range(10_000):
        assert world.take(1.5 * pulse.LATE_S) is True
    for _ in range(10):
        world.wait(60)
        world.take(1.5 * pulse.LATE_S)
    assert world.take(1.5 * pulse.LATE_S) is False


def test_what_is_never_acknowledged_does_not_count_for_ever(world: World) -> None:
    world.send()
    world.wait(1.5 * pulse.LATE_S)
    assert world.look() is True
    world.wait(1.5 * pulse.LOST_S)
    assert world.look() is None
    world.send()
    world.waiting.pop(2)
    assert world.look() is False


def test_what_waits_for_a_log_is_not_late(world: World) -> None:
    world.send(FLAG_LOGGED)
    world.wait(1.5 * pulse.LATE_S)
    assert world.look() is None
