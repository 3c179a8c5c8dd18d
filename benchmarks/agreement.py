"""Compares our load generator with mqload on one mosquitto, in turns: `python -m benchmarks.agreement`.

Fails when messages a second, or what they cost the broker, differ by more than `--most` in the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from rich.console import Console
from rich.table import Table

from benchmarks import loader, peers

FIGURES = ("delivered_per_s", "delivered_per_broker_cpu_s")


def main() -> int:
    """Measure and print; return 1 when they differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--port", type=int, default=28_090)
    parser.add_argument("--most", type=float, default=0.1, help="difference that is allowed")
    options = parser.parse_args()
    reference = loader.find()
    if reference == loader.OWN:
        sys.exit("there is no mqload to compare with: set MQLOAD to its path")
    table = Table(
        "QoS", "Figure", "mqload", "ours", "ours / mqload", title=f"{options.rounds} rounds in turns, medians"
    )
    differ = False
    with peers.mosquitto(options.port) as broker:
        if broker is None:
            sys.exit("mosquitto is not installed")
        for qos in (0, 1):
            runs: dict[tuple[str, ...], list[dict[str, float]]] = {reference: [], loader.OWN: []}
            mode = ["throughput", "-h", *broker.hosts, "-P", str(options.pairs), "--qos", str(qos)]
            for _ in range(options.rounds):
                for program, found in runs.items():
                    arguments = [*mode, "-t", str(options.seconds)]
                    result = loader.run(program, arguments, broker.pids.values(), timeout_s=options.seconds + 120)
                    found.append({name: result[name] for name in FIGURES})
            for name in FIGURES:
                theirs, ours = (statistics.median(run[name] for run in runs[each]) for each in (reference, loader.OWN))
                table.add_row(str(qos), name, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs:.3f}")
                differ |= abs(ours / theirs - 1) > options.most
    Console().print(table)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
