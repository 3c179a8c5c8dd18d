"""The supervisor with small children: restart, back-off, health, order of stopping, wrong settings, orphans.

The tests run asyncio's own loop, as `weimq up` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
from typing_extensions import override

from services.cli import supervisor as supervisor_module
from services.cli.mesh import Process
from services.cli.process_log import Entry
from services.cli.supervisor import STEADY_S, Backoff, Report, Supervisor, WrongSettingsError, describe_exit
from services.common.runtime import background
from tests.support.ports import free_ports

DEADLINE_S = 25.0


class Recorder(Report):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    @override
    def healthy(self, name: str, seconds: float) -> None:
        self.events.append(("healthy", name))

    @override
    def unhealthy(self, name: str) -> None:
        self.events.append(("unhealthy", name))

    @override
    def exited(self, name: str, status: str, restart_s: float, last: Iterable[str]) -> None:
        self.events.append(("exited", name, status, restart_s, tuple(last)))

    @override
    def logged(self, name: str, entry: Entry) -> None:
        self.events.append(("logged", name, entry.level, entry.text))

    @override
    def omitted(self, name: str, count: int) -> None:
        self.events.append(("omitted", name, count))

    @override
    def waiting(self, names: list[str]) -> None:
        self.events.append(("waiting", *names))

    @override
    def ready(self) -> None:
        self.events.append(("ready",))

    def of(self, kind: str) -> list[tuple[object, ...]]:
        return [event for event in self.events if event[0] == kind]


def child(name: str, code: str, **more: object) -> Process:
    return Process(name=name, argv=(sys.executable, "-c", code), environ={}, **more)  # type: ignore[arg-type]


SLEEPER = "import time; time.sleep(600)"


def graceful(log: Path, name: str, before_exit: str = "") -> str:
    """Return a program that tells `log` when it gets SIGTERM and when it leaves."""
    return f"""
import os, signal, sys, time
def tell(text):
    with open({str(log)!r}, "a") as file: file.write(text + "\\n")
def leave(*_):
    tell("stopping {name}")
    {before_exit or "pass"}
    tell("stopped {name}")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
tell("up {name}")
time.sleep(600)
"""


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - other processes set it
            await asyncio.sleep(0.01)


def run(
    tmp_path: Path, processes: list[Process], body: Callable[[Supervisor, Recorder], Awaitable[None]]
) -> tuple[Supervisor, Recorder]:
    """Supervise `processes` while `body` runs, then stop them."""

    async def main() -> tuple[Supervisor, Recorder]:
        recorder = Recorder()
        supervised = Supervisor(processes, logs=tmp_path, report=recorder)
        stop = asyncio.Event()

        async def drive() -> None:
            try:
                await body(supervised, recorder)
            finally:
                stop.set()

        async with asyncio.timeout(DEADLINE_S * 2), background(drive()):
            await supervised.run(stop)
        return supervised, recorder

    return asyncio.run(main())


def alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_ready_when_all_are_healthy_and_none_is_left_after_stopping(tmp_path: Path) -> None:
    pids: list[int] = []

    async def body(supervised: Supervisor, recorder: Recorder) -> None:
        await until(lambda: ("ready",) in recorder.events)
        pids.extend(each.pid or 0 for each in supervised.children)
        assert all(map(alive, pids))

    _, recorder = run(tmp_path, [child("a", SLEEPER), child("b", SLEEPER)], body)
    assert {("healthy", "a"), ("healthy", "b")} <= set(recorder.events)
    assert recorder.of("exited") == []
    assert len(pids) == 2
    assert not any(map(alive, pids))


def test_not_ready_while_one_is_unhealthy(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"

    async def body(_: Supervisor, recorder: Recorder) -> None:
        await until(lambda: ("healthy", "good") in recorder.events)
        await until(lambda: bool(recorder.of("waiting")))
        assert recorder.of("waiting")[0] == ("waiting", "bad")
        assert ("ready",) not in recorder.events

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor_module, "_PROGRESS_S", 0.5)
        run(tmp_path, [child("good", SLEEPER), child("bad", SLEEPER, health=address)], body)


def test_killed_child_is_restarted_and_the_others_are_not(tmp_path: Path) -> None:
    async def body(supervised: Supervisor, recorder: Recorder) -> None:
        await until(lambda: ("ready",) in recorder.events)
        victim, other = supervised.children
        before = (victim.pid, other.pid)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: recorder.of("healthy").count(("healthy", "victim")) == 2)
        assert victim.pid not in (None, before[0])
        assert other.pid == before[1]

    _, recorder = run(tmp_path, [child("victim", SLEEPER), child("other", SLEEPER)], body)
    assert recorder.of("exited") == [("exited", "victim", "was killed by SIGKILL", 0.2, ())]
    assert recorder.events.count(("ready",)) == 1


def test_crash_loop_backs_off_and_shows_the_last_words(tmp_path: Path) -> None:
    async def body(_: Supervisor, recorder: Recorder) -> None:
        await until(lambda: len(recorder.of("exited")) == 4)

    _, recorder = run(tmp_path, [child("bad", "print('last words'); raise SystemExit(3)")], body)
    exits = recorder.of("exited")
    assert [event[3] for event in exits] == [0.2, 0.4, 0.8, 1.6]
    assert {event[2] for event in exits} == {"exited with status 3"}
    assert exits[0][4] == ("last words",)


def test_backoff_is_bounded_and_starts_anew_after_a_steady_run() -> None:
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [backoff.after(STEADY_S), backoff.after(0)] == [0.2, 0.4]


def test_stages_stop_one_after_the_other(tmp_path: Path) -> None:
    log = tmp_path / "order"
    slow = graceful(log, "edge", "time.sleep(0.5)")
    processes = [
        child("nats", graceful(log, "nats"), stage=2),
        child("auth", graceful(log, "auth"), stage=1),
        child("edge", slow, stage=0),
    ]

    async def body(_: Supervisor, __: Recorder) -> None:
        await until(lambda: text_of(log).count("up ") == 3)

    run(tmp_path, processes, body)
    assert [line for line in text_of(log).splitlines() if not line.startswith("up")] == [
        f"{what} {name}" for name in ("edge", "auth", "nats") for what in ("stopping", "stopped")
    ]


def test_child_that_does_not_stop_is_killed_after_its_time(tmp_path: Path) -> None:
    log = tmp_path / "order"
    stubborn = child("stubborn", graceful(log, "stubborn", "time.sleep(600)"), stop_s=2)

    async def body(_: Supervisor, __: Recorder) -> None:
        await until(lambda: "up stubborn" in text_of(log))

    started = time.monotonic()
    supervised, _ = run(tmp_path, [stubborn], body)
    assert "stopping stubborn" in text_of(log)
    assert supervised.children[0].exit_status == -signal.SIGKILL
    assert time.monotonic() - started < DEADLINE_S


def test_second_request_kills_at_once(tmp_path: Path) -> None:
    log = tmp_path / "order"
    stubborn = child("stubborn", graceful(log, "stubborn", "time.sleep(600)"), stop_s=600)

    async def main() -> None:
        supervised = Supervisor([stubborn], logs=tmp_path, report=Recorder())
        stop = asyncio.Event()

        async def signals() -> None:
            await until(lambda: "up stubborn" in text_of(log))
            stop.set()
            await until(lambda: "stopping stubborn" in text_of(log))
            supervised.hurry()

        async with asyncio.timeout(DEADLINE_S), background(signals()):
            await supervised.run(stop)

    asyncio.run(main())


def test_wrong_settings_stop_everything_and_every_fault_is_told(tmp_path: Path) -> None:
    refusing = "import sys; print('weimq {0}: wrong settings:\\n  - {1}', file=sys.stderr); sys.exit(78)"
    log = tmp_path / "order"
    processes = [
        child("edge-0", refusing.format("edge", "EDGE_X: no")),
        child("edge-1", refusing.format("edge", "EDGE_X: no")),
        child("auth", "import time; time.sleep(0.5);" + refusing.format("auth", "AUTH_Y: no")),
        child("router", 'print(\'{"level": "INFO", "event": "service starting"}\', flush=True);' + SLEEPER),
        child("nats", graceful(log, "nats"), stage=2, health="nats://127.0.0.1:1"),
    ]
    recorder = Recorder()

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await Supervisor(processes, logs=tmp_path, report=recorder).run(asyncio.Event())

    with pytest.raises(WrongSettingsError) as caught:
        asyncio.run(main())
    assert caught.value.faults == [
        "weimq edge: wrong settings:",
        "  - EDGE_X: no",
        "weimq auth: wrong settings:",
        "  - AUTH_Y: no",
    ]
    assert recorder.of("exited") == []


def test_a_fault_that_services_share_is_told_of_each(tmp_path: Path) -> None:
    refusing = "import sys; print('weimq {0}: wrong settings:\\n  - WEIMQ_X: no', file=sys.stderr); sys.exit(78)"
    processes = [child(name, refusing.format(name)) for name in ("auth", "router")]

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await Supervisor(processes, logs=tmp_path, report=Recorder()).run(asyncio.Event())

    with pytest.raises(WrongSettingsError) as caught:
        asyncio.run(main())
    assert caught.value.faults.count("  - WEIMQ_X: no") == 2


def test_warnings_and_errors_are_shown_and_floods_are_counted(tmp_path: Path) -> None:
    line = '{{"level": "{0}", "event": "{1}"}}'
    lines = [line.format("INFO", "fine"), line.format("WARNING", "hm"), line.format("ERROR", "bad")]
    flood = [line.format("WARNING", "again")] * 100
    code = (
        f"import sys,time; sys.stderr.write({chr(10).join(lines + flood) + chr(10)!r}); sys.stderr.flush(); {SLEEPER}"
    )

    async def body(_: Supervisor, recorder: Recorder) -> None:
        await until(lambda: bool(recorder.of("omitted")))

    _, recorder = run(tmp_path, [child("noisy", code)], body)
    logged = recorder.of("logged")
    assert logged[:2] == [("logged", "noisy", "WARNING", "hm"), ("logged", "noisy", "ERROR", "bad")]
    assert len(logged) + sum(int(str(event[2])) for event in recorder.of("omitted")) == 102


def test_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    missing = Process(name="missing", argv=("/nonexistent/program",), environ={})

    async def body(_: Supervisor, recorder: Recorder) -> None:
        await until(lambda: bool(recorder.of("exited")))

    _, recorder = run(tmp_path, [missing], body)
    assert "can't start /nonexistent/program" in str(recorder.of("exited")[0])


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    listener = (
        f"import signal, socket, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    )
    program = f"""
import asyncio, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from services.cli.mesh import Process
from services.cli.supervisor import Report, Supervisor
class Silent(Report):
    def __getattribute__(self, name): return lambda *_: None
process = Process(name="a", argv=(sys.executable, "-c", {listener!r}), environ={{}})
asyncio.run(Supervisor([process], logs=Path({str(tmp_path)!r}), report=Silent()).run(asyncio.Event()))
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(lambda: listens(port))
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not listens(port))


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "exited with status 0"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
    ids=str,
)
def test_exit_status_in_words(status: int, text: str) -> None:
    assert describe_exit(status) == text
