"""`Inbound` and a stream that was deleted and made again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.router import inbound_stream
from services.router.full_logs import FullLogs
from services.router.inbound import Inbound
from services.router.router import Router

LOG = ("i", "")


@pytest.mark.asyncio
async def test_messages_of_the_stream_before_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = "first"

    async def open_consumer(_js: Any, _index: int, _count: int) -> tuple[str, str, int]:
        return "router-0", made, 0

    monkeypatch.setattr(inbound_stream, "open_consumer", open_consumer)
    source = Inbound(router=cast("Router", SimpleNamespace(full_logs=FullLogs(list))), catalog=lambda: None)
    source._client = cast("Any", SimpleNamespace(jetstream=lambda **_: None, is_connected=False))
    assert await source._open()
    source._on_way[1] = ("reply", 10, LOG)
    source._parking.depart(LOG)
    before = source.incarnation
    made = "second"
    assert not await source._open()
    assert source.incarnation == before
    source.acknowledge(1)
    assert await source._open()
    assert source.incarnation != before
