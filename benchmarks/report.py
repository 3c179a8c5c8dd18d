"""Tables and the JSON of a benchmark run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Goal, Row
from services import compiled

HERE = Path(__file__).parent

Result = dict[str, Any]
"""Of one row: summary by name of the broker."""


def line(console: Console, row: Row, result: Result) -> None:
    """Print one row as soon as it is measured."""
    parts = []
    for name, summary in result.items():
        median = summary["median"]
        parts.append(f"{name} {_number(_main_figure(median))}" if median else f"[red]{name} failed[/red]")
        parts.extend(f"[red]{error}[/red]" for error in summary["errors"][:1])
    console.print(f"{row.title}: " + ", ".join(parts))


def _main_figure(median: dict[str, float]) -> float:
    return median.get("delivered_per_s", median.get("connects_per_s", 0))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def judge(goal: Goal, result: Result) -> str:
    """Return our figure against a goal, coloured."""
    ours = result["weimq"]["median"].get(goal.figure)
    if ours is None:
        return "[red]-[/red]"
    if not goal.peer:
        colour = "green" if ours <= goal.stretch else "yellow" if ours <= goal.must else "red"
        return f"[{colour}]{goal.figure} {ours:.2f}[/{colour}] (<= {goal.must:g} / {goal.stretch:g})"
    theirs = result.get(goal.peer, {}).get("median", {}).get(goal.figure)
    if not theirs:
        return "-"
    ratio = ours / theirs
    colour = "green" if ratio >= goal.stretch else "yellow" if ratio >= goal.must else "red"
    return f"[{colour}]{ratio:.2f} x {goal.peer}[/{colour}] (>= {goal.must:g} / {goal.stretch:g})"


def tables(console: Console, rows: list[Row], results: dict[str, Result]) -> None:
    """Print everything that was measured."""
    about = machine()
    console.print(f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, hot path {about['hot_path']}")
    speed = Table("row", "broker", "per second", "per CPU second", "p50 ms", "p99 ms", "goals: must / stretch")
    for row in rows:
        for name, summary in results[row.name].items():
            median = summary["median"]
            goals = "\n".join(judge(goal, results[row.name]) for goal in row.goals) if name == "weimq" else ""
            if not median:
                speed.add_row(row.title, name, "[red]failed[/red]", "", "", "", goals)
                continue
            speed.add_row(
                row.title if name == "weimq" else "",
                name,
                _number(_main_figure(median)),
                _number(median["delivered_per_cpu_s"]) if median.get("delivered_per_cpu_s") else "",
                f"{median['p50_ms']:.2f}",
                f"{median['p99_ms']:.2f}",
                goals,
                end_section=name == list(results[row.name])[-1],
            )
    console.print(speed)
    names = [name for name in _services(results) if not name.startswith("edge")]
    costs = Table("row", *names, "edges", "sum", title="CPU microseconds per delivered message (or connect)")
    for row in rows:
        values = results[row.name]["weimq"]["cpu_us_per_message"]
        if values:
            edges = sum(value for name, value in values.items() if name.startswith("edge"))
            shown = [f"{values.get(name, 0):.1f}" for name in names]
            costs.add_row(row.title, *shown, f"{edges:.1f}", f"{sum(values.values()):.1f}")
    console.print(costs)


def _services(results: dict[str, Result]) -> list[str]:
    for result in results.values():
        if result["weimq"]["cpu_us_per_message"]:
            return list(result["weimq"]["cpu_us_per_message"])
    return []


def machine() -> dict[str, object]:
    """Name the machine and what runs on it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((each.partition(":")[2].strip() for each in lines if "model name" in each), platform.machine())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "kernel": platform.release(),
        "hot_path": compiled.describe(),
    }


def commit() -> str:
    """Return the commit that is measured, with `-dirty` when files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    return done.stdout.strip() or "unknown"


def write(path: Path | None, settings: dict[str, object], results: dict[str, Result]) -> Path:
    """Keep the results; return where."""
    if path is None:
        path = HERE / "results" / f"bench-{commit()}.json"
    record = {"commit": commit(), "machine": machine(), "settings": settings, "results": results}
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
