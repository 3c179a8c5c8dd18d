"""Bytes of memory that an offline session costs: RSS of every process before and after.

Each session has two subscriptions of QoS 1: a filter that all of them share, and one of its own.
Run `python -m benchmarks.session_memory --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.memory import AT_ONCE, settle
from benchmarks.peers import Mesh
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import Login, connected, raise_file_limit
from services.common.signature import sign
from services.edge.mqtt import codec, packets

WARM_UP = 1_000
"""Sessions made first, so that what the first ones cost the process is not counted."""


async def make_session(base: int, login: Login, device: str) -> None:
    """Connect with cleanSession 0, subscribe, and leave."""
    client_id = f"{login.group}@@@{device}"
    user = f"Signature|{login.access_key}|{login.instance}"
    password = sign(login.secret, client_id).encode()
    connect = codec.encode(packets.Connect(4, client_id, False, 0, user, password, None))
    subscribed = asyncio.Event()
    client = await connected(base, "tcp", connect, lambda _packet: subscribed.set())
    client.send(codec.encode(packets.Subscribe(1, [("demo/all/#", 1), (f"demo/own/{device}", 1)])))
    await subscribed.wait()
    client.send(codec.encode(packets.Disconnect()))
    await client.lost


async def make_sessions(base: int, login: Login, count: int, prefix: str) -> None:
    """Make `count` sessions whose clients are away."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            await make_session(base, login, f"{prefix}{number:06d}")

    await asyncio.gather(*(one(number) for number in range(count)))


async def measure(mesh: Mesh, count: int) -> dict[str, float]:
    """Return the bytes for each session by process."""
    made = mesh.credentials
    login = Login(made["group"], made["access_key"], made["instance"], made["secret"])
    await make_sessions(mesh.base, login, WARM_UP, "warm")
    pids = mesh.pids()
    before = await settle(pids)
    await make_sessions(mesh.base, login, count, "away")
    after = await settle(pids)
    return {name: (after[name] - before[name]) / count for name in pids}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--port-base", type=int, default=26_000)
    options = parser.parse_args()
    raise_file_limit()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
            mesh = Mesh(Path(directory), options.port_base)
            try:
                rounds.append(uvloop.run(measure(mesh, options.sessions)))
            finally:
                mesh.stop()
    results = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    console = Console()
    table = Table(*results, title=f"Resident bytes for each of {options.sessions:,} offline sessions")
    table.add_row(*(f"{value:,.0f}" for value in results.values()))
    console.print(table)
    record = {"commit": commit(), "machine": machine(), "options": vars(options), "bytes_per_session": results}
    path = HERE / "results" / f"session-memory-{commit()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
