"""What hostile clients do to others: latency of bystanders and memory of the edge, before, during and after an attack.

Run `python -m benchmarks.hostile --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.memory import rss
from benchmarks.peers import Mesh
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import UPGRADE, Client, Login, connected, raise_file_limit
from services.edge.mqtt import codec, packets

PINGS_PER_S = 100
"""Messages of QoS 1 that a bystander publishes and another one gets."""
FLOODERS = 4
FLOOD_PAYLOAD = bytes(200)
SLOW_PAYLOAD = bytes(1000)
SLOW_PER_S = 2000
"""Messages for the reader that does not read."""

CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
"""The beginning of a TLS handshake."""


# --- bystanders ------------------------------------------------------------------------------------


class Bystanders:
    """A publisher and a subscriber on one edge, and the milliseconds that each message took between them."""

    def __init__(self) -> None:
        self.took_ms: list[float] = []
        self._publisher: Client
        self._subscriber: Client

    async def start(self, base: int, login: Login) -> None:
        """Connect both."""
        self._publisher = await connected(base, "tcp", login.connect("bystander1")[1])
        self._subscriber = await connected(base, "tcp", login.connect("bystander2")[1], self._on_packet)
        self._subscriber.send(codec.encode(packets.Subscribe(1, [("fast/bystander", 1)])))
        await asyncio.sleep(0.5)

    def _on_packet(self, packet: packets.Packet) -> None:
        if isinstance(packet, packets.Publish):
            self.took_ms.append((time.monotonic_ns() - int.from_bytes(packet.payload, "big")) / 1e6)
            self._subscriber.send(codec.encode(packets.PubAck(packet.packet_identifier)))

    async def ping(self, seconds: float) -> tuple[float, float, float]:
        """Exchange messages for a while and return p50, p99 and maximum in ms.

        Raises:
            SystemExit: one did not arrive.
        """
        self.took_ms = []
        count = int(seconds * PINGS_PER_S)
        start = time.monotonic()
        for n in range(count):
            await asyncio.sleep(max(0.0, start + n / PINGS_PER_S - time.monotonic()))
            payload = time.monotonic_ns().to_bytes(8, "big")
            self._publisher.send(codec.encode(packets.Publish("fast/bystander", payload, 1, False, False, n + 1)))
        for _ in range(3000):
            if len(self.took_ms) >= count:
                break
            await asyncio.sleep(0.01)
        else:
            sys.exit(f"a bystander lost {count - len(self.took_ms)} messages")
        ordered = sorted(self.took_ms)
        return statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1]


# --- attacks, each in a process of its own -----------------------------------------------------------


async def flood(base: int, login: Login, qos: int) -> None:
    """Publish as fast as the edge reads."""

    async def one(number: int) -> None:
        room = asyncio.Semaphore(1000)
        client = await connected(base, "tcp", login.connect(f"flood{number}")[1], lambda _: room.release())
        identifier = 0
        batch = 50
        while True:
            data = b""
            for _ in range(batch):
                if qos:
                    await room.acquire()
                    identifier = identifier % 65_535 + 1
                publication = packets.Publish("fast/flood", FLOOD_PAYLOAD, qos, False, False, identifier)
                data += codec.encode(publication)
            client.send(data)
            await client.drain()
            await asyncio.sleep(0)

    await asyncio.gather(*(one(number) for number in range(FLOODERS)))


async def slow_reader(base: int, login: Login) -> None:
    """Subscribe, then read nothing, while another client publishes for it."""
    client = await connected(base, "tcp", login.connect("slow")[1])
    client.send(codec.encode(packets.Subscribe(1, [("fast/slow", 1), ("fast/slow0", 0)])))
    await asyncio.sleep(0.5)
    client.transport.pause_reading()
    room = asyncio.Semaphore(1000)
    publisher = await connected(base, "tcp", login.connect("feeder")[1], lambda _: room.release())
    identifier = 0
    while True:
        for _ in range(SLOW_PER_S // 100):
            await room.acquire()
            identifier = identifier % 65_535 + 1
            publisher.send(codec.encode(packets.Publish("fast/slow", SLOW_PAYLOAD, 1, False, False, identifier)))
            publisher.send(codec.encode(packets.Publish("fast/slow0", SLOW_PAYLOAD, 0, False, False, 0)))
        await publisher.drain()
        await asyncio.sleep(0.01)


async def half_open(base: int, login: Login, count: int) -> None:
    """Open connections that never get to the end of a handshake, each again when the edge has closed it."""
    half_connect = login.connect("half")[1][:20]
    kinds = [(0, b""), (0, half_connect), (1, CLIENT_HELLO), (2, UPGRADE[:60])]
    gate = asyncio.Semaphore(200)

    async def one(number: int) -> None:
        offset, data = kinds[number % len(kinds)]
        while True:
            with contextlib.suppress(OSError):
                async with gate:
                    reader, writer = await asyncio.open_connection("127.0.0.1", base + offset)
                    writer.write(data)
                while await reader.read(4096):
                    pass
                writer.close()

    await asyncio.gather(*(one(number) for number in range(count)))


ATTACKS: dict[str, Callable[[int, Login, int], Awaitable[None]]] = {
    "flood-qos0": lambda base, login, _: flood(base, login, 0),
    "flood-qos1": lambda base, login, _: flood(base, login, 1),
    "slow-reader": lambda base, login, _: slow_reader(base, login),
    "half-open": half_open,
}


# --- the measurement -------------------------------------------------------------------------------


@dataclass
class Result:
    """One attack: p50, p99 and maximum in ms of the bystanders, and the memory of the edge in MB."""

    attack: str
    before: tuple[float, float, float]
    during: tuple[float, float, float]
    after: tuple[float, float, float]
    edge_before_mb: float
    edge_peak_mb: float
    edge_after_mb: float


async def measure(mesh: Mesh, attack: str, seconds: float, count: int) -> Result:
    """Measure one attack."""
    made = mesh.credentials
    login = Login(made["group"], made["access_key"], made["instance"], made["secret"])
    bystanders = Bystanders()
    await bystanders.start(mesh.base, login)
    await bystanders.ping(2)
    before = await bystanders.ping(seconds)
    edge = {"edge-0": mesh.pids()["edge-0"]}
    edge_before = edge_peak = rss(edge)["edge-0"]
    command = [sys.executable, "-m", "benchmarks.hostile", "--attack", attack]
    command += ["--port-base", str(mesh.base), "--connections", str(count)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(login)).encode())
    process.stdin.close()
    try:
        await asyncio.sleep(1)
        measuring = asyncio.ensure_future(bystanders.ping(seconds))
        while not measuring.done():
            await asyncio.wait([measuring], timeout=0.1)
            edge_peak = max(edge_peak, rss(edge)["edge-0"])
        during = measuring.result()
        if process.returncode is not None:
            sys.exit(f"the attack {attack} ended by itself")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await asyncio.sleep(2)
    after = await bystanders.ping(seconds)
    return Result(attack, before, during, after, edge_before / 1e6, edge_peak / 1e6, rss(edge)["edge-0"] / 1e6)


def main() -> None:
    """Measure and print, or be an attacker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--connections", type=int, default=10_000, help="half-open ones")
    parser.add_argument("--only", action="append", choices=ATTACKS, help="only these attacks")
    parser.add_argument("--port-base", type=int, default=26_000)
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    raise_file_limit()
    if options.attack:
        login = Login(**json.loads(sys.stdin.read()))
        uvloop.run(ATTACKS[options.attack](options.port_base, login, options.connections))  # type: ignore[arg-type]  # coroutines
        return
    console = Console()
    results: list[Result] = []
    for attack in options.only or ATTACKS:
        with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
            mesh = Mesh(Path(directory), options.port_base)
            try:
                results.append(uvloop.run(measure(mesh, attack, options.seconds, options.connections)))
            finally:
                mesh.stop()
    report(console, results)
    record = {
        "commit": commit(),
        "machine": machine(),
        "options": vars(options),
        "results": [asdict(result) for result in results],
    }
    path = HERE / "results" / f"hostile-{commit()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}")


def report(console: Console, results: list[Result]) -> None:
    """Print the table."""
    table = Table("attack", "before", "during", "after", "edge MB", title="Bystanders: p50 / p99 / max ms")

    def text(values: tuple[float, float, float]) -> str:
        return " / ".join(f"{value:.1f}" for value in values)

    for each in results:
        memory = f"{each.edge_before_mb:.0f}, peak {each.edge_peak_mb:.0f}, then {each.edge_after_mb:.0f}"
        table.add_row(each.attack, text(each.before), text(each.during), text(each.after), memory)
    console.print(table)


if __name__ == "__main__":
    main()
