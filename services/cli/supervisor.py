"""Runs processes until told to stop: restarts those that crash, stops them in order.

A child is in one of these states:

    starting --healthy--> healthy --(no longer SERVING)--> starting
       any --exits--> waiting --(back-off 0.2 s to 5 s)--> starting
       any --exits with 78--> every child is stopped: its settings are wrong, a restart can't help
       any --stop--> SIGTERM, SIGKILL after its `stop_s`
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Protocol

from grpc import aio

from services.cli import launcher
from services.cli.mesh import Process
from services.cli.ports import split_address
from services.cli.process_log import Entry, ProcessLog
from services.common.grpc_server import OPTIONS
from services.common.healthcheck import following
from services.common.runtime import EXIT_WRONG_SETTINGS, background, first_of

BACKOFF_FIRST_S = 0.2
BACKOFF_LAST_S = 5.0
STEADY_S = 10.0
"""A child that ran this long before it exited is restarted after the first back-off again."""

_LOG_INTERVAL_S = 0.2
_HEALTH_FAST_S = 0.2
_HEALTH_SLOW_S = 2.0
_HEALTH_TIMEOUT_S = 2.0
_CHANNEL_OPTIONS = [
    *OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),  # a child listens a second after its start; refusing costs nothing
]
_NATS = "nats://"
_FAULTS_WAIT_S = 10.0
_PROGRESS_S = 5.0
_MOST_LINES = 10
_STARTED = "service starting"


class Report(Protocol):
    """Who is told what happens; every call returns at once."""

    def healthy(self, name: str, seconds: float) -> None:
        """A child became healthy, `seconds` after it was started or was lost."""

    def unhealthy(self, name: str) -> None:
        """A healthy child runs but is not SERVING any more."""

    def exited(self, name: str, status: str, restart_s: float, last: Iterable[str]) -> None:
        """A child ended by itself; it is started again in `restart_s` seconds."""

    def logged(self, name: str, entry: Entry) -> None:
        """A child logged a line of level WARNING or above."""

    def omitted(self, name: str, count: int) -> None:
        """A child logged `count` more such lines than are shown."""

    def waiting(self, names: list[str]) -> None:
        """These children are not healthy yet; every few seconds until all are for the first time."""

    def ready(self) -> None:
        """Every child is healthy for the first time."""


class WrongSettingsError(Exception):
    """Services refused their settings.

    Attributes:
        faults: what they said, line by line.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Backoff:
    """How long to wait before a child that exited is started again."""

    def __init__(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    def after(self, ran_s: float) -> float:
        """Return the seconds to wait after a child that ran for `ran_s` seconds."""
        wait_s = BACKOFF_FIRST_S if ran_s >= STEADY_S else self._next_s
        self._next_s = min(wait_s * 2, BACKOFF_LAST_S)
        return wait_s


class Child:
    """One process and its restarts. Owned by the supervisor."""

    def __init__(self, spec: Process, logs: Path) -> None:
        self.spec = spec
        self.log = ProcessLog(logs, spec.name)
        self.process: asyncio.subprocess.Process | None = None
        self.is_healthy = False
        self.since = time.monotonic()
        """When it was started or stopped serving, by the monotonic clock."""
        self.last_lines: list[str] = []
        """The last lines of other forms than a log record, such as a traceback."""
        self.exit_status: int | None = None
        self.has_started = False
        """Whether it has accepted its settings."""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self.process.pid if self.process and self.process.returncode is None else None

    async def spawn(self) -> None:
        """Start the process.

        Raises:
            OSError: the system has no room for it.
        """
        output = self.log.open()
        self.last_lines = []
        self.exit_status = None
        self.has_started = False
        self.since = time.monotonic()
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(Path(launcher.__file__)),
                str(os.getpid()),
                *self.spec.argv,
                env=dict(self.spec.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops children in order
            )
        finally:
            os.close(output)

    async def wait(self) -> int:
        """Wait until the process ends and return its exit status; negative ones are signals."""
        if self.process is None:
            raise AssertionError("it was spawned")
        return await self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still runs."""
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def health(self) -> AsyncGenerator[bool]:
        """Yield whether what runs here serves, at least at each change, for ever."""
        if self.spec.health and not self.spec.health.startswith(_NATS):
            async with (
                aio.insecure_channel(self.spec.health, options=_CHANNEL_OPTIONS) as channel,
                contextlib.aclosing(following(channel)) as answers,
            ):
                async for answer in answers:
                    yield answer
        while True:
            answer = self.pid is not None and (not self.spec.health or await _nats_answers(self.spec.health))
            yield answer
            await asyncio.sleep(_HEALTH_SLOW_S if answer else _HEALTH_FAST_S)


async def _nats_answers(url: str) -> bool:
    host, port = split_address(url.removeprefix(_NATS))
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(_HEALTH_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return (await reader.readline()).startswith(b"INFO ")
            finally:
                writer.close()
    return False


class Supervisor:
    """Runs children until `run` is told to stop. Owned by one event loop.

    Args:
        processes: what to run.
        logs: directory of their logs.
        report: who is told.
        changed: called after a process was started, with the ids of those that run.
    """

    def __init__(
        self,
        processes: Iterable[Process],
        *,
        logs: Path,
        report: Report,
        changed: Callable[[dict[str, int]], None] = lambda _pids: None,
    ) -> None:
        self.children = [Child(spec, logs) for spec in processes]
        self._report = report
        self._changed = changed
        self._is_stopping = False
        self._is_ready = False
        self._refused = asyncio.Event()
        self._hurry = asyncio.Event()
        self._exits = asyncio.Condition()

    @property
    def unhealthy(self) -> list[str]:
        """Names of the children that are not healthy."""
        return [child.spec.name for child in self.children if not child.is_healthy]

    def hurry(self) -> None:
        """Do not wait for children any more: kill them."""
        self._hurry.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Start every child at once, keep them running until `stop` is set, then stop them in order.

        Raises:
            WrongSettingsError: a child exited with 78; the others were stopped.
        """
        work = [each(child) for child in self.children for each in (self._keep, self._watch_health)]
        faults: list[str] | None = None
        try:
            async with background(*work, self._follow_logs(), self._tell_progress()):
                await first_of(stop.wait(), self._refused.wait())
                if self._refused.is_set():
                    faults = await self._gather_faults()
                await self._stop_in_order()
        finally:
            for child in self.children:
                child.send(signal.SIGKILL)
        if faults is not None:
            raise WrongSettingsError(faults)

    async def _keep(self, child: Child) -> None:
        backoff = Backoff()
        while not self._is_stopping:
            started = time.monotonic()
            try:
                await child.spawn()
            except OSError as error:
                status, child.exit_status = f"could not be started: {error.strerror}", 1
            else:
                if self._is_stopping:  # meanwhile
                    child.send(signal.SIGKILL)
                self._changed(self._pids())
                child.exit_status = await child.wait()
                status = describe_exit(child.exit_status)
            child.is_healthy = False
            async with self._exits:
                self._exits.notify_all()
            if self._is_stopping:
                return
            self._read(child)
            if child.exit_status == EXIT_WRONG_SETTINGS:
                self._refused.set()
                return
            backoff_s = backoff.after(time.monotonic() - started)
            self._report.exited(child.spec.name, status, backoff_s, child.last_lines)
            await asyncio.sleep(backoff_s)

    def _pids(self) -> dict[str, int]:
        return {child.spec.name: child.pid for child in self.children if child.pid is not None}

    async def _watch_health(self, child: Child) -> None:
        async with contextlib.aclosing(child.health()) as answers:
            async for answer in answers:
                if child.is_healthy and not answer:
                    await asyncio.sleep(_HEALTH_FAST_S)  # when it has ended, that is what is told
                self._note_health(child, is_healthy=answer and child.pid is not None)

    def _note_health(self, child: Child, *, is_healthy: bool) -> None:
        if is_healthy != child.is_healthy and not self._is_stopping:
            child.is_healthy = is_healthy
            if is_healthy:
                self._report.healthy(child.spec.name, time.monotonic() - child.since)
            else:
                child.since = time.monotonic()
                self._report.unhealthy(child.spec.name)
        if not self._is_ready and not self.unhealthy:
            self._is_ready = True
            self._report.ready()

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            if self._is_ready or self._is_stopping:
                return
            self._report.waiting(self.unhealthy)

    async def _follow_logs(self) -> None:
        while True:
            for child in self.children:
                self._read(child)
            await asyncio.sleep(_LOG_INTERVAL_S)

    def _read(self, child: Child) -> None:
        shown = 0
        for entry in child.log.read():
            if not entry.level:
                child.last_lines = [*child.last_lines, entry.text][-_MOST_LINES:]
            elif entry.level in {"WARNING", "ERROR", "CRITICAL"}:
                shown += 1
                if shown <= _MOST_LINES:
                    self._report.logged(child.spec.name, entry)
            elif entry.text.startswith(_STARTED):
                child.has_started = True
        if shown > _MOST_LINES:
            self._report.omitted(child.spec.name, shown - _MOST_LINES)

    async def _gather_faults(self) -> list[str]:
        """Return the faults of every child that refuses its settings; each says so within its first second."""
        deadline = time.monotonic() + _FAULTS_WAIT_S
        while time.monotonic() < deadline and not self._hurry.is_set():
            if all(self._has_judged(child) for child in self.children):
                break
            await asyncio.sleep(_LOG_INTERVAL_S)  # their logs are files: nothing tells of a new line
        refused = [child for child in self.children if child.exit_status == EXIT_WRONG_SETTINGS]
        told = dict.fromkeys(tuple(child.last_lines) for child in refused)  # several edges say the same
        return [line for lines in told for line in lines]

    def _has_judged(self, child: Child) -> bool:
        return child.has_started or child.exit_status is not None or child.spec.health.startswith(_NATS)

    async def _stop_in_order(self) -> None:
        self._is_stopping = True
        for stage in sorted({child.spec.stage for child in self.children}):
            members = [child for child in self.children if child.spec.stage == stage]
            for child in members:
                child.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(child.spec.stop_s for child in members)):
                    await first_of(self._all_exited(members), self._hurry.wait())
            for child in members:
                child.send(signal.SIGKILL)
            await self._all_exited(members)

    async def _all_exited(self, children: list[Child]) -> None:
        async with self._exits:
            await self._exits.wait_for(lambda: all(child.pid is None for child in children))


def describe_exit(status: int) -> str:
    """Return an exit status in words; negative ones are signals."""
    if status >= 0:
        return f"exited with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
