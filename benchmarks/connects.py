"""Authenticated connections for each second of CPU time, in signature and in token mode.

Clients connect to the only edge of a mesh, get CONNACK and drop the connection again, many at a time. What counts is
the CPU time that each service spends on one of them: its inverse is what a core can do. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from tests.support import swarm
from tests.support.mesh import Mesh
from tests.support.swarm import SwarmClient

TICKS = os.sysconf("SC_CLK_TCK")
MODES = ("signature", "token")


def cpu_s(mesh: Mesh) -> dict[str, float]:
    """Return the CPU time of each process of a mesh so far, in seconds."""
    pids = json.loads((mesh.data / "run.json").read_text())["pids"]
    times = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        times[name] = (int(fields[11]) + int(fields[12])) / TICKS
    return times


async def measure(mesh: Mesh, mode: str, count: int, at_once: int) -> tuple[float, dict[str, float]]:
    """Connect `count` clients and return how many a second got in, and the CPU microseconds for each by process."""
    run = secrets.token_hex(3)
    ids = [mesh.client_id(f"{run}-{n}") for n in range(count)]
    if mode == "token":
        async with swarm.tokens_of(mesh) as tokens:
            made = [await tokens.apply("RW", f"{mesh.topic}/#") for _ in ids]
            clients = [
                SwarmClient(client_id, tokens.user, f"RW|{token}") for client_id, token in zip(ids, made, strict=True)
            ]
    else:
        clients = [SwarmClient(client_id, *mesh.login(client_id)) for client_id in ids]
    before, started = cpu_s(mesh), time.monotonic()
    for start in range(0, count, at_once):
        batch = clients[start : start + at_once]
        await swarm.connect(mesh, batch, at_once)
        for client in batch:
            client.close()
    elapsed = time.monotonic() - started
    await asyncio.sleep(1)  # the closings, too, are paid for
    after = cpu_s(mesh)
    return count / elapsed, {name: (after[name] - before[name]) / count * 1e6 for name in after}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=4000)
    parser.add_argument("--at-once", type=int, default=200)
    options = parser.parse_args()
    swarm.allow_sockets()
    console = Console()
    table = Table("mode", "connects/s", "edge CPU us", "per core", "auth CPU us", "per core", "session CPU us")
    with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
        mesh = Mesh(Path(directory) / "data", edges=1)
        mesh.start()
        try:
            for mode in MODES:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    rounds = [
                        runner.run(measure(mesh, mode, options.clients, options.at_once)) for _ in range(options.rounds)
                    ]
                costs = {name: statistics.median(cost[name] for _, cost in rounds) for name in rounds[0][1]}
                table.add_row(
                    mode,
                    f"{statistics.median(rate for rate, _ in rounds):,.0f}",
                    *(
                        text
                        for name in ("edge-0", "auth")
                        for text in (f"{costs[name]:.0f}", f"{1e6 / costs[name]:,.0f}")
                    ),
                    f"{sum(cost for name, cost in costs.items() if name.startswith('session')):.0f}",
                )
        finally:
            mesh.stop()
    console.print(table)


if __name__ == "__main__":
    main()
