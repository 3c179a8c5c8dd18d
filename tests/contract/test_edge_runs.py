"""Publications of QoS 1 and 2 that come in one read, on each of their ways."""

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


@pytest.mark.spec("MQTT-4.3.3-1")
@pytest.mark.spec("MQTT-4.3.3-2")
@pytest.mark.parametrize("topic", ["fast/x", "demo/x", "fast/p2p/GID_demo@@@9"])
@pytest.mark.parametrize("granted", [0, 1, 2])
async def test_exchanges_of_qos_2_that_come_together_happen_once(topic: str, granted: int) -> None:
    payloads = [b"%03d" % n for n in range(96)]
    async with world() as w:
        subscriber = await w.connected("GID_demo@@@2")
        publisher = await w.connected("GID_demo@@@1")
        await subscriber.send(packets.Subscribe(1, [("fast/x", granted)]))
        assert await subscriber.receive() == packets.SubAck(1, [granted])
        w.router.local_topics = {"fast/x": [w.router.target_of("fast/x")]}
        received = 0
        routed: list[bytes] = []
        for start in range(0, len(payloads), 8):
            identifiers = list(range(8, 0, -1))  # any order will do, and all are used again and again
            for dup in (False, True):
                numbered = zip(payloads[start : start + 8], identifiers, strict=True)
                await publisher.send(
                    *(packets.Publish(topic, each, 2, False, dup, number) for each, number in numbered)
                )
                assert [await publisher.receive() for _ in identifiers] == [
                    packets.PubRec(each) for each in identifiers
                ]
            await publisher.send(*map(packets.PubRel, identifiers))
            assert [await publisher.receive() for _ in identifiers] == [packets.PubComp(each) for each in identifiers]
            routed = [payload for _, payload, _, _, _ in w.router.published]
            expected = payloads[len(routed) + received : start + 8]  # here, since the router has no others
            numbers = range(received + 1, received + 1 + len(expected))
            received += len(expected)
            for number, payload in zip(numbers, expected, strict=True):
                publication = packets.Publish(topic, payload, granted, False, False, number if granted else 0)
                assert await subscriber.receive() == publication
            if granted == 1:
                await subscriber.send(*map(packets.PubAck, numbers))
            elif granted:
                await subscriber.send(*map(packets.PubRec, numbers))
                assert [await subscriber.receive() for _ in numbers] == [packets.PubRel(each) for each in numbers]
                await subscriber.send(*map(packets.PubComp, numbers))
        assert routed == payloads[: len(payloads) - received]
        assert bool(received) == (topic == "fast/x")
