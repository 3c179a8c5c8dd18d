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
    def __init__(self) -> None:
        self.pulse = Pulse()
        self.waiting: dict[int, Unacknowledged] = {}
        self.sequence = 0

    def send(self, flags: int = 0) -> None:
        self.sequence += 1
        rule, columns = TopicRule("i", "p/a", flags), Columns()
        publication = Publish("p/a", b"", 1, False, False, self.sequence)
        self.waiting[self.sequence] = Unacknowledged(FakeClient(), rule, publication, 1)
        columns.add(rule, "c", self.sequence, b"", 1)
        self.pulse.sent(columns, self.waiting)

    def is_late(self) -> bool:
        self.pulse.look(self.waiting)
        return self.pulse.is_late

    def wait(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.monotonic() + seconds
        monkeypatch.setattr(time, "monotonic", lambda: now)


@pytest.fixture
def world() -> World:
    return World()


def test_what_takes_long_is_late_until_one_does_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send()
    world.wait(1.5 * pulse.LATE_S, monkeypatch)
    world.send()
    assert world.is_late()
    del world.waiting[1]
    assert world.is_late()
    world.send()
    world.waiting.pop(3)
    assert not world.is_late()


def test_what_the_network_takes_is_not_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(seconds: float) -> bool:
        world.send()
        world.wait(seconds, monkeypatch)
        world.waiting.clear()
        return world.is_late()

    network_s = 2 * pulse.LATE_S
    assert take(network_s)
    assert not take(network_s)
    assert not take(network_s + 0.5 * pulse.LATE_S)
    assert take(network_s + 1.5 * pulse.LATE_S)
    assert not take(0.5 * pulse.LATE_S)
    assert take(network_s)


def test_nothing_is_late_when_nothing_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send()
    world.wait(1.5 * pulse.LATE_S, monkeypatch)
    world.waiting.clear()
    assert world.is_late()
    assert not world.is_late()


def test_what_is_never_acknowledged_does_not_count_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send()
    world.wait(1.5 * pulse.LATE_S, monkeypatch)
    assert world.is_late()
    world.wait(1.5 * pulse.LOST_S, monkeypatch)
    assert not world.is_late()


def test_what_waits_for_a_log_is_not_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send(FLAG_LOGGED)
    world.wait(1.5 * pulse.LATE_S, monkeypatch)
    assert not world.is_late()
