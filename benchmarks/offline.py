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
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.offline_client import WAIT_S, Client, MissingError
from benchmarks.peers import Mesh
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import Login, raise_file_limit
from services.edge.mqtt import packets

EDGES = 2
AT_ONCE = 200
"""Clients that connect at the same time, while nothing is measured."""
PUBLISHERS = 8
WINDOW = 500
"""Publications of a publisher without PUBACK."""
LATENCY_RATE = 500
"""Kept P2P messages in a second."""


async def all_received(clients: Sequence[Client], wanted: Callable[[], int], total: int) -> None:
    """Wait until `wanted` returns `total`, as long as it grows and every client has its connection.

    Raises:
        MissingError: a client lost its connection, or nothing more came for `WAIT_S`.
    """
    before, deadline = -1, 0.0
    while (count := wanted()) < total:
        for client in clients:
            client.check(f"its messages ({count:,} of {total:,} of all clients are here)")
        now = time.perf_counter()
        if count > before:
            before, deadline = count, now + WAIT_S
        elif now > deadline:
            raise MissingError(f"{total - count:,} of {total:,} messages are missing: none came for {WAIT_S:g} s")
        await asyncio.sleep(0.05)


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
                if len(publisher.unanswered) >= WINDOW:
                    await publisher.until_unanswered(WINDOW - 1)
        await publisher.until_unanswered(0)

    async def _drain(self) -> dict[str, float]:
        """Have all clients connect at once; return how fast they get what waits for them."""
        began = time.perf_counter()
        await asyncio.gather(*(client.connect(self._port(number + 1)) for number, client in enumerate(self._clients)))
        connected = time.perf_counter() - began
        wanted = self._options.clients * self._options.messages
        await all_received(self._clients, lambda: sum(client.received for client in self._clients), wanted)
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
        await all_received([receiver, sender], lambda: len(latencies), total)
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
            except MissingError as error:
                sys.exit(f"the round failed: {error}")
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
