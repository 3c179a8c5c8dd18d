"""Authenticated connections per second of CPU time of an edge, in signature and in token mode.

Starts an edge alone, with services that agree to everything behind real gRPC. Clients connect, get CONNACK and drop the
connection again, many at a time. What counts is the CPU time that the edge spends on one of them: its inverse is what a
core can do.
Run `python -m benchmarks.connects --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import socket
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import uvloop
from grpc import aio
from rich.console import Console
from rich.table import Table

from benchmarks.peers import TICKS
from services.common import grpc_server
from services.common.readiness import Readiness
from services.common.settings import Secret
from tests.support import swarm
from tests.support.auth_for_edges import INSTANCE, KEY, FakeAuth
from tests.support.fakes import FakeRouter, FakeSession
from tests.support.swarm import SwarmClient
from weimq.auth.v1 import auth_pb2_grpc
from weimq.router.v1 import router_pb2_grpc
from weimq.session.v1 import session_pb2_grpc

TOKEN = Secret("cluster-token-of-the-benchmark")
MODES = {
    "signature": (f"Signature|{KEY}|{INSTANCE}", "right"),
    "token": (f"Token|{KEY}|{INSTANCE}", "RW|both"),
    "two tokens": (f"Token|{KEY}|{INSTANCE}", "R|read|W|write"),
}


class Edge:
    """A running edge."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    def cpu_s(self) -> float:
        """Return the CPU time so far, in seconds."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.asynccontextmanager
async def running_edge() -> AsyncGenerator[Edge]:
    """Yield an edge that takes clients."""
    auth = FakeAuth()
    for token, token_type in (("both", "RW"), ("read", "R"), ("write", "W")):
        auth.issue(token, token_type, "demo/#")

    def register(server: aio.Server) -> list[str]:
        auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(FakeSession(), server)
        router_pb2_grpc.add_RouterServiceServicer_to_server(FakeRouter(), server)
        return []

    async with grpc_server.serving(
        listen=["127.0.0.1:0"], token=TOKEN, readiness=Readiness(), register=register, drain_s=0
    ) as (services,):
        port = free_port()
        environ = {
            **os.environ,
            "WEIMQ_CLUSTER_TOKEN": TOKEN.reveal(),
            "EDGE_ID": "edge",
            "EDGE_TCP_LISTEN": f"127.0.0.1:{port}",
            "EDGE_GRPC_LISTEN": f"127.0.0.1:{free_port()}",
            **{f"EDGE_{name}": f"127.0.0.1:{services}" for name in ("AUTH", "SESSION", "ROUTER")},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.edge", env=environ, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await swarm.until(lambda: is_listening(port), "an edge that listens")
            yield Edge(process, port)
        finally:
            process.terminate()
            await process.wait()


def is_listening(port: int) -> bool:
    """Return whether somebody listens."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def measure(edge: Edge, mode: str, count: int, at_once: int) -> tuple[float, float]:
    """Connect `count` clients; return how many a second got in, and the CPU microseconds for each."""
    run = secrets.token_hex(3)
    clients = [SwarmClient(f"GID_demo@@@{run}-{n}", *MODES[mode]) for n in range(count)]
    before, started = edge.cpu_s(), time.monotonic()
    for start in range(0, count, at_once):
        batch = clients[start : start + at_once]
        await swarm.connect([edge.port], batch, at_once)
        for client in batch:
            client.close()
    elapsed = time.monotonic() - started
    await asyncio.sleep(1)  # the closings, too, are paid for
    return count / elapsed, (edge.cpu_s() - before) / count * 1e6


async def run(options: argparse.Namespace) -> None:
    """Measure every mode in turns, and print medians."""
    swarm.allow_sockets()
    results: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    async with running_edge() as edge:
        for _ in range(options.rounds):
            for mode, found in results.items():
                found.append(await measure(edge, mode, options.clients, options.at_once))
    table = Table("mode", "connects/s here", "CPU us each", "connects/s per core", title="Edge")
    for mode, found in results.items():
        rate = statistics.median(each for each, _ in found)
        cost = statistics.median(each for _, each in found)
        table.add_row(mode, f"{rate:,.0f}", f"{cost:.0f}", f"{1e6 / cost:,.0f}")
    Console().print(table)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=200)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
