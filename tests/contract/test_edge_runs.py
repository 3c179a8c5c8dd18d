"""Publications of QoS 1 that come in one read, on each of their ways."""

from __future__ import annotations

import pytest

from services.edge.mqtt import packets
from services.edge.routes import DELIVERED
from tests.support.edge_world import until, world

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


@pytest.mark.spec("MQTT-4.6.0-2")
@pytest.mark.parametrize("topic", ["fast/x", "demo/x", "fast/p2p/GID_demo@@@9"])
@pytest.mark.parametrize("granted", [0, 1])
async def test_publications_of_one_read_keep_their_order_on_every_way(topic: str, granted: int) -> None:
    payloads = [b"%03d" % n for n in range(96)]
    async with world() as w:
        subscriber = await w.connected("GID_demo@@@2")
        publisher = await w.connected("GID_demo@@@1")
        await subscriber.send(packets.Subscribe(1, [("fast/x", granted), ("demo/x", granted)]))
        assert await subscriber.receive() == packets.SubAck(1, [granted, granted])
        w.router.local_topics = {name: [w.router.target_of(name)] for name in ("fast/x", "demo/x")}
        for start in range(0, len(payloads), 8):
            identifiers = list(range(start + 8, start, -1))  # any order will do
            numbered = zip(payloads[start : start + 8], identifiers, strict=True)
            await publisher.send(*(packets.Publish(topic, each, 1, False, False, number) for each, number in numbered))
            assert [await publisher.receive() for _ in identifiers] == [packets.PubAck(each) for each in identifiers]
        routed = [payload for _, payload, _, _, _ in w.router.published]
        if topic == "fast/x":
            local = payloads[len(routed) :]
            assert routed + local == payloads
        else:
            await until(lambda: len(w.router.published) == len(payloads))
            assert routed == payloads
            local = [payload for _, payload, flags, _, _ in w.router.published if flags & DELIVERED]
        assert bool(local) == (topic != "fast/p2p/GID_demo@@@9")
        for number, payload in enumerate(local, 1):
            identifier = number if granted else 0
            assert await subscriber.receive() == packets.Publish(topic, payload, granted, False, False, identifier)
            if granted:
                await subscriber.send(packets.PubAck(identifier))
