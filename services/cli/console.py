"""What `weimq up` shows: one line for each thing that a user would want to know."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from services.cli.process_log import Entry
from services.cli.supervisor import Report

_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


class UpReport(Report):
    """Prints what the supervisor tells: results on standard output, everything else on standard error.

    Args:
        endpoints: label -> address, shown when the mesh is ready.
        data: options that other commands need to find this mesh, such as `--data DIR`.
        logs: directory named in messages.
        default_instance: instance of clients whose user name names none; empty: they are refused.
    """

    def __init__(
        self, *, endpoints: Mapping[str, str], data: list[str], logs: Path, default_instance: str = ""
    ) -> None:
        self._endpoints = endpoints
        self._data = data
        self._logs = logs
        self._default_instance = default_instance
        self._out = Console(soft_wrap=True, highlight=False)
        self._err = Console(stderr=True, soft_wrap=True, highlight=False)
        self._is_ready = False
        self._is_stopping = False
        self._last_warnings: dict[str, Entry] = {}
        self._last_words: dict[str, list[str]] = {}

    @override
    def healthy(self, name: str, seconds: float) -> None:
        self._last_warnings.pop(name, None)
        self._note(name, f"healthy after {seconds:.1f} s", "green")

    @override
    def unhealthy(self, name: str) -> None:
        self._note(name, f"not healthy any more; see {self._logs / name}.log", "yellow")

    @override
    def exited(self, name: str, status: str, restart_s: float, last: Iterable[str]) -> None:
        self._note(name, f"{status}; starting it again in {restart_s:g} s", "red")
        lines = list(last)
        if lines != self._last_words.get(name):  # a crash loop says the same again and again
            self._last_words[name] = lines
            for line in lines:
                self._note(name, f"  {line}", "dim")

    @override
    def logged(self, name: str, entry: Entry) -> None:
        # While the mesh starts and stops, services miss each other: only errors are news then.
        if entry.level == "WARNING" and (not self._is_ready or self._is_stopping):
            self._last_warnings[name] = entry
            return
        self._note(name, f"{entry.level}: {entry.text}", _STYLES.get(entry.level, ""))

    @override
    def omitted(self, name: str, count: int) -> None:
        if self._is_ready and not self._is_stopping:
            self._note(name, f"... {count} more in {self._logs / name}.log", "dim")

    @override
    def waiting(self, names: list[str]) -> None:
        self._note("waiting", f"for {', '.join(names)}; logs are in {self._logs}", "yellow")
        for name in names:
            if entry := self._last_warnings.get(name):
                self._note(name, f"{entry.level}: {entry.text}", "dim")

    @override
    def ready(self) -> None:
        self._is_ready = True
        prefix = [_program(), "credentials", *self._data]
        sign = [_program(), "sign", "GID_demo@@@device1", *self._data]
        self._print("")
        for label, address in _shown(self._endpoints):
            self._print(f"  {label:<24}{address}")
        self._print("")
        self._print(f"  {'credentials':<24}{shlex.join(prefix)}")
        self._print(f"  {'first device':<24}{shlex.join(sign)}")
        if self._default_instance:
            make = ["instance", "create", self._default_instance, "--profile", "standard", "--anonymous"]
            self._print(f"  {'plain clients':<24}are in instance {self._default_instance}; if it is not there yet:")
            self._print(f"  {'':<24}{shlex.join([_program(), *make, *self._data])}")
        self._print(f"  {'stop':<24}Ctrl-C")
        self._print("")
        self._print("weimq ready")

    def starting(self, count: int, data: Path) -> None:
        """Say that the processes are being started."""
        self._note("weimq", f"starting {count} processes; data in {data}", "")

    def few_files(self, limit: int) -> None:
        """Say that the system allows few connections."""
        self._note("weimq", f"at most {limit:,} open files, so fewer clients: raise ulimit -n", "yellow")

    def pure(self, reason: str) -> None:
        """Say that the hot path is not compiled."""
        self._note("weimq", f"running in pure Python, which is slower: {reason} (make setup compiles)", "yellow")

    def stopping(self) -> None:
        """Say that the mesh was told to stop."""
        self._is_stopping = True
        self._note("weimq", "stopping; press Ctrl-C again to kill everything at once", "")

    def stopped(self) -> None:
        """Say that every process has ended."""
        self._note("weimq", "stopped", "")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more: the mesh goes on
            self._out.print(line, markup=False)
            self._out.file.flush()

    def _note(self, name: str, text: str, style: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._err.print(Text(f"{time.strftime('%H:%M:%S')} {name:<9}"), Text(text, style=style))


_LABELS = {
    "mqtt": ("MQTT", "{}"),
    "mqtts": ("MQTT over TLS", "{}"),
    "ws": ("MQTT over WebSocket", "ws://{}/mqtt"),
    "wss": ("MQTT over WSS", "wss://{}/mqtt"),
    "status_http": ("online query (HTTP)", "http://{}/route/clientId/get"),
    "auth_http": ("tokens (HTTP)", "http://{}/docs"),
    "auth": ("auth (gRPC)", "{}"),
    "session": ("session (gRPC)", "{}"),
    "router": ("router (gRPC)", "{}"),
    "status": ("status (gRPC)", "{}"),
    "nats": ("NATS", "nats://{}"),
}


_TRANSPORTS = ("mqtt", "mqtts", "ws", "wss")


def _shown(endpoints: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    edges = sorted({int(name.partition("-")[2] or 0) for name in endpoints if name.partition("-")[0] in _TRANSPORTS})
    names = [f"{label}-{edge}" if edge else label for edge in edges for label in _TRANSPORTS]
    for name in (*names, *(other for other in _LABELS if other not in _TRANSPORTS)):
        if address := endpoints.get(name):
            label, form = _LABELS[name.partition("-")[0]]
            yield label, form.format(address)


def _program() -> str:
    """Return how the user called this command."""
    path = Path(sys.argv[0])
    if path.name != "weimq":
        return "weimq"
    beside = Path.cwd() / ".venv" / "bin"
    return ".venv/bin/weimq" if path.absolute().parent == beside else sys.argv[0]
