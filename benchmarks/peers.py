"""What is measured: our mesh, mosquitto, and the MQTT gateway of nats-server; each a context that runs it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
START_S = 60.0
"""How long a broker may take to listen."""

FREE_TOPIC = "fast"
"""Parent topic without a log; `demo`, which every mesh has, is logged."""


def cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """Return the CPU time of each process so far, in seconds."""
    found = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found[name] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


@dataclass
class Broker:
    """A running broker.

    Attributes:
        name: of the peer.
        hosts: `address:port` of each edge, or of the one listener.
        pids: of its processes, by name.
        identity: mqload's options to log in.
    """

    name: str
    hosts: list[str]
    pids: dict[str, int]
    identity: list[str] = field(default_factory=list)

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time of each process so far, in seconds."""
        return cpu_s(self.pids)

    def rss_kib(self) -> dict[str, int]:
        """Return the resident memory of each process, in KiB."""
        page = os.sysconf("SC_PAGE_SIZE") // 1024
        return {n: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for n, pid in self.pids.items()}


class Mesh:
    """A `weimq up` of its own, with a parent topic without a log.

    Args:
        directory: for its data.
        base: first of its ports.
        edges: how many.
        routers: how many.
    """

    def __init__(self, directory: Path, base: int, edges: int = 2, routers: int = 1) -> None:
        self.base = base
        self._data = directory / "data"
        command = [sys.executable, "-m", "services.cli", "up", "--data", str(self._data), "--port-base", str(base)]
        self.edges = edges
        self._process = subprocess.Popen(
            [*command, "--edges", str(edges), "--routers", str(routers)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        too_long = threading.Timer(START_S, self._process.kill)
        too_long.start()
        if not any(line.strip() == "weimq ready" for line in self._process.stdout):
            sys.exit("the mesh did not start")
        too_long.cancel()
        self.credentials: dict[str, str] = json.loads(self.command("credentials", "--json"))
        self.command("topic", "create", FREE_TOPIC, "--no-log")

    def broker(self) -> Broker:
        """Return it as what the loader is pointed at."""
        made = self.credentials
        identity = [
            "--client-id", made["group"] + "@@@%08d",
            "--user", f"Signature|{made['access_key']}|{made['instance']}",
            "--lmq-sign", made["secret"],
        ]  # fmt: skip
        return Broker("weimq", [f"127.0.0.1:{self.base + 20 * n}" for n in range(self.edges)], self.pids(), identity)

    def command(self, *args: str) -> str:
        """Run a `weimq` command on it; return what it printed."""
        command = [sys.executable, "-m", "services.cli", *args, "--data", str(self._data)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=START_S).stdout

    def pids(self) -> dict[str, int]:
        """Return process ids by name."""
        return dict(json.loads((self._data / "run.json").read_text())["pids"])

    def stop(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(30)


@contextlib.contextmanager
def weimq(directory: Path, base: int, edges: int) -> Iterator[Broker]:
    """Run a mesh on the ports from `base` on."""
    mesh = Mesh(directory, base, edges)
    try:
        yield mesh.broker()
    finally:
        mesh.stop()


@contextlib.contextmanager
def mosquitto(port: int) -> Iterator[Broker | None]:
    """Run Debian's mosquitto as it comes; None when it is not installed."""
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if path is None:
        yield None
        return
    with _running("mosquitto", [path, "-p", str(port)], port) as broker:
        yield broker


@contextlib.contextmanager
def nats(directory: Path, port: int) -> Iterator[Broker | None]:
    """Run nats-server with its MQTT gateway, JetStream on disk; None when it is not installed."""
    beside = Path(sys.executable).parent / "nats-server"
    path = str(beside) if beside.exists() else shutil.which("nats-server")
    if path is None:
        yield None
        return
    configuration = directory / "nats-mqtt.conf"
    configuration.write_text(
        f'server_name: peer\nlisten: "127.0.0.1:{port + 1}"\nmax_connections: 100000\n'
        f'jetstream {{ store_dir: "{directory / "nats-mqtt"}" }}\nmqtt {{ listen: "127.0.0.1:{port}" }}\n'
    )
    with _running("nats", [path, "-c", str(configuration)], port) as broker:
        yield broker


@contextlib.contextmanager
def _running(name: str, command: list[str], port: int) -> Iterator[Broker]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{name} does not start: {' '.join(command)}")
                time.sleep(0.05)
        yield Broker(name, [f"127.0.0.1:{port}"], {name: process.pid})
    finally:
        process.terminate()
        process.wait(10)
