"""The link of an edge: what is confirmed, and when."""

from __future__ import annotations

import asyncio

import pytest

from services.common.runtime import background
from services.session.edge_link import EdgeLink, FrameEvents
from weimq.session.v1 import session_pb2 as pb

pytestmark = pytest.mark.asyncio


async def test_an_acknowledgement_is_not_confirmed_before_the_edge_has_what_may_repeat_it() -> None:
    taken = asyncio.Event()
    written: list[pb.LinkResponse] = []
    requests: asyncio.Queue[pb.LinkRequest | None] = asyncio.Queue()

    def take(edge_link: EdgeLink, _request: pb.LinkRequest, events: FrameEvents) -> None:
        edge_link.hold_for_deliveries(events)
        taken.set()

    async def write(message: pb.LinkResponse) -> None:
        written.append(message)

    edge = EdgeLink("edge-1", "1", take=take, on_room=lambda: None)
    edge.outbox.add("channel", 1, "a", b"", 1, 0)
    requests.put_nowait(pb.LinkRequest(frame=1))
    async with background(edge.link.exchange(requests.get, write)), asyncio.timeout(30):
        await taken.wait()
        while not written:  # noqa: ASYNC110 - the writer's turn
            await asyncio.sleep(0)
        assert written[0].deliveries.delivery_ids == [1]
        assert edge.link.confirmed_through == 0
        requests.put_nowait(pb.LinkRequest(received_through=1))
        while edge.link.confirmed_through == 0:  # noqa: ASYNC110 - the reader's turn
            await asyncio.sleep(0)
