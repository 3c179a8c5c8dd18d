"""Messages of clients that are away: how fast they are stored, and given out when all clients come back at once.

Persistent clients subscribe, each to a topic of its own, and leave; publishers (QoS 1) store messages for all of them;
then all connect again at the same moment, with and without the pacing of offline messages (30 every 5 s). Last, the
latency of P2P messages that the sender has kept (cleanSession=false, QoS 1) for a receiver that is online.

Run `python -m benchmarks.offline --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import cast

import uvloop
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from benchmarks.peers import Mesh
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import Login, raise_file_limit
from services.common.signature import sign
from services.edge.mqtt import codec, packets

EDGES = 2
AT_ONCE = 200
"""Clients that connect at the same time, while nothing is measured."""
PUBLISHERS = 8
WINDOW = 500
"""Publications of a publisher without PUBACK."""
LONGEST_S = 600.0
LATENCY_RATE = 500
"""Kept P2P messages in a second."""


class Client(asyncio.Protocol):
    """A persistent client of the bootstrap group.

    Attributes:
        received: messages so far.
        first_at: when the first one came, by `time.perf_counter`; 0: none has.
        begun_at: when it began to connect.
    """

    def __init__(self, login: Login, name: str, take: Callable[[packets.Publish], None] | None = None) -> None:
        self.client_id = f"{login.group}@@@{name}"
        user = f"Signature|{login.access_key}|{login.instance}"
        password = sign(login.secret, self.client_id).encode()
        self._hello = codec.encode(packets.Connect(4, self.client_id, False, 0, user, password, None))
        self._take = take
        self._decoder: codec.Decoder
        self._transport: asyncio.Transport
        self._answers: dict[type[object], asyncio.Event] = {}
        self.received = 0
        self.first_at = self.begun_at = 0.0
        self.unanswered: set[int] = set()
        self.room = asyncio.Event()
        self.lost = asyncio.Event()

    async def connect(self, port: int) -> None:
        """Connect and wait for CONNACK."""
        self.received, self.first_at, self.begun_at = 0, 0.0, time.perf_counter()
        self._decoder = codec.Decoder(1 << 20)
        self.lost.clear()
        answer = self._expect(packets.ConnAck)
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        await answer

    def _expect(self, kind: type[object]) -> Awaitable[bool]:
        event = self._answers[kind] = asyncio.Event()
        return asyncio.wait_for(event.wait(), LONGEST_S)

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1 and wait for SUBACK."""
        answer = self._expect(packets.SubAck)
        self._transport.write(codec.encode(packets.Subscribe(1, [(topic_filter, 1)])))
        await answer

    def publish(self, topic: str, payload: bytes, identifier: int) -> None:
        """Publish at QoS 1."""
        self.unanswered.add(identifier)
        self._transport.write(codec.encode(packets.Publish(topic, payload, 1, False, False, identifier)))

    async def leave(self) -> None:
        """Disconnect."""
        self._transport.write(codec.encode(packets.Disconnect()))
        self._transport.close()
        await self.lost.wait()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._hello)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    @override
    def data_received(self, data: bytes) -> None:
        answers = []
        for packet in self._decoder.feed(data):
            if isinstance(packet, packets.Publish):
                if not self.received:
                    self.first_at = time.perf_counter()
                self.received += 1
                if self._take is not None:
                    self._take(packet)
                answers.append(codec.encode(packets.PubAck(packet.packet_identifier)))
            elif isinstance(packet, packets.PubAck):
                self.unanswered.discard(packet.packet_identifier)
                self.room.set()
            else:
                if isinstance(packet, packets.ConnAck):
                    assert not packet.return_code, packet
                if (answer := self._answers.get(type(packet))) is not None:
                    answer.set()
        if answers:
            self._transport.write(b"".join(answers))


async def each(clients: Iterable[Client], work: Callable[[int, Client], Awaitable[None]]) -> None:
    """Do something with every client, some at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, client: Client) -> None:
        async with gate:
            await work(number, client)

    await asyncio.gather(*(one(number, client) for number, client in enumerate(clients)))


class Run:
    """One round on a mesh of its own."""

    def __init__(self, mesh: Mesh, options: argparse.Namespace) -> None:
        self._mesh = mesh
        self._options = options
        made = mesh.credentials
        self._login = Login(made["group"], made["access_key"], made["instance"], made["secret"])
        self._parent = str(made["topic"])
        self._clients = [Client(self._login, f"away-{number:06d}") for number in range(options.clients)]

    def _port(self, number: int) -> int:
        return self._mesh.base + 20 * (number % EDGES)

    async def measure(self) -> dict[str, float]:
        """Return every figure."""
        figures: dict[str, float] = {}
        await each(self._clients, self._begin)
        for pacing, batch in (("paced", 30), ("unpaced", 0)):
            self._mesh.command("instance", "set", self._login.instance, "--offline-batch-messages", str(batch))
            stored = await self._store()
            figures.setdefault("stored_per_s", stored)
            figures.update({f"{pacing}_{name}": value for name, value in (await self._drain()).items()})
        return figures | await self._kept()

    async def _begin(self, number: int, client: Client) -> None:
        await client.connect(self._port(number))
        await client.subscribe(f"{self._parent}/away/{number}")
        await client.leave()

    async def _store(self) -> float:
        """Publish for all clients while they are away; return messages stored a second."""
        publishers = [Client(self._login, f"publisher-{number}") for number in range(PUBLISHERS)]
        await asyncio.gather(*(each.connect(self._port(number)) for number, each in enumerate(publishers)))
        began = time.perf_counter()
        await asyncio.gather(*(self._publish(number, publisher) for number, publisher in enumerate(publishers)))
        rate = self._options.clients * self._options.messages / (time.perf_counter() - began)
        await asyncio.gather(*(each.leave() for each in publishers))
        return rate

    async def _publish(self, first: int, publisher: Client) -> None:
        identifier = 0
        for _ in range(self._options.messages):
            for number in range(first, self._options.clients, PUBLISHERS):
                identifier = identifier % 65_535 + 1
                publisher.publish(f"{self._parent}/away/{number}", b"%064d" % number, identifier)
                while len(publisher.unanswered) >= WINDOW:
                    publisher.room.clear()
                    await publisher.room.wait()
        while publisher.unanswered:
            publisher.room.clear()
            await publisher.room.wait()

    async def _drain(self) -> dict[str, float]:
        """Have all clients connect at once; return how fast they get what waits for them."""
        began = time.perf_counter()
        await asyncio.gather(*(client.connect(self._port(number + 1)) for number, client in enumerate(self._clients)))
        connected = time.perf_counter() - began
        wanted = self._options.clients * self._options.messages
        async with asyncio.timeout(LONGEST_S):
            while sum(client.received for client in self._clients) < wanted:  # noqa: ASYNC110 - no event for all
                await asyncio.sleep(0.05)
        took = time.perf_counter() - began
        first = sorted(client.first_at - client.begun_at for client in self._clients)
        await each(self._clients, lambda _, client: client.leave())
        return {
            "drained_per_s": wanted / took,
            "connected_s": connected,
            "first_p50_ms": first[len(first) // 2] * 1e3,
            "first_p99_ms": first[len(first) * 99 // 100] * 1e3,
        }

    async def _kept(self) -> dict[str, float]:
        """Return the latency of kept P2P messages, over two edges."""
        latencies: list[float] = []
        sent: dict[bytes, float] = {}

        def take(packet: packets.Publish) -> None:
            latencies.append(time.perf_counter() - sent[packet.payload])

        receiver, sender = Client(self._login, "receiver", take), Client(self._login, "sender")
        await receiver.connect(self._port(0))
        await sender.connect(self._port(1))
        topic = f"{self._parent}/p2p/{receiver.client_id}"
        total = int(self._options.seconds * LATENCY_RATE)
        began = time.perf_counter()
        for number in range(total):
            await asyncio.sleep(max(0.0, began + number / LATENCY_RATE - time.perf_counter()))
            payload = b"%064d" % number
            sent[payload] = time.perf_counter()
            sender.publish(topic, payload, number % 65_535 + 1)
        async with asyncio.timeout(60):
            while len(latencies) < total:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
        await asyncio.gather(receiver.leave(), sender.leave())
        cut = statistics.quantiles(latencies, n=100)
        return {"kept_p2p_p50_ms": cut[49] * 1e3, "kept_p2p_p99_ms": cut[98] * 1e3}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=30, help="for each client")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the P2P messages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port-base", type=int, default=26_000)
    options = parser.parse_args()
    raise_file_limit()
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
            mesh = Mesh(Path(directory), options.port_base, EDGES)
            try:
                rounds.append(uvloop.run(Run(mesh, options).measure()))
            finally:
                mesh.stop()
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    table = Table("Figure", "Median", title=f"{options.clients:,} clients away, {options.messages} messages for each")
    for name, value in medians.items():
        table.add_row(name, f"{value:,.1f}")
    console = Console()
    console.print(table)
    record = {"commit": commit(), "machine": machine(), "options": vars(options), "median": medians, "rounds": rounds}
    path = HERE / "results" / f"offline-{commit()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
