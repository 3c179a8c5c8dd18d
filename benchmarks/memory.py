"""Bytes of memory that an idle connection costs, over each transport: RSS of every process before and after.

Run `python -m benchmarks.memory --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.peers import Mesh
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import TRANSPORTS, Client, Login, connected, raise_file_limit
from services.edge.mqtt import packets

AT_ONCE = 100
"""Connections that are being opened at the same time."""
SOURCES = 8
"""Addresses of the loopback network that the clients come from: one has 28,000 ports."""
WARM_UP = 500
"""Connections opened and closed first, so that what the first ones cost the process is not counted."""


def rss(pids: dict[str, int]) -> dict[str, int]:
    """Return the resident memory of each process in bytes."""
    found = {}
    for name, pid in pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        found[name] = int(line.split()[1]) * 1024
    return found


async def open_many(
    base: int,
    transport: str,
    login: Login,
    count: int,
    prefix: str,
    *,
    keep_alive_s: int = 0,
    on_packet: Callable[[packets.Packet], None] | None = None,
) -> list[Client]:
    """Return `count` clients that were let in."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Client:
        async with gate:
            _, connect = login.connect(f"{prefix}{number:05d}", keep_alive_s)
            return await connected(base, transport, connect, on_packet, number % SOURCES)

    return await asyncio.gather(*(one(number) for number in range(count)))


async def close_all(clients: list[Client]) -> None:
    """Close clients and wait until the edge has."""
    for client in clients:
        client.transport.abort()
    await asyncio.gather(*(client.lost for client in clients))


async def settle(pids: dict[str, int]) -> dict[str, int]:
    """Return the resident memory once it has stopped to change."""
    last = rss(pids)
    for _ in range(20):
        await asyncio.sleep(1)
        now = rss(pids)
        if abs(sum(now.values()) - sum(last.values())) < 200_000:
            return now
        last = now
    return last


async def measure(mesh: Mesh, transport: str, count: int) -> dict[str, float]:
    """Return the bytes for each connection by process."""
    made = mesh.credentials
    login = Login(made["group"], made["access_key"], made["instance"], made["secret"])
    await close_all(await open_many(mesh.base, transport, login, WARM_UP, "warm"))
    await asyncio.sleep(2)
    pids = mesh.pids()
    before = await settle(pids)
    clients = await open_many(mesh.base, transport, login, count, "idle")
    after = await settle(pids)
    gone = sum(client.lost.done() for client in clients)
    if gone:
        raise SystemExit(f"{gone} of {count} connections were lost")
    await close_all(clients)
    return {name: (after[name] - before[name]) / count for name in pids}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transport", action="append", choices=TRANSPORTS, help="only these")
    parser.add_argument("--port-base", type=int, default=26_000)
    options = parser.parse_args()
    raise_file_limit()
    console = Console()
    results: dict[str, dict[str, float]] = {}
    for transport in options.transport or TRANSPORTS:
        rounds = []
        for _ in range(options.rounds):
            # A fresh mesh for each round: memory that a process once had does not come back.
            with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
                mesh = Mesh(Path(directory), options.port_base)
                try:
                    started = time.monotonic()
                    rounds.append(uvloop.run(measure(mesh, transport, options.connections)))
                    console.print(
                        f"{transport}: {sum(rounds[-1].values()):,.0f} bytes, {time.monotonic() - started:.0f} s"
                    )
                finally:
                    mesh.stop()
        results[transport] = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        results[transport]["sum"] = statistics.median(sum(each.values()) for each in rounds)
    report(console, results)
    record = {"commit": commit(), "machine": machine(), "options": vars(options), "bytes_per_connection": results}
    path = HERE / "results" / f"memory-{commit()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}")


def report(console: Console, results: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    names = list(next(iter(results.values())))
    table = Table("transport", *names, title="Resident bytes for each idle connection")
    for transport, values in results.items():
        table.add_row(transport, *(f"{values[name]:,.0f}" for name in names))
    console.print(table)


if __name__ == "__main__":
    main()
