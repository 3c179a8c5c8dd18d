"""What is measured: our mesh, mosquitto, and the MQTT gateway of nats-server; each a context that runs it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
START_S = 60.0
"""How long a broker may take to listen."""

FREE_TOPIC = "fast"
"""Parent topic without a log; `demo`, which every mesh has, is logged."""


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
        found = {}
        for name, pid in self.pids.items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / TICKS
        return found

    def rss_kib(self) -> dict[str, int]:
        """Return the resident memory of each process, in KiB."""
        page = os.sysconf("SC_PAGE_SIZE") // 1024
        return {n: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for n, pid in self.pids.items()}


@contextlib.contextmanager
def weimq(directory: Path, base: int, edges: int) -> Iterator[Broker]:
    """Run a mesh of its own, on the ports from `base` on."""
    data = directory / "data"
    command = [sys.executable, "-m", "services.cli", "up", "--data", str(data), "--port-base", str(base)]
    process = subprocess.Popen([*command, "--edges", str(edges)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not any(line.strip() == "weimq ready" for line in process.stdout):
            sys.exit("the mesh did not start")

        def cli(*args: str) -> str:
            argv = [sys.executable, "-m", "services.cli", *args, "--data", str(data)]
            return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

        made = json.loads(cli("credentials", "--json"))
        cli("topic", "create", FREE_TOPIC, "--no-log")
        identity = [
            "--client-id", made["group"] + "@@@%08d",
            "--user", f"Signature|{made['access_key']}|{made['instance']}",
            "--lmq-sign", made["secret"],
        ]  # fmt: skip
        pids = dict(json.loads((data / "run.json").read_text())["pids"])
        yield Broker("weimq", [f"127.0.0.1:{base + 20 * n}" for n in range(edges)], pids, identity)
    finally:
        process.terminate()
        process.wait(30)


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
