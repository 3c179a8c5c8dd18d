"""Watchers: order, bound, end."""

from __future__ import annotations

import pytest

from services.auth import watchers
from services.auth.domain.records import Instance
from services.auth.domain.resources import ChangeSet
from services.auth.domain.view import View
from services.auth.watchers import Watchers
from services.common.errors import NotServingError


def change(name: str) -> ChangeSet:
    return ChangeSet({name: Instance(instance_id=name)})


@pytest.mark.asyncio
async def test_changes_come_in_order_after_the_snapshot() -> None:
    view = View()
    view.resources.apply("instance.one", Instance(instance_id="one"))
    hub = Watchers(view)
    with hub.watching() as (snapshot, watcher):
        assert snapshot == change("one")
        for name in ("two", "three"):
            hub.tell(change(name))
        assert await watcher.next(5) == change("two")
        assert await watcher.next(5) == change("three")
        assert await watcher.next(0) is None


@pytest.mark.asyncio
async def test_a_watcher_that_does_not_read_is_ended_and_others_are_not() -> None:
    hub = Watchers(View())
    with hub.watching() as (_, slow), hub.watching() as (_, quick):
        for number in range(watchers.MAX_WAITING + 1):
            hub.tell(change(str(number)))
            assert await quick.next(5) == change(str(number))
        with pytest.raises(NotServingError, match="too slowly"):
            await slow.next(5)


@pytest.mark.asyncio
async def test_close_ends_every_watch() -> None:
    hub = Watchers(View())
    with hub.watching() as (_, watcher):
        hub.close()
        with pytest.raises(NotServingError, match="stopping"):
            await watcher.next(5)


@pytest.mark.asyncio
async def test_the_number_of_watchers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "MAX_WATCHERS", 1)
    hub = Watchers(View())
    with hub.watching(), pytest.raises(NotServingError), hub.watching():
        pass
    with hub.watching():
        pass
