"""Inbound rates of an instance: who is beyond them is read more slowly, loses nothing and slows nobody else."""

from __future__ import annotations

import asyncio

import pytest

from services.edge.mqtt import packets
from tests.support.auth_for_edges import snapshot
from tests.support.edge_world import Device, World, world
from weimq.auth.v1 import auth_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


def _change_rates(w: World, messages: int = 0, size: int = 0) -> None:
    (instance,) = snapshot(auth_pb2.PROFILE_LMQ).instances
    instance.max_publish_rate = messages
    instance.max_publish_bytes_rate = size
    w.auth.tell(auth_pb2.WatchResourcesResponse(instances=[instance]))


async def _burst_s(device: Device, count: int, size: int) -> float:
    """Publish and return the seconds until the edge has read what follows."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await device.send(*(packets.Publish("fast/a", bytes(size), 0, False, False, 0) for _ in range(count)))
    await asyncio.sleep(0)  # PINGREQ in a read of its own, most times
    await device.send(packets.PingReq())
    assert await device.receive() == packets.PingResp()
    return loop.time() - started


@pytest.mark.parametrize("rates", [{"messages": 200}, {"size": 20_000}])
async def test_a_rate_takes_effect_on_a_live_connection_and_costs_no_message(rates: dict[str, int]) -> None:
    async with world() as w:
        device = await w.connected()
        other = await w.connected("GID_demo@@@2")
        _change_rates(w, **rates)
        sent = 0
        async with asyncio.timeout(30):
            while await _burst_s(device, 50, 100) < 0.1:
                sent += 50
        sent += 50
        # The other one has a rate of its own.
        await other.send(packets.PingReq())
        assert await other.receive() == packets.PingResp()
        _change_rates(w)
        async with asyncio.timeout(30):
            while await _burst_s(device, 50, 100) >= 0.1:
                sent += 50
        sent += 50
        async with asyncio.timeout(30):
            while len(w.router.published) < sent:  # noqa: ASYNC110 - what a fake noted has no event
                await asyncio.sleep(0.01)
        assert len(w.router.published) == sent


async def test_a_held_client_is_not_taken_for_a_silent_one() -> None:
    async with world() as w:
        _change_rates(w, size=2000)
        device = await w.connect(keep_alive_s=1)
        assert await device.receive() == packets.ConnAck(False, 0)
        async with asyncio.timeout(20):
            while await _burst_s(device, 60, 100) < 2:  # longer than the keep alive allows
                pass
        assert not w.session.closings
