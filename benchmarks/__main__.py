"""Measures the mesh next to mosquitto and nats-server's MQTT gateway, alternating in one run: `make bench`.

Prints medians, ratios, delivered messages per CPU second and latencies, and keeps them in `results/`; see README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import loader, peers, report
from benchmarks.rows import DEFAULT_ROWS, ROWS, Row


def figures(row: Row, result: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one run that the tables show."""
    found: dict[str, float] = {}
    if row.mode[0] == "throughput":
        found["delivered_per_s"] = result["delivered_per_s"]
        found["delivered_per_cpu_s"] = result.get("delivered_per_broker_cpu_s", 0)
        found["p50_ms"] = result["latency"]["p50_us"] / 1000
        found["p99_ms"] = result["latency"]["p99_us"] / 1000
        found["loader_cores"] = result["usage"]["loader_cpu_s"] / result["usage"]["wall_s"]
    else:
        found["connects_per_s"] = result["connects_per_s"]
        found["p50_ms"] = result["connack"]["p50_us"] / 1000
        found["p99_ms"] = result["connack"]["p99_us"] / 1000
    if row.mode[0] == "idle":
        found["kib_per_connection"] = result["mem_held"]["rss_delta_kb_per_conn"]
        usage = result["hold_usage"]
        found["idle_cpu_percent"] = 100 * usage["broker_cpu_s"] / usage["wall_s"]
    return found


class Measured:
    """The runs of one row with one broker."""

    def __init__(self) -> None:
        self.runs: list[dict[str, float]] = []
        self.costs: list[dict[str, float]] = []
        self.errors: list[str] = []

    def summary(self) -> dict[str, Any]:
        """Return medians, and what they come from."""
        names = self.runs[0] if self.runs else {}
        return {
            "median": {name: statistics.median(run[name] for run in self.runs) for name in names},
            "cpu_us_per_message": {
                name: round(statistics.median(cost[name] for cost in self.costs), 2) for name in self.costs[0]
            }
            if self.costs
            else {},
            "runs": self.runs,
            "errors": self.errors,
        }


def run_once(program: Sequence[str], row: Row, broker: peers.Broker, seconds: float, measured: Measured) -> None:
    """Measure a row once."""
    before = broker.cpu_s()
    try:
        result = loader.run(program, row.arguments(broker, seconds), broker.pids.values(), timeout_s=seconds + 180)
    except loader.LoadError as error:
        measured.errors.append(str(error))
        return
    after = broker.cpu_s()
    measured.runs.append(figures(row, result))
    count = result.get("delivered") or result.get("ok")
    if count:
        measured.costs.append({name: (after[name] - before[name]) / count * 1e6 for name in after})


@contextlib.contextmanager
def started(names: set[str], directory: Path, base: int) -> Iterator[dict[str, peers.Broker]]:
    """Run our mesh and the peers that are installed."""
    with contextlib.ExitStack() as stack:
        brokers = {"weimq": stack.enter_context(peers.weimq(directory, base, 2))}
        if "mosquitto" in names and (broker := stack.enter_context(peers.mosquitto(base + 90))):
            brokers["mosquitto"] = broker
        if "nats" in names and (broker := stack.enter_context(peers.nats(directory, base + 92))):
            brokers["nats"] = broker
        yield brokers


def main() -> int:
    """Measure and print; return 1 when a run of ours failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these rows")
    parser.add_argument("--all", action="store_true", help="every row")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row, alternating with the peers")
    parser.add_argument("--seconds", type=float, default=3, help="length of one run")
    parser.add_argument("--no-peers", action="store_true", help="our mesh alone")
    parser.add_argument("--port-base", type=int, default=28_000)
    parser.add_argument("--output", type=Path, help="where the JSON goes instead of results/")
    options = parser.parse_args()
    wanted = [row for row in ROWS if options.all or row.name in (options.rows or DEFAULT_ROWS)]
    console = Console()
    program = loader.find()
    names = set() if options.no_peers else {peer for row in wanted for peer in row.peers}
    results: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="weimq-bench-") as name,
        started(names, Path(name), options.port_base) as all_,
    ):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(
                "", total=sum(options.rounds * (1 + len(set(r.peers) & set(all_))) for r in wanted)
            )
            for row in wanted:
                brokers = [all_["weimq"], *(all_[peer] for peer in row.peers if peer in all_)]
                measured = {broker.name: Measured() for broker in brokers}
                for _ in range(options.rounds):
                    for broker in brokers:
                        progress.update(task, description=f"{row.title}: {broker.name}")
                        run_once(program, row, broker, options.seconds, measured[broker.name])
                        progress.advance(task)
                results[row.name] = {name: each.summary() for name, each in measured.items()}
                report.line(console, row, results[row.name])
    report.tables(console, wanted, results)
    settings = {"rounds": options.rounds, "seconds": options.seconds, "rows": [row.name for row in wanted]}
    path = report.write(options.output, settings, results)
    console.print(f"written to {path}")
    return int(any(result["weimq"]["errors"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
