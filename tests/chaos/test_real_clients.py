"""Real clients publish in order, so that what is received out of order is the mesh's doing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.edge.mqtt.packets import ConnAck, Connect, Packet, PubAck, PubComp, Publish, PubRec, PubRel
from tests.chaos.ledger import Lane
from tests.chaos.raw import Connection
from tests.chaos.real_clients import PahoPublisher

pytestmark = pytest.mark.asyncio

MESSAGES = 30
INTERVAL_S = 0.05
"""So that there are some more while paho waits a second for its next attempt."""
LATE_S = 0.5
"""How late the second CONNACK is at the most."""


class Server:
    """Breaks the first connection after some messages; its second CONNACK comes after the next message, or late."""

    def __init__(self) -> None:
        self.connects = 0
        self.received: list[int] = []
        self._was_published = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def take(self, connection: Connection, packets: list[Packet]) -> None:
        """Answer what came."""
        for packet in packets:
            match packet:
                case Connect():
                    self.connects += 1
                    self._task = asyncio.create_task(self._let_in(connection))
                case Publish() if self.connects == 1:
                    if packet.payload.endswith(b" 2"):
                        connection.abort()
                case Publish():
                    self.received.append(int(packet.payload.split()[1]))
                    self._was_published.set()
                    answer = PubAck if packet.qos == 1 else PubRec
                    connection.send([answer(packet.packet_identifier)])
                case PubRel():
                    connection.send([PubComp(packet.packet_identifier)])
                case _:
                    pass

    async def _let_in(self, connection: Connection) -> None:
        if self.connects > 1:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LATE_S):
                    await self._was_published.wait()
        connection.send([ConnAck(False, 0)])


@pytest.mark.parametrize("qos", [1, 2])
async def test_paho_does_not_overtake_itself_when_it_connects_again(qos: int) -> None:
    server, lane = Server(), Lane(0, "t", MESSAGES)
    listener = await asyncio.get_running_loop().create_server(lambda: Connection(server.take), "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        await asyncio.to_thread(PahoPublisher("p", port, lane, qos, INTERVAL_S).run)
    assert server.connects == 2
    assert server.received == list(range(MESSAGES))
    assert lane.acknowledged_count == MESSAGES
