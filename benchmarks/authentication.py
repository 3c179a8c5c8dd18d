"""Connection attempts per second of CPU time of auth, by mode, and what many device credentials cost.

Starts NATS and auth alone, and calls `Authenticate` in batches as edges do. Run
`python -m benchmarks.authentication --help`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from grpc import aio
from rich.console import Console
from rich.table import Table

from benchmarks.peers import TICKS
from benchmarks.report import HERE, commit, machine
from services.common import grpc_client
from services.common.healthcheck import is_serving
from services.common.settings import Secret
from services.common.signature import sign
from weimq.auth.v1 import (
    auth_pb2,
    auth_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)

INSTANCE = "mqtt-bench"
GROUP = "GID_bench"
BATCH = 500
"""Attempts in a call, the most that an edge sends."""
CALLS = 4
"""Calls on their way at the same time."""
CLIENTS = 2_000
"""Different clients that the attempts come from."""

Attempts = list[auth_pb2.ConnectAttempt]


class Auth:
    """Auth as a process, and calls to it."""

    def __init__(self, pid: int, channel: aio.Channel) -> None:
        self.pid = pid
        self.auth = auth_pb2_grpc.AuthServiceStub(channel)
        self.resources = resource_pb2_grpc.ResourceServiceStub(channel)
        self.tokens = token_pb2_grpc.TokenServiceStub(channel)
        self.devices = device_pb2_grpc.DeviceServiceStub(channel)
        self.access_key_id = ""
        self.secret = ""

    def cpu_s(self) -> float:
        """Return the CPU time it has taken, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self) -> float:
        """Return its resident memory, in MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    async def prepare(self) -> None:
        """Make what the attempts need."""
        instance = resource_pb2.Instance(instance_id=INSTANCE)
        await self.resources.CreateInstance(resource_pb2.CreateInstanceRequest(instance=instance))
        group = resource_pb2.Group(instance_id=INSTANCE, group_id=GROUP)
        await self.resources.CreateGroup(resource_pb2.CreateGroupRequest(group=group))
        key = await self.resources.CreateAccessKey(resource_pb2.CreateAccessKeyRequest(instance_id=INSTANCE))
        self.access_key_id, self.secret = key.access_key.access_key_id, key.secret

    async def register(self, client_ids: list[str]) -> dict[str, tuple[str, str]]:
        """Give clients device credentials; returns id and secret by client id."""
        registered = {}
        for start in range(0, len(client_ids), 1_000):
            request = device_pb2.RegisterDeviceCredentialsRequest(
                instance_id=INSTANCE, client_ids=client_ids[start : start + 1_000]
            )
            answer = await self.devices.RegisterDeviceCredentials(request)
            for one in answer.registrations:
                credential = one.device_credential
                registered[credential.client_id] = credential.device_credential_id, one.secret
        return registered


def client_ids(count: int) -> list[str]:
    return [f"{GROUP}@@@{number:08}" for number in range(count)]


def attempt(number: int, client_id: str, user_name: str, password: str) -> auth_pb2.ConnectAttempt:
    return auth_pb2.ConnectAttempt(
        client_id=client_id,
        user_name=user_name,
        password=password.encode(),
        address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:1883",
    )


async def by_signature(auth: Auth) -> Attempts:
    return [
        attempt(number, client_id, f"Signature|{auth.access_key_id}|{INSTANCE}", sign(auth.secret, client_id))
        for number, client_id in enumerate(client_ids(CLIENTS))
    ]


async def by_token(auth: Auth) -> Attempts:
    attempts = []
    for number, client_id in enumerate(client_ids(CLIENTS)):
        request = token_pb2.ApplyTokenRequest(
            instance_id=INSTANCE,
            access_key_id=auth.access_key_id,
            actions=auth_pb2.TOKEN_TYPE_READ_WRITE,
            resources=["demo/#", f"demo/p2p/{client_id}"],
            expire_time_ms=round((time.time() + 86_400) * 1_000),
        )
        token = (await auth.tokens.ApplyToken(request)).token
        attempts.append(attempt(number, client_id, f"Token|{auth.access_key_id}|{INSTANCE}", f"RW|{token}"))
    return attempts


async def by_device(auth: Auth) -> Attempts:
    registered = await auth.register(client_ids(CLIENTS))
    return [
        attempt(number, client_id, f"DeviceCredential|{credential_id}|{INSTANCE}", sign(secret, client_id))
        for number, (client_id, (credential_id, secret)) in enumerate(registered.items())
    ]


async def by_guess(auth: Auth) -> Attempts:
    """Guess signatures, each address many times, so that most are not even checked."""
    return [
        attempt(number % 8, client_id, f"Signature|{auth.access_key_id}|{INSTANCE}", sign("guess", client_id))
        for number, client_id in enumerate(client_ids(CLIENTS))
    ]


MODES = {"signature": by_signature, "token": by_token, "device": by_device, "guess": by_guess}


async def measure(auth: Auth, attempts: Attempts, seconds: float, expected: int) -> dict[str, float]:
    """Send attempts for `seconds`; every answer must be `expected`."""
    requests = [
        auth_pb2.AuthenticateRequest(attempts=attempts[start : start + BATCH])
        for start in range(0, len(attempts), BATCH)
    ]
    done = 0
    cpu, begin = auth.cpu_s(), time.perf_counter()

    async def caller(first: int) -> None:
        nonlocal done
        number = first
        while time.perf_counter() - begin < seconds:
            answer = await auth.auth.Authenticate(requests[number % len(requests)])
            number += 1
            done += len(answer.results)
            wrong = [result.reason for result in answer.results if result.outcome != expected]
            if wrong:
                raise SystemExit(f"unexpected outcome: {wrong[0]}")

    await asyncio.gather(*(caller(first) for first in range(CALLS)))
    elapsed, cpu = time.perf_counter() - begin, auth.cpu_s() - cpu
    return {"per_s": done / elapsed, "per_cpu_s": done / cpu, "cpu_us": cpu / done * 1e6}


@contextlib.asynccontextmanager
async def started(directory: Path, nats_url: str) -> AsyncGenerator[Auth]:
    """Run auth as a process; it serves when the body begins."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    key = directory / "master.key"
    if not key.exists():
        key.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    token = Secret("cluster-token-of-the-benchmark")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AUTH_", "WEIMQ_"))},
        "WEIMQ_CLUSTER_TOKEN": token.reveal(),
        "AUTH_NATS_URL": nats_url,
        "AUTH_GRPC_LISTEN": address,
        "AUTH_HTTP_LISTEN": "127.0.0.1:0",
        "AUTH_MASTER_KEY_FILE": str(key),
    }
    with (directory / "auth.log").open("ab") as log:
        process = await asyncio.to_thread(
            subprocess.Popen, [sys.executable, "-m", "services.auth"], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while not await is_serving(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((directory / "auth.log").read_text()[-2_000:])
            await asyncio.sleep(0.02)
        async with grpc_client.channel(address, token) as channel:
            yield Auth(process.pid, channel)
    finally:
        process.terminate()
        process.wait()


async def devices(directory: Path, nats_url: str, count: int) -> dict[str, float]:
    """Register `count` devices and restart auth; returns rate, memory and seconds of the start."""
    async with started(directory, nats_url) as auth:
        before = auth.rss_mib()
        begin = time.perf_counter()
        await auth.register([f"{GROUP}@@@many{number:08}" for number in range(count)])
        rate = count / (time.perf_counter() - begin)
    begin = time.perf_counter()
    async with started(directory, nats_url) as auth:
        start = time.perf_counter() - begin
        return {"registered_per_s": rate, "start_s": start, "rss_mib": auth.rss_mib(), "rss_before_mib": before}


async def run(options: argparse.Namespace, report: Callable[[str], None]) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="weimq-bench-") as name:
        directory = Path(name)
        nats = str(Path(sys.prefix, "bin", "nats-server"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        command = [nats, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "nats")]
        with (directory / "nats.log").open("wb") as log:
            process = await asyncio.to_thread(subprocess.Popen, command, stdout=log, stderr=log)
        nats_url = f"nats://127.0.0.1:{port}"
        try:
            async with started(directory, nats_url) as auth:
                await auth.prepare()
                for mode in options.mode or MODES:
                    attempts = await MODES[mode](auth)
                    outcome = "BAD_CREDENTIALS" if mode == "guess" else "ACCEPTED"
                    expected = auth_pb2.ConnectOutcome.Value(f"CONNECT_OUTCOME_{outcome}")
                    rounds = [await measure(auth, attempts, options.seconds, expected) for _ in range(options.rounds)]
                    results[mode] = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
                    report(mode)
            if options.devices:
                results["devices"] = await devices(directory, nats_url, options.devices)
        finally:
            process.terminate()
            process.wait()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each mode; medians are reported")
    parser.add_argument("--seconds", type=float, default=3, help="length of a round")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this mode; may be given several times")
    parser.add_argument("--devices", type=int, default=100_000, help="device credentials to register; 0: none")
    options = parser.parse_args()
    console = Console()
    results = asyncio.run(run(options, lambda mode: console.print(f"measured {mode}")))
    table = Table("mode", "attempts/s of CPU time of auth", "attempts/s", "CPU µs each")
    for mode, result in results.items():
        if mode != "devices":
            table.add_row(mode, f"{result['per_cpu_s']:,.0f}", f"{result['per_s']:,.0f}", f"{result['cpu_us']:.1f}")
    console.print(table)
    if found := results.get("devices"):
        console.print(
            f"{options.devices:,} device credentials: {found['registered_per_s']:,.0f}/s registered, auth starts in "
            f"{found['start_s']:.1f} s with {found['rss_mib']:.0f} MiB ({found['rss_before_mib']:.0f} MiB without)"
        )
    path = HERE / "results" / f"authentication-{commit()}.json"
    path.parent.mkdir(exist_ok=True)
    document = {"commit": commit(), "machine": machine(), "options": vars(options), "results": results}
    path.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
