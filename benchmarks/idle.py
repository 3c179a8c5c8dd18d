"""CPU time of a mesh whose clients only keep their connections alive.

Run `python -m benchmarks.idle --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.memory import close_all, open_many
from benchmarks.peers import Mesh, cpu_s
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import TRANSPORTS, Client, Login, raise_file_limit
from services.edge.mqtt import codec, packets

TICK_S = 0.1
SETTLE_S = 5.0
"""How long what connecting left to be done may take."""
PING = codec.encode(packets.PingReq())


async def keep_alive(clients: list[Client], every_s: float) -> None:
    """Have each client ping in its turn, for ever."""
    start = time.monotonic()
    sent = 0
    while True:
        due = int((time.monotonic() - start) / every_s * len(clients))
        for number in range(sent, due):
            clients[number % len(clients)].send(PING)
        sent = max(sent, due)
        await asyncio.sleep(TICK_S)


async def measure(mesh: Mesh, transport: str, count: int, seconds: float, every_s: int) -> dict[str, float]:
    """Return the CPU time of each process in percent of a core."""
    made = mesh.credentials
    login = Login(made["group"], made["access_key"], made["instance"], made["secret"])
    answers = 0

    def on_packet(packet: packets.Packet) -> None:
        nonlocal answers
        answers += isinstance(packet, packets.PingResp)

    clients = await open_many(mesh.base, transport, login, count, "idle", keep_alive_s=every_s, on_packet=on_packet)
    pinging = asyncio.ensure_future(keep_alive(clients, every_s))
    await asyncio.sleep(SETTLE_S)
    pids = mesh.pids()
    before, answered, start = cpu_s(pids), answers, time.monotonic()
    await asyncio.sleep(seconds)
    after, answered, took_s = cpu_s(pids), answers - answered, time.monotonic() - start
    pinging.cancel()
    gone = sum(client.lost.done() for client in clients)
    due = count * took_s / every_s
    if gone or answered < 0.95 * due:
        raise SystemExit(f"{gone} of {count} connections were lost; {answered} of {due:.0f} pings were answered")
    await close_all(clients)
    return {name: 100 * (after[name] - before[name]) / took_s for name in pids}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--keep-alive", type=int, default=60, help="seconds between two pings of a client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transport", action="append", choices=TRANSPORTS, help="only these; TCP otherwise")
    parser.add_argument("--port-base", type=int, default=26_000)
    options = parser.parse_args()
    raise_file_limit()
    results: dict[str, dict[str, float]] = {}
    for transport in options.transport or ["tcp"]:
        rounds = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
                mesh = Mesh(Path(directory), options.port_base)
                try:
                    work = measure(mesh, transport, options.connections, options.seconds, options.keep_alive)
                    rounds.append(uvloop.run(work))
                finally:
                    mesh.stop()
        results[transport] = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        results[transport]["sum"] = statistics.median(sum(each.values()) for each in rounds)
    report(Console(), results, options.connections)
    record = {"commit": commit(), "machine": machine(), "options": vars(options), "percent_of_a_core": results}
    path = HERE / "results" / f"idle-{commit()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def report(console: Console, results: dict[str, dict[str, float]], connections: int) -> None:
    """Print the table."""
    names = list(next(iter(results.values())))
    table = Table("transport", *names, title=f"CPU time with {connections:,} idle connections, % of a core")
    for transport, values in results.items():
        table.add_row(transport, *(f"{values[name]:.1f}" for name in names))
    console.print(table)


if __name__ == "__main__":
    main()
