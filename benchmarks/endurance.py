"""More than goes through, and for longer: `overload` (twice the peak) and `soak` (70 % of it, for half an hour).

Overload: of the processors, one half is the mesh's and the other the loaders', so that twice the load does not take
from the mesh what it needs to carry it. The peaks of QoS 1 and of QoS 0, each alone, are found; then twice as much is
offered: publishers that reach the peak of QoS 1 by themselves, beside as many at QoS 1, at QoS 0 at the same rate, and
at QoS 0 as fast as TCP takes them. Medians of some rounds count. Goodput is what is delivered, as a share of the peak
of its QoS: messages of QoS 0 cost a fraction of the others, and would otherwise hide a loss of those. It must stay; and
of QoS 1 must come a larger share of what is offered than of QoS 0. QoS 1 is offered by publishers with windows: at a
rate beyond what goes through, mqload writes late messages one by one, without a rest. So the loader of QoS 0 yields to
that of QoS 1, which would wait for it otherwise, and offer less than its peak.

Soak: memory of every process must be flat while messages flow and clients come and go. Run
`python -m benchmarks.endurance --help`; see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import loader, peers
from benchmarks.peers import FREE_TOPIC, Broker
from benchmarks.report import HERE, commit, machine
from benchmarks.rows import LOGGED_TOPIC, PAIRS

LEAST_GOODPUT = 0.9
"""Of the peak, under overload."""
LEAST_CARRIED = 0.95
"""Of the rate of a soak."""
GROWTH_KIB_PER_HOUR = 8 * 1024
"""What a process may grow in a soak: fragmentation, not a leak of a message or a connection."""
COLLECTED_KIB = {"nats": 10 * 1024}
"""What a process may have more besides, since it collects its garbage when it is twice what lives: in NATS up to 8 MiB
of the block that is written to and the ids of the last ten minutes, which come and go."""


class Memory:
    """Resident memory of every process over time, in KiB."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, dict[str, int]]] = []

    def peak(self) -> dict[str, int]:
        """Return the most that each process had."""
        return {name: max(each[name] for _, each in self.samples) for name in self.samples[0][1]}

    def growth(self) -> tuple[dict[str, float], float]:
        """Return what each process has grown by from the middle third to the last, by medians, and the hours between.

        Until then NATS forgets the message ids of the clients that came and went before, after ten minutes of thirty.
        """
        third = max(1, len(self.samples) // 3)
        middle, last = self.samples[-2 * third : -third] or self.samples[:1], self.samples[-third:]
        hours = (statistics.median(t for t, _ in last) - statistics.median(t for t, _ in middle)) / 3600
        grown = {
            name: statistics.median(e[name] for _, e in last) - statistics.median(e[name] for _, e in middle)
            for name in last[0][1]
        }
        return grown, hours


@contextmanager
def watched(broker: Broker, every_s: float) -> Iterator[Memory]:
    """Sample the memory of a broker while the body runs."""
    memory, done = Memory(), threading.Event()

    def sample() -> None:
        while True:
            memory.samples.append((time.monotonic(), broker.rss_kib()))
            if done.wait(every_s):
                return

    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sample)
        try:
            yield memory
        finally:
            done.set()
        sampling.result()


class Load:
    """Runs the loader against a mesh.

    Args:
        broker: the mesh.
        topic: parent topic.
    """

    def __init__(self, broker: Broker, topic: str) -> None:
        self._program = loader.find()
        self._broker = broker
        self._topic = topic

    def run(
        self, qos: int, seconds: float, *more: str, base: int = 0, is_strict: bool = True, yields: bool = False
    ) -> dict[str, Any]:
        """Send from `PAIRS` publishers to as many subscribers over two edges; returns what mqload says.

        Args:
            qos: of the messages.
            seconds: to measure.
            more: options of mqload.
            base: number of the first client.
            is_strict: whether a lost message fails the run.
            yields: whether other loaders have the CPU first.
        """
        arguments = [
            "throughput", "-P", str(PAIRS + 1), "--qos", str(qos), "-t", str(seconds), "--warmup", "1", "--drain", "10",
            "-h", ",".join(self._broker.hosts), *self._broker.identity, "--id-base", str(base),
            "--topic", f"{self._topic}/endurance{base}/%d", *more,
        ]  # fmt: skip
        pids = self._broker.pids.values()
        program = ("nice", "-n", "19", *self._program) if yields else self._program
        return loader.run(program, arguments, pids, timeout_s=seconds + 300, is_strict=is_strict)

    def churn(self, seconds: float, rate: int, base: int) -> dict[str, Any]:
        """Have clients come and go."""
        arguments = [
            "churn", "-n", "100", "-t", str(seconds), "--connect-rate", str(rate), "-h", ",".join(self._broker.hosts),
            *self._broker.identity, "--id-base", str(base),
        ]  # fmt: skip
        return loader.run(self._program, arguments, self._broker.pids.values(), timeout_s=seconds + 60, is_strict=False)


def overload(console: Console, broker: Broker, options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure the peak, then offer twice as much; returns the figures, and whether they are good."""
    load = Load(broker, FREE_TOPIC)

    def beside(qos: int, *more: str) -> list[dict[str, Any]]:
        """Return the results of QoS 1 and of others beside it."""
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(load.run, 1, options.seconds)
            other = pool.submit(load.run, qos, options.seconds, *more, base=1000, is_strict=qos > 0, yields=qos == 0)
            return [first.result(), other.result()]

    def alone(qos: int, *more: str) -> float:
        return float(load.run(qos, options.seconds, *more, is_strict=qos > 0)["delivered_per_s"])

    flood = ("--credit", "0")
    peaks: dict[int, list[float]] = {1: [alone(1), alone(1)], 0: [alone(0, *flood)]}
    rate = statistics.mean(peaks[1])
    kinds: dict[str, tuple[int, float, tuple[str, ...]]] = {
        "as many at QoS 1": (1, 0.0, ()),
        "QoS 0 at the rate of the peak": (0, rate, ("--rate", str(int(rate)))),
        "QoS 0 without bound": (0, 0.0, flood),
    }
    runs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in kinds}
    with watched(broker, 0.2) as memory:
        before = broker.rss_kib()
        for number in range(options.rounds):
            for name, (qos, _, more) in kinds.items():
                runs[name].append(beside(qos, *more))
            for qos, more in ((1, ()), (0, flood)):
                peaks[qos].append(alone(qos, *more))  # the machine may have become slower
            console.print(f"round {number + 1} of {options.rounds}")
    peak = {qos: statistics.median(each) for qos, each in peaks.items()}
    after = memory.peak()
    figures: dict[str, Any] = {"peaks_per_s": peaks, "rss_before_kib": before, "rss_peak_kib": after}
    columns = ("QoS 1/s", "of its peak", "PUBACK p50 / p99 ms", "others/s", "of what is offered", "goodput")
    table = Table("beside QoS 1", *columns, title="Overload")
    is_good = True
    for name, (qos, offered, _) in kinds.items():
        firsts, others_of = zip(*runs[name], strict=True)
        own = statistics.median(first["delivered_per_s"] for first in firsts)
        others = statistics.median(other["delivered_per_s"] for other in others_of)
        puback = [
            statistics.median(first["ack_latency"][each] / 1000 for first in firsts) for each in ("p50_us", "p99_us")
        ]
        share, others_share = own / peak[1], others / (offered or peak[qos])
        goodput = share + others / peak[qos]
        is_good &= goodput >= LEAST_GOODPUT and (qos > 0 or share >= others_share)
        figures[name] = {
            "qos1_per_s": own,
            "others_per_s": others,
            "puback_ms": puback,
            "lost": max(other.get("lost", 0) for other in others_of),
            "rounds": [
                {"qos1_per_s": first["delivered_per_s"], "others_per_s": other["delivered_per_s"]}
                for first, other in runs[name]
            ],
            "share": share,
            "others_share": others_share,
            "goodput": goodput,
        }
        puback_text = f"{puback[0]:.1f} / {puback[1]:.1f}"
        table.add_row(
            name, f"{own:,.0f}", f"{share:.0%}", puback_text, f"{others:,.0f}", f"{others_share:.0%}", f"{goodput:.0%}"
        )
    console.print(f"peaks: {peak[1]:,.0f}/s at QoS 1, {peak[0]:,.0f}/s at QoS 0")
    console.print(table)
    console.print("RSS, MiB: " + ", ".join(f"{n} {before[n] >> 10} -> {after[n] >> 10}" for n in before))
    return figures, is_good


def soak(console: Console, broker: Broker, options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Send 70 % of the peak for long; returns the figures, and whether memory is flat."""
    load = Load(broker, LOGGED_TOPIC if options.logged else FREE_TOPIC)
    # What is remembered in bounded number, as the channel ids of connections that ended, is filled up first:
    # until then it grows as it should, and hides what should not.
    filled = 0
    while filled < options.fill:
        came = load.churn(10, 100_000, 20_000)["cycles"]
        if not came:
            raise loader.LoadError("nobody can connect")
        filled += came
    console.print(f"{filled:,.0f} connections came and went")
    # The loader writes each message when it is due, which costs the mesh more than what windows bring together. So
    # the peak is what goes through when that is too much.
    limit = load.run(1, 5)["delivered_per_s"]
    peak = min(limit, load.run(1, 10, "--rate", str(int(limit)), is_strict=False)["delivered_per_s"])
    rate = int(options.share * peak)
    seconds = options.minutes * 60
    console.print(
        f"peak {peak:,.0f}/s, {limit:,.0f}/s with windows; {rate:,}/s for {options.minutes:g} minutes, "
        f"{options.churn} clients/s come and go"
    )
    with watched(broker, max(1.0, seconds / 360)) as memory, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load.churn, seconds, options.churn, 10_000) if options.churn else None
        result = load.run(1, seconds, "--rate", str(rate), is_strict=False)  # what is wrong is judged at the end
        churned = coming.result() if coming is not None else {}
    (grown, hours), last = memory.growth(), memory.samples[-1][1]
    allowed = {name: GROWTH_KIB_PER_HOUR * hours + COLLECTED_KIB.get(name, 0) for name in grown}
    table = Table("process", "RSS MiB at first", "at last", "KiB more in the last third", "allowed", title="Soak")
    for name, value in grown.items():
        colour = "green" if value <= allowed[name] else "red"
        first = memory.samples[0][1][name]
        table.add_row(
            name,
            f"{first / 1024:.1f}",
            f"{last[name] / 1024:.1f}",
            f"[{colour}]{value:,.0f}[/{colour}]",
            f"{allowed[name]:,.0f}",
        )
    console.print(table)
    latency, faults = result["latency"], loader.faults(result)
    carried = result["delivered_per_s"] / rate
    console.print(
        f"delivered {result['delivered']:,}, {carried:.1%} of the rate, p50 / p99 "
        f"{latency['p50_us'] / 1000:.2f} / {latency['p99_us'] / 1000:.2f} ms; {faults or 'nothing lost or repeated'}"
    )
    figures = {
        "rate_per_s": rate,
        "delivered": result["delivered"],
        "carried": carried,
        "faults": faults,
        "latency": latency,
        "connects": churned.get("cycles", 0),
        "grown_kib": grown,
        "allowed_kib": allowed,
        "samples": [(round(at - memory.samples[0][0], 1), each) for at, each in memory.samples],
    }
    is_flat = all(value <= allowed[name] for name, value in grown.items())
    return figures, is_flat and not faults and carried >= LEAST_CARRIED


def main() -> int:
    """Measure and print; return 1 when it is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("overload", "soak"))
    parser.add_argument("--seconds", type=float, default=10, help="length of a run under overload")
    parser.add_argument("--rounds", type=int, default=5, help="overload: rounds, of which the medians count")
    parser.add_argument("--minutes", type=float, default=30, help="length of a soak")
    parser.add_argument("--share", type=float, default=0.7, help="soak: of the peak")
    parser.add_argument("--logged", action="store_true", help="soak with a topic whose messages are kept")
    parser.add_argument("--churn", type=int, default=20, help="soak: clients that come and go in a second")
    parser.add_argument("--fill", type=int, default=80_000, help="soak: clients that come and go before it starts")
    parser.add_argument("--port-base", type=int, default=28_000)
    parser.add_argument("--output", type=Path, help="where the JSON goes instead of results/")
    options = parser.parse_args()
    console = Console()
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if options.mode == "overload" and half:
        os.sched_setaffinity(0, cores[:half])  # inherited by what starts from here on: the mesh
    with (
        tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory,
        peers.weimq(Path(directory), options.port_base, 2) as broker,
    ):
        if options.mode == "overload" and half:
            os.sched_setaffinity(0, cores[half:])
        figures, is_good = (overload if options.mode == "overload" else soak)(console, broker, options)
    path = options.output or HERE / "results" / f"{options.mode}-{commit()}.json"
    record = {"commit": commit(), "machine": machine(), "is_good": is_good, "results": figures}
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"{'good' if is_good else '[red]not as it must be[/red]'}; written to {path}")
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
