"""What a stored message costs by how safe it is: JetStream's `sync_interval` by default, `always`, and three replicas.

Writes to a stream as the router does (`LogWriter`): pipelined for the rate, one at a time for the latency. Run
`python -m benchmarks.durability`; the disk is that of the temporary directory, or of `--directory`. Ordered topics are
a case of their own in a cluster, where their messages are stored one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nats
import nats.errors
import uvloop
from nats.aio.client import Client
from nats.js import api
from rich.console import Console
from rich.table import Table

from benchmarks.report import HERE, commit, machine
from services.common.log_writer import LogWriter
from services.common.runtime import background

SERVER = Path(sys.prefix, "bin", "nats-server")
PAYLOAD = bytes(128)
START_S = 20.0
CASES = (
    ("1 node, sync_interval 2m (default)", 1, "", False),
    ("1 node, sync_interval always", 1, "always", False),
    ("3 nodes, R3, sync_interval 2m", 3, "", False),
    ("3 nodes, R3, ordered topic", 3, "", True),
)
"""Title, servers, `sync_interval`, and whether the topic is ordered."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def servers(directory: Path, *, count: int, sync: str) -> Iterator[list[str]]:
    """Run a NATS server, or a cluster of them; yields their URLs."""
    ports, routes = free_ports(count), free_ports(count)
    processes = []
    for n in range(count):
        home = directory / f"n{n}"
        home.mkdir()
        lines = [f"listen: 127.0.0.1:{ports[n]}", f"server_name: n{n}"]
        lines.append(f"jetstream {{ store_dir: '{home}'{f', sync_interval: {sync}' if sync else ''} }}")
        if count > 1:
            peers = ", ".join(f"nats-route://127.0.0.1:{port}" for port in routes)
            lines.append(f"cluster {{ name: c, listen: 127.0.0.1:{routes[n]}, routes: [{peers}] }}")
        (home / "nats.conf").write_text("\n".join(lines))
        log = (home / "log").open("wb")
        processes.append(subprocess.Popen([SERVER, "-c", home / "nats.conf"], stdout=log, stderr=log))
    try:
        yield [f"nats://127.0.0.1:{port}" for port in ports]
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def stream(client: Client, replicas: int) -> None:
    """Make the stream once the servers are ready."""
    config = api.StreamConfig(name="MQ_i_a", subjects=["mq.out.i.a"], num_replicas=replicas)
    async with asyncio.timeout(START_S):
        while True:
            try:
                await client.jetstream().add_stream(config)
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(0.1)
            else:
                return


async def ignore(_error: Exception) -> None:
    """Say nothing: the server is starting."""


async def connect(urls: list[str]) -> Client:
    """Connect once a server listens."""
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(OSError, nats.errors.Error, TimeoutError):
                return await nats.connect(urls, connect_timeout=1, allow_reconnect=False, error_cb=ignore)
            await asyncio.sleep(0.1)


async def measure(urls: list[str], replicas: int, seconds: float, *, ordered: bool) -> tuple[float, list[float]]:
    """Return messages a second when pipelined, and how long single ones took, in seconds."""
    client = await connect(urls)
    await stream(client, replicas)
    stored = 0
    single = asyncio.Event()

    def on_stored(_token: object, _sequence: int, _is_duplicate: bool) -> None:  # LogWriter's call
        nonlocal stored
        stored += 1
        single.set()

    writer = LogWriter(client, stored=on_stored, stream_tokens=4, is_ordered=lambda _lane: ordered)
    latencies = []
    async with background(writer.run()):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            single.clear()
            writer.write("mq.out.i.a", PAYLOAD, {"qoslevel": "1"}, 1)
            await single.wait()
            latencies.append(time.perf_counter() - began)
        before, began = stored, time.perf_counter()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while writer.backlog_messages < 8_192:
                writer.write("mq.out.i.a", PAYLOAD, {"qoslevel": "1"}, 1)
            await asyncio.sleep(0)
        rate = (stored - before) / (time.perf_counter() - began)
    await client.close()
    return rate, latencies


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--directory", type=Path, help="where the disk is")
    options = parser.parse_args()
    table = Table("JetStream", "messages/s, pipelined", "p50 of one, ms", "p99 of one, ms")
    results: dict[str, dict[str, float]] = {}
    for name, count, sync, ordered in CASES:
        rates, latencies = [], []
        for _ in range(options.rounds):
            with (
                tempfile.TemporaryDirectory(dir=options.directory) as directory,
                servers(Path(directory), count=count, sync=sync) as urls,
            ):
                rate, taken = uvloop.run(measure(urls, count, options.seconds, ordered=ordered))
            rates.append(rate)
            latencies += taken
        cut = statistics.quantiles(latencies, n=100)
        median = statistics.median(rates)
        results[name] = {"stored_per_s": median, "one_p50_ms": cut[49] * 1e3, "one_p99_ms": cut[98] * 1e3}
        table.add_row(name, f"{median:,.0f}", f"{cut[49] * 1e3:.2f}", f"{cut[98] * 1e3:.2f}")
    console = Console()
    console.print(table)
    rounds = {"rounds": options.rounds, "seconds": options.seconds}
    record = {"commit": commit(), "machine": machine(), "options": rounds, "median": results}
    path = HERE / "results" / f"durability-{commit()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
