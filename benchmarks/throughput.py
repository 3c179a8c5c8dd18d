"""Messages per second through the mesh, next to mosquitto, and CPU time per message of each service.

Run `python -m benchmarks.throughput --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
PAIRS = 50


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        name: chosen with `--row`.
        title: shown in the table.
        qos: of publisher and subscriber.
        topic: parent topic: `demo` is logged, `fast` is not.
        edges: how many edges the clients use; with two, publisher and subscriber are on different ones.
    """

    name: str
    title: str
    qos: int
    topic: str
    edges: int


ROWS = [
    Row("qos0", "QoS 0, no log, one edge", 0, "fast", 1),
    Row("qos0-two-edges", "QoS 0, no log, two edges", 0, "fast", 2),
    Row("qos1", "QoS 1, no log, one edge", 1, "fast", 1),
    Row("qos1-two-edges", "QoS 1, no log, two edges", 1, "fast", 2),
    Row("qos2", "QoS 2, no log, one edge", 2, "fast", 1),
    Row("qos0-logged", "QoS 0, logged, two edges", 0, "demo", 2),
    Row("qos1-logged", "QoS 1, logged, two edges", 1, "demo", 2),
]


@dataclass
class Result:
    """What one row gave: medians over the rounds."""

    row: str
    delivered_per_s: float
    peer_delivered_per_s: float | None
    p50_ms: float
    p99_ms: float
    cpu_us_per_message: dict[str, float]
    rounds: list[float] = field(default_factory=list)


def find_loader() -> str:
    """Return the path of mqload, built when its source is at hand.

    Raises:
        SystemExit: there is none.
    """
    if path := os.environ.get("MQLOAD") or shutil.which("mqload"):
        return path
    source = HERE.parent.parent / "shared" / "bench" / "mqload.c"
    if source.exists() and (compiler := shutil.which("cc") or shutil.which("gcc")):
        target = Path(tempfile.gettempdir()) / f"mqload-{os.getuid()}"
        subprocess.run([compiler, "-O2", "-std=gnu11", "-pthread", "-o", str(target), str(source)], check=True)
        return str(target)
    sys.exit("mqload is missing: set MQLOAD to its path, or put its source into ../shared/bench")


class Mesh:
    """A `weimq up` of its own."""

    def __init__(self, directory: Path, base: int) -> None:
        self.base = base
        self._data = directory / "data"
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "services.cli", "up", "--data", str(self._data),
                "--port-base", str(base), "--edges", "2",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "weimq ready":
                break
        else:
            sys.exit("the mesh did not start")
        self.credentials: dict[str, str] = json.loads(self._weimq("credentials", "--json"))
        self._weimq("topic", "create", "fast", "--no-log")

    def _weimq(self, *args: str) -> str:
        command = [sys.executable, "-m", "services.cli", *args, "--data", str(self._data)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def pids(self) -> dict[str, int]:
        """Return process ids by name."""
        return dict(json.loads((self._data / "run.json").read_text())["pids"])

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time of each process so far, in seconds."""
        return {name: _cpu_s(pid) for name, pid in self.pids().items()}

    def arguments(self, row: Row) -> list[str]:
        """Return what mqload needs to log in and to reach the edges of a row."""
        hosts = [f"127.0.0.1:{self.base}"]
        if row.edges > 1:
            hosts.append(f"127.0.0.1:{self.base + 20}")
        return [
            "-h", ",".join(hosts),
            "--client-id", self.credentials["group"] + "@@@%08d",
            "--user", f"Signature|{self.credentials['access_key']}|{self.credentials['instance']}",
            "--lmq-sign", self.credentials["secret"],
            "--topic", row.topic + "/bench/%d",
        ]  # fmt: skip

    def stop(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(30)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def mosquitto(port: int) -> Iterator[list[str] | None]:
    """Run mosquitto and yield mqload's arguments for it; None when it is not installed."""
    path = shutil.which("mosquitto")
    if path is None:
        yield None
        return
    process = subprocess.Popen([path, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield ["-h", f"127.0.0.1:{port}"]
    finally:
        process.terminate()
        process.wait(10)


def load(loader: str, arguments: list[str], row: Row, seconds: float) -> dict[str, Any]:
    """Run one measurement.

    Raises:
        SystemExit: a message was lost, repeated or reordered.
    """
    # An odd number of publishers puts publisher and subscriber of a pair on different edges.
    pairs = PAIRS + 1 if row.edges > 1 else PAIRS
    command = [
        loader, "throughput", "-P", str(pairs), "--qos", str(row.qos), "-t", str(seconds), "--warmup", "1",
        "--json", "-q", "--strict", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        sys.exit(f"{row.name}: mqload exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(mesh: Mesh, peer: list[str] | None, loader: str, row: Row, rounds: int, seconds: float) -> Result:
    """Measure a row, alternating with the peer."""
    ours: list[dict[str, Any]] = []
    theirs: list[float] = []
    costs: list[dict[str, float]] = []
    for _ in range(rounds):
        if peer is not None:
            theirs.append(load(loader, peer, row, seconds)["delivered_per_s"])
        before = mesh.cpu_s()
        result = load(loader, mesh.arguments(row), row, seconds)
        after = mesh.cpu_s()
        ours.append(result)
        costs.append({name: (after[name] - before[name]) / result["delivered"] * 1e6 for name in after})
    return Result(
        row=row.name,
        delivered_per_s=statistics.median(each["delivered_per_s"] for each in ours),
        peer_delivered_per_s=statistics.median(theirs) if theirs else None,
        p50_ms=statistics.median(each["latency"]["p50_us"] for each in ours) / 1000,
        p99_ms=statistics.median(each["latency"]["p99_us"] for each in ours) / 1000,
        cpu_us_per_message={name: round(statistics.median(cost[name] for cost in costs), 2) for name in costs[0]},
        rounds=[each["delivered_per_s"] for each in ours],
    )


def machine() -> dict[str, object]:
    """Name the machine."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}


def commit() -> str:
    """Return the commit that is measured."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="only these rows")
    parser.add_argument("--port-base", type=int, default=28_000)
    options = parser.parse_args()
    console = Console()
    loader = find_loader()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory, mosquitto(options.port_base + 90) as peer:
        mesh = Mesh(Path(directory), options.port_base)
        try:
            for row in ROWS:
                if not options.row or row.name in options.row:
                    console.print(f"measuring: {row.title} ...")
                    results.append(measure(mesh, peer, loader, row, options.rounds, options.seconds))
        finally:
            mesh.stop()
    report(console, results)
    record = {
        "commit": commit(),
        "machine": machine(),
        "options": vars(options),
        "results": [asdict(r) for r in results],
    }
    path = HERE / "results" / f"throughput-{commit()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}")


def report(console: Console, results: list[Result]) -> None:
    """Print the tables."""
    titles = {row.name: row.title for row in ROWS}
    speed = Table("row", "delivered/s", "mosquitto/s", "ratio", "p50 ms", "p99 ms", title="Messages")
    names = list(results[0].cpu_us_per_message) if results else []
    costs = Table("row", *names, "sum", title="CPU microseconds per delivered message")
    for result in results:
        peer = result.peer_delivered_per_s
        speed.add_row(
            titles[result.row],
            f"{result.delivered_per_s:,.0f}",
            f"{peer:,.0f}" if peer else "-",
            f"{result.delivered_per_s / peer:.2f}" if peer else "-",
            f"{result.p50_ms:.2f}",
            f"{result.p99_ms:.2f}",
        )
        values = result.cpu_us_per_message
        costs.add_row(titles[result.row], *(f"{values[name]:.1f}" for name in names), f"{sum(values.values()):.1f}")
    console.print(speed)
    console.print(costs)


if __name__ == "__main__":
    main()
