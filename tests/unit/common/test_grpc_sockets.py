"""Which of gRPC's ways to serve sockets our processes use: docs/decisions/0012."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXCHANGE = """
import asyncio
import services
import grpc
from grpc import aio

async def exchange():
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await channel.unary_unary("/none/none")(b"", timeout=20)
        except aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)

asyncio.run(exchange())
"""


@pytest.mark.parametrize(("experiments", "is_older"), [("", True), ("event_engine_client", False)])
def test_sockets_are_served_the_older_way_unless_the_environment_says_otherwise(
    experiments: str, *, is_older: bool
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "GRPC_TRACE": "all",
        "GRPC_VERBOSITY": "debug",
    }
    if experiments:
        environment["GRPC_EXPERIMENTS"] = experiments
    done = subprocess.run(
        [sys.executable, "-c", EXCHANGE], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (b"tcp_client_posix.cc" in done.stderr) is is_older
