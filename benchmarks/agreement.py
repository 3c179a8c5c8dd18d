"""Compares our load generator with mqload on one mosquitto, in turns: `python -m benchmarks.agreement`.

Fails when messages a second, or what they cost the broker, differ by more than `--most` in the medians. mosquitto does
at QoS 1 what chance makes of it, 50,000/s in one run and 130,000/s in the next, as the loader happens to sleep or to be
awake when it writes: a few rounds say nothing. So mqload runs twice in a round, ours is compared with the median of all
its runs, and how far it agrees with itself is shown beside.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import loader, peers

FIGURES = ("delivered_per_s", "delivered_per_broker_cpu_s")


def main() -> int:
    """Measure and print; return 1 when they differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--port", type=int, default=28_090)
    parser.add_argument("--most", type=float, default=0.1, help="difference that is allowed")
    options = parser.parse_args()
    reference = loader.find()
    if reference == loader.OWN:
        sys.exit("there is no mqload to compare with: set MQLOAD to its path")
    programs = {"mqload": reference, "ours": loader.OWN, "mqload again": reference}
    title = f"{options.rounds} rounds in turns, medians"
    table = Table("QoS", "Figure", *programs, "ours / all of mqload", "mqload again / mqload", title=title)
    differ = False
    with peers.mosquitto(options.port) as broker:
        if broker is None:
            sys.exit("mosquitto is not installed")
        for qos in (0, 1):
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
            mode = ["throughput", "-h", *broker.hosts, "-P", str(options.pairs), "--qos", str(qos)]
            mode += ["-t", str(options.seconds), "--warmup", "0.5"]
            for _ in track(range(options.rounds), f"QoS {qos}", console=Console(stderr=True)):
                for name, program in programs.items():
                    result = loader.run(program, mode, broker.pids.values(), timeout_s=options.seconds + 120)
                    runs[name].append({each: result[each] for each in FIGURES})
            for figure in FIGURES:
                found = {name: statistics.median(run[figure] for run in runs[name]) for name in programs}
                both = statistics.median(run[figure] for run in runs["mqload"] + runs["mqload again"])
                ours, again = found["ours"] / both, found["mqload again"] / found["mqload"]
                table.add_row(
                    str(qos), figure, *(f"{each:,.0f}" for each in found.values()), f"{ours:.3f}", f"{again:.3f}"
                )
                differ |= abs(ours - 1) > options.most
    Console().print(table)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
