"""What a message costs as things grow: payload, subscriptions, connections, edges, routers.

QoS 1 from publishers to subscribers, one for each, on a topic without a log; by default through the router. CPU
microseconds for each delivered message, by service. Run `python -m benchmarks.growth --help`; see README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import loader
from benchmarks.memory import close_all
from benchmarks.peers import FREE_TOPIC, Broker, Mesh
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import Client, Login, connected, raise_file_limit
from services.edge.mqtt import codec, packets

PAIRS = 50
FILTERS = 100
"""Subscriptions of one client that has nothing else to do."""
AT_ONCE = 100
"""Clients that connect at the same time."""


@dataclass(frozen=True)
class Case:
    """A point on one axis; what is not named is as in the others."""

    axis: str
    value: str
    payload: int = 64
    subscriptions: int = 0
    """Besides those of the pairs, in the same tree of topics; none of them matches."""
    connections: int = 2 * PAIRS
    edges: int = 2
    routers: int = 1


CASES = (
    *(Case("payload", f"{size} B", payload=size) for size in (64, 1024, 8192, 65_536)),
    *(Case("subscriptions", f"{count:,}", subscriptions=count) for count in (10, 100, 1000, 10_000)),
    *(Case("connections", f"{count:,}", connections=count) for count in (2, 100, 1000, 10_000)),
    *(Case("edges", str(count), edges=count) for count in (1, 2, 3)),
    *(Case("routers", str(count), routers=count) for count in (1, 2)),
)


@contextlib.asynccontextmanager
async def company(mesh: Mesh, case: Case) -> AsyncGenerator[None]:
    """Keep the clients connected that have nothing to do with the messages."""
    made = mesh.credentials
    login = Login(made["group"], made["access_key"], made["instance"], made["secret"])
    gate = asyncio.Semaphore(AT_ONCE)
    acknowledged = 0

    def on_packet(packet: packets.Packet) -> None:
        nonlocal acknowledged
        acknowledged += isinstance(packet, packets.SubAck)

    async def one(number: int, filters: list[tuple[str, int]]) -> Client:
        async with gate:
            base = mesh.base + 20 * (number % case.edges)
            client = await connected(base, "tcp", login.connect(f"beside{number:05d}")[1], on_packet)
        if filters:
            client.send(codec.encode(packets.Subscribe(1, filters)))
        return client

    subscribers = [
        [(f"{FREE_TOPIC}/growth/beside{n}", 1) for n in range(first, min(first + FILTERS, case.subscriptions))]
        for first in range(0, case.subscriptions, FILTERS)
    ]
    idle = max(0, case.connections - 2 * PAIRS)
    clients = await asyncio.gather(*(one(n, filters) for n, filters in enumerate([*subscribers, *([[]] * idle)])))
    async with asyncio.timeout(60):
        while acknowledged < len(subscribers):  # noqa: ASYNC110 - the packets of many clients
            await asyncio.sleep(0.01)
    try:
        yield
    finally:
        await close_all(list(clients))


async def measure(
    program: Sequence[str], mesh: Mesh, broker: Broker, case: Case, options: argparse.Namespace
) -> dict[str, float]:
    """Run a case once."""
    pairs = min(PAIRS, case.connections // 2)
    pairs += 1 if case.edges > 1 and pairs % case.edges == 0 else 0  # on different edges
    arguments = [
        "throughput", "-P", str(pairs), "--qos", str(options.qos), "--payload", str(case.payload),
        "-h", ",".join(broker.hosts), *broker.identity, "--topic", f"{FREE_TOPIC}/growth/%d",
        "-t", str(options.seconds), "--warmup", "1",
    ]  # fmt: skip
    async with company(mesh, case):
        before = broker.cpu_s()
        result = await asyncio.to_thread(
            loader.run, program, arguments, broker.pids.values(), timeout_s=options.seconds + 60
        )
        after = broker.cpu_s()
    found = {"delivered_per_s": result["delivered_per_s"]}
    for name in after:
        kind = name.partition("-")[0]
        found[kind] = found.get(kind, 0.0) + (after[name] - before[name]) / result["delivered"] * 1e6
    return found


def run(console: Console, options: argparse.Namespace, results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Measure every case, and add it to the results; cases of the same mesh follow each other."""
    program = loader.find()
    cases = [case for case in CASES if case.axis in options.axes]
    for edges, routers in sorted({(case.edges, case.routers) for case in cases}):
        with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
            mesh = Mesh(Path(directory), options.port_base, edges, routers)
            try:
                mesh.command("instance", "set", mesh.credentials["instance"], "--max-subscriptions", str(FILTERS))
                broker = mesh.broker()
                for case in cases:
                    if (case.edges, case.routers) == (edges, routers):
                        runs = [
                            uvloop.run(measure(program, mesh, broker, case, options)) for _ in range(options.rounds)
                        ]
                        medians = {name: statistics.median(each.get(name, 0.0) for each in runs) for name in runs[0]}
                        results.setdefault(case.axis, {})[case.value] = medians
                        console.print(f"{case.axis} {case.value}: {medians['delivered_per_s']:,.0f}/s")
            finally:
                mesh.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    axes = list(dict.fromkeys(case.axis for case in CASES))
    parser.add_argument("--axes", nargs="+", choices=axes, default=axes, help="only these")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3, help="length of one run")
    parser.add_argument("--qos", type=int, default=1, choices=(0, 1, 2))
    parser.add_argument("--port-base", type=int, default=28_000)
    parser.add_argument("--output", type=Path, help="where the JSON goes instead of results/")
    options = parser.parse_args()
    raise_file_limit()
    console = Console()
    started = time.monotonic()
    results: dict[str, dict[str, dict[str, float]]] = {}
    try:
        run(console, options, results)
    finally:  # what was measured counts, even when a mesh does not start
        show(console, options, results, time.monotonic() - started)


def show(
    console: Console, options: argparse.Namespace, results: dict[str, dict[str, dict[str, float]]], took_s: float
) -> None:
    """Print and write what was measured."""
    services = ["edge", "router", "session", "auth", "nats", "status"]
    table = Table("", "", "delivered/s", *services, title="CPU microseconds for each delivered message")
    for axis in options.axes:
        for case in CASES:
            values = results.get(axis, {}).get(case.value) if case.axis == axis else None
            if values:
                costs = [f"{values.get(name, 0):.1f}" for name in services]
                table.add_row(axis, case.value, f"{values['delivered_per_s']:,.0f}", *costs)
    console.print(table)
    path = options.output or HERE / "results" / f"growth-{commit()}.json"
    settings = {name: getattr(options, name) for name in ("axes", "rounds", "seconds", "qos")}
    record = {"commit": commit(), "machine": machine(), "settings": settings, "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}; took {took_s:.0f} s")


if __name__ == "__main__":
    main()
