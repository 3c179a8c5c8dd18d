"""Losses: stored before they are announced, announced again under the same id, and gathered when many wait."""

from __future__ import annotations

import pytest

from services.session.domain import losses as module
from services.session.domain.losses import Dropped, Event, Loss, Losses


def made(incarnation: str = "one") -> Losses:
    return Losses(lambda _delivery_id: "MQ_i_a", incarnation)


def dropped(first: int, count: int, client_id: str = "c", reason: str = "expired") -> list[Dropped]:
    return [Dropped("i", client_id, number, reason) for number in range(first, first + count)]


class Disk:
    """What checkpoints stored."""

    def __init__(self) -> None:
        self.rows: dict[int, Loss] = {}

    def checkpoint(self, losses: Losses) -> None:
        changes = losses.take()
        self.rows.update((each.number, each) for each in changes.stored)
        for number in changes.forgotten:
            del self.rows[number]
        losses.note_stored()

    def restart(self, incarnation: str) -> Losses:
        losses = made(incarnation)
        losses.restore(sorted(self.rows.values()))
        return losses


def announced(events: list[Event]) -> list[int]:
    return sorted(n for event in events for each in event.losses for n in range(each.sequence, each.last + 1))


def test_nothing_is_announced_before_it_is_stored() -> None:
    losses, disk = made(), Disk()
    losses.add(dropped(1, 3))
    assert losses.has_changes
    changes = losses.take()
    assert not losses.ready
    assert [each.sequence for each in changes.stored] == [1, 2, 3]
    losses.note_stored()
    [event] = losses.ready
    assert {each.event_id for each in event.losses} == {event.event_id}
    disk.checkpoint(losses)
    assert list(losses.ready) == [event]


def test_a_restart_announces_again_under_the_same_ids() -> None:
    losses, disk = made(), Disk()
    losses.add(dropped(1, 250))
    losses.add(dropped(1, 2, reason="over_limit"))
    disk.checkpoint(losses)
    events = list(losses.ready)
    assert [len(each.losses) for each in events] == [100, 100, 50, 2]
    losses.forget(losses.ready.popleft())
    disk.checkpoint(losses)
    again = disk.restart("two")
    assert list(again.ready) == events[1:]
    again.add(dropped(900, 1))
    disk.checkpoint(again)
    assert again.ready[-1].event_id not in {each.event_id for each in events}
    while again.ready:
        again.forget(again.ready.popleft())
    disk.checkpoint(again)
    assert not disk.rows
    assert again.is_empty
    assert not again.has_changes


def test_of_very_many_those_of_a_client_log_and_reason_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    losses, disk = made(), Disk()
    losses.add(dropped(1, 10))
    losses.add(dropped(1, 1, "d"))
    disk.checkpoint(losses)
    losses.add(dropped(11, 5))
    disk.checkpoint(losses)
    assert len(disk.rows) == 4
    losses = disk.restart("two")
    done: list[Event] = []
    while not losses.is_empty:
        while losses.ready:
            done.append(losses.ready.popleft())
            losses.forget(done[-1])
        disk.checkpoint(losses)
    assert announced(done) == sorted([*range(1, 16), 1])
    assert not disk.rows
