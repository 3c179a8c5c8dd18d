"""The whole mesh as a user starts it: `weimq up` with real processes and a real NATS server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.healthcheck import is_serving
from services.common.signature import sign
from tests.support.ports import worker, workers
from tests.support.wait import until

READY_S = 120.0
EDGES = 2
PLAIN = "plain"
"""Instance of the standard profile that serves clients without user name."""


def weimq(*args: str, timeout: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    if check and done.returncode:
        raise AssertionError(f"weimq {args} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def free_port_base() -> int:
    """Return N such that all ports of a mesh with two edges and three NATS servers are free from N on."""
    first = 21_000 + os.getpid() % 100 * 100
    for base in range(first - first % (100 * workers()) + 100 * worker(), 60_000, 100 * workers()):
        try:
            with contextlib.ExitStack() as stack:
                for port in range(base, base + 24):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


class Mesh:
    """A running `weimq up`."""

    def __init__(self, data: Path, *arguments: str, edges: int = EDGES, nats_nodes: int = 1) -> None:
        self.data = data
        self.nats_nodes = nats_nodes
        self.base = free_port_base()
        self.edges = edges
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread
        self.output: list[str] = []
        self.services: list[str] = []
        """Processes that have a health service."""
        self.credentials: dict[str, str] = {}

    def start(self) -> None:
        """Start and wait for `weimq ready`."""
        self.output.clear()
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "services.cli", "up", "--data", str(self.data),
                "--port-base", str(self.base), "--edges", str(self.edges),
                "--nats-nodes", str(self.nats_nodes), *self._arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        until(
            lambda: "weimq ready" in self.output or self._process is None or self._process.poll() is not None,
            seconds=READY_S,
            what="weimq ready",
        )
        assert "weimq ready" in self.output, "\n".join(self.output)
        run = self._run()
        self.services = [name for name in run["pids"] if Path(run["sockets"], f"{name}.sock").exists()]
        self.credentials = json.loads(self.weimq("credentials", "--json").stdout)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(line.rstrip())

    def stop(self) -> int:
        """Stop as Ctrl-C does and return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        with self._process as process:
            try:
                status = process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # or the end of `with` would wait for ever; its children end with it
                raise
            self._reader.join(5)
        self._process = None
        return status

    def weimq(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command against this mesh."""
        return weimq(*args, "--data", str(self.data), check=check)

    def json(self, *args: str) -> Any:
        """Run a command against this mesh and return its JSON."""
        return json.loads(self.weimq(*args, "--json").stdout)

    # --- what tests need to know ---------------------------------------------------------------

    def mqtt_port(self, edge: int = 0, transport: str = "tcp") -> int:
        """Return the MQTT port of an edge for `tcp`, `tls`, `ws` or `wss`."""
        return self.base + 20 * edge + ("tcp", "tls", "ws", "wss").index(transport)

    def tls_socket(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Return a connection to the TLS listener of the first edge."""
        sock = socket.create_connection(("127.0.0.1", self.mqtt_port(transport="tls")), timeout=10)
        try:
            return context.wrap_socket(sock, server_hostname="localhost")
        except BaseException:
            sock.close()
            raise

    @property
    def nats_names(self) -> list[str]:
        """The processes of NATS."""
        return ["nats"] if self.nats_nodes == 1 else [f"nats-{n}" for n in range(self.nats_nodes)]

    @property
    def nats_url(self) -> str:
        """Where NATS serves the services, as the user that they are: several addresses, joined by commas."""
        return (self.data / "secrets" / "nats.url").read_text()

    @property
    def status_url(self) -> str:
        """Base URL of the online query."""
        return f"http://127.0.0.1:{self.base + 4}"

    @property
    def topic(self) -> str:
        """The bootstrap parent topic."""
        return self.credentials["topic"]

    @property
    def instance(self) -> str:
        """The bootstrap instance."""
        return self.credentials["instance"]

    def client_id(self, device: str) -> str:
        """Return a client id of the bootstrap group."""
        return f"{self.credentials['group']}@@@{device}"

    def login(self, client_id: str) -> tuple[str, str]:
        """Return user name and password of a client in signature mode."""
        user = f"Signature|{self.credentials['access_key']}|{self.instance}"
        return user, sign(self.credentials["secret"], client_id)

    # --- faults --------------------------------------------------------------------------------

    def pid(self, process: str) -> int:
        """Return the process id of `auth`, `session`, `router-1`, `nats`, `edge-0`, ...; 0: it is not running."""
        return int(self._run()["pids"].get(process, 0))

    def _run(self) -> Any:
        return json.loads((self.data / "run.json").read_text())

    def kill(self, process: str) -> None:
        """Kill a process with -9 and wait until the supervisor has started another."""
        old = self.pid(process)
        os.kill(old, signal.SIGKILL)
        until(lambda: self.pid(process) not in {0, old}, seconds=40, what=f"{process} started again")

    def wait_healthy(self) -> None:
        """Wait until every process of the mesh is healthy; edges answer on their ports then."""
        until(self._is_healthy, seconds=90, what="a healthy mesh")

    def is_healthy(self, process: str) -> bool:
        """Return whether a service of the mesh reports SERVING."""
        run = self._run()
        return asyncio.run(is_serving(f"unix:{run['sockets']}/{process}.sock"))

    def _is_healthy(self) -> bool:
        return all(map(self.is_healthy, self.services))


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with two edges, shared by the session; tests use client ids and topics of their own."""
    started = Mesh(tmp_path_factory.mktemp("mesh"), "--default-instance", PLAIN)
    started.start()
    started.weimq("instance", "create", PLAIN, "--profile", "standard", "--anonymous")
    yield started
    assert started.stop() == 0
