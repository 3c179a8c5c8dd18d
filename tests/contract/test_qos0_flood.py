"""More of QoS 0 than goes through: it waits, and is not lost; QoS 1 and everything else goes on."""

from __future__ import annotations

import asyncio

import pytest

from services.common import qos0_window
from services.edge.mqtt import packets
from services.router import flooding
from tests.support import edge_world
from tests.support.edge_world import Device, world
from tests.support.router import FakeEdge, Mesh, mesh, until

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio

PAYLOAD_BYTES = 60_000
COUNT = 400
"""More bytes than an edge and a router hold."""


async def _flood(device: Device) -> None:
    for n in range(COUNT):
        await device.send(packets.Publish("fast/flood", b"%08d" % n + bytes(PAYLOAD_BYTES), 0, False, False, 0))


@pytest.mark.parametrize("is_told", [True, False])
async def test_an_edge_reads_from_other_publishers_while_qos_0_waits(is_told: bool) -> None:
    """Whether the router says that it wants no more, or confirms nothing."""
    async with world() as w:
        device, other = await w.connected(), await w.connected("GID_demo@@@2")
        w.router.confirms = False
        if is_told:
            w.router.to_send.holds_qos0 = True
            w.router.link.wake()
            await edge_world.until(lambda: not (w.router.to_send.ByteSize() or w.router.link.has_unconfirmed))
        async with asyncio.TaskGroup() as group:
            flood = group.create_task(_flood(device))
            for n in range(1, 201):
                await other.send(packets.Publish("fast/other", b"", 1, False, False, n))
                assert await other.receive() == packets.PubAck(n)
            assert not flood.done()  # its publisher is slowed
            flooded = [payload for topic, payload, *_ in w.router.published if topic == "fast/flood"]
            assert len(flooded) * PAYLOAD_BYTES <= (qos0_window.MOST_FRAMES + 1) * 2 * qos0_window.FRAME_BYTES
            assert not (is_told and flooded)
            w.router.confirms = True
            w.router.link.confirm(w.router.link.received_through)
            w.router.to_send.holds_qos0 = False
            w.router.link.wake()
        await edge_world.until(lambda: len(w.router.published) == COUNT + 200, 30)
        flooded = [payload[:8] for topic, payload, *_ in w.router.published if topic == "fast/flood"]
        assert flooded == [b"%08d" % n for n in range(COUNT)]


async def test_a_router_slows_qos_0_for_an_edge_that_is_behind_and_nothing_else(mesh: Mesh) -> None:
    async with (
        mesh.router(),
        FakeEdge(mesh, "one").running() as one,
        FakeEdge(mesh, "two").running() as two,
        FakeEdge(mesh, "three").running() as three,
    ):
        await mesh.serving()
        two.subscribe(1, "flood")
        three.subscribe(1, "p/a")
        await two.settled()
        await three.settled()
        two.is_confirming = False
        count = 0
        while not one.holds_qos0:
            one.publish("flood", b"%08d" % count + bytes(PAYLOAD_BYTES), qos=0)
            count += 1
            await one.settled()  # it is taken, and confirmed
            assert count * PAYLOAD_BYTES < 2 * flooding.HIGH_BYTES
        assert count * PAYLOAD_BYTES > flooding.HIGH_BYTES
        assert len(two.deliveries) < count // 2
        one.publish("p/a", b"x")
        await one.all_acknowledged()
        assert three.payloads == [b"x"]
        one.publish("flood", b"at QoS 1")
        await until(lambda: two.payloads[-1] == b"at QoS 1")
        one.subscribe(1, "p/b")
        await one.settled()
        one.router_incarnation = "another"  # the link begins anew
        one.cut()
        await until(lambda: one.links == 2)
        await until(lambda: one.holds_qos0)
        two.confirm()
        await until(lambda: not one.holds_qos0)
        await until(lambda: len(two.deliveries) >= count + 1)
        numbers = [payload[:8] for payload in two.payloads if len(payload) > PAYLOAD_BYTES]
        assert numbers == [b"%08d" % n for n in range(count)]


async def test_edges_are_not_slowed_for_one_that_is_gone(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        await mesh.serving()
        async with FakeEdge(mesh, "two").running() as two:
            two.subscribe(1, "flood")
            await two.settled()
            two.is_confirming = False
            while not one.holds_qos0:
                one.publish("flood", bytes(PAYLOAD_BYTES), qos=0)
                await one.settled()
        await until(lambda: not one.holds_qos0)


async def test_a_route_is_granted_after_all_deliveries_of_both_lanes(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one:
        await mesh.serving()
        one.subscribe(1, "#")
        for n in range(100):
            one.publish("p/a", b"0%d" % n + bytes(PAYLOAD_BYTES), qos=0)
            one.publish("p/a", b"1%d" % n, qos=1)
        assert await one.ask_route("p/a") == [1]
        assert sorted(payload[:1] for payload in one.payloads) == [b"0"] * 100 + [b"1"] * 100
