"""The load generator: mqload, a C program that checks every payload it gets; ours where it is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import own_loader

_SOURCE = Path(__file__).parents[2] / "shared" / "bench" / "mqload.c"


class LoadError(Exception):
    """A run that failed: a message was lost, repeated or reordered, or a connection refused."""


OWN = (sys.executable, "-m", "benchmarks.own_loader")
"""The command of our own, which can do pairs at QoS 0 and 1 only."""


def find() -> tuple[str, ...]:
    """Return the command of mqload, built when its source is at hand; else that of our own."""
    if path := os.environ.get("MQLOAD") or shutil.which("mqload"):
        return (path,)
    if _SOURCE.exists() and (program := own_loader.build(_SOURCE, "-pthread")):
        return (str(program),)
    return OWN


def run(
    loader: Sequence[str], arguments: Iterable[str], pids: Iterable[int], *, timeout_s: float, is_strict: bool = True
) -> dict[str, Any]:
    """Run the loader once and return what it measured.

    Args:
        loader: its command.
        arguments: mode and options.
        pids: processes of the broker, whose CPU time and memory it adds up.
        timeout_s: seconds after which it is given up.
        is_strict: whether a message that was lost fails the run; QoS 0 beyond what goes through is dropped.

    Raises:
        LoadError: with its output.
    """
    command = [*loader, *arguments, "--json", "-q", "--pid", ",".join(map(str, pids))]
    if is_strict:
        command.append("--strict")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{loader[-1]} did not end within {timeout_s:.0f} s") from None
    if done.returncode and (is_strict or not done.stdout.startswith("{")):
        raise LoadError(f"{loader[-1]} exited with {done.returncode}: {_faults_in(done.stdout) or done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def faults(result: dict[str, Any]) -> str:
    """Return the counters of a run that are not as they must be; empty: it lost, repeated and reordered nothing."""
    names = (
        "error", "lost", "dup", "order_violations", "corrupt", "disconnects", "pub_rejected", "unacked", "conn_fail",
        "conn_refused", "conn_timeout", "conn_error", "conn_closed", "closed_while_held", "pingresp_late", "sub_fail",
    )  # fmt: skip
    return ", ".join(f"{name} {result[name]}" for name in names if result.get(name))


def _faults_in(text: str) -> str:
    try:
        return faults(json.loads(text))
    except ValueError:
        return ""
