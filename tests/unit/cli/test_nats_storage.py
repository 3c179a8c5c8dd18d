"""How much JetStream may store, by what its disk has room for; tests/e2e/test_disk_full.py has a disk that is full."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client

from services.cli import nats_storage, run_file
from services.cli.nats_storage import LEAST_LIMIT, MOST_RESERVE, Storage, limit, limit_at_start, reserve
from services.cli.secrets import DataDir
from tests.support.nats import NatsServer

GB = 10**9


class Disk:
    """Takes the place of the disk."""

    def __init__(self, total: int, free: int) -> None:
        self.total, self.free = total, free


@pytest.mark.parametrize(
    ("stored", "total", "free", "most"),
    [
        (0, 100 * GB, 80 * GB, 80 * GB - MOST_RESERVE),
        (70 * GB, 100 * GB, 10 * GB, 80 * GB - MOST_RESERVE),  # what is stored is no reason to store less
        (0, 64 << 20, 60 << 20, (60 << 20) - (64 << 20) // 20),
        (50 << 20, 64 << 20, 0, (50 << 20) - (64 << 20) // 20),
        (0, 100 * GB, 0, LEAST_LIMIT),
    ],
)
def test_limit_is_what_the_disk_has_room_for(stored: int, total: int, free: int, most: int) -> None:
    assert limit(stored, total, free) == most


def test_limit_at_start_counts_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit_at_start(tmp_path / "nothing") is None
    (tmp_path / "stream").mkdir()
    (tmp_path / "stream" / "1.blk").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Disk(100 * GB, 10 * GB))
    most = limit_at_start(tmp_path)
    assert most is not None
    assert 1 << 20 <= most - limit(0, 100 * GB, 10 * GB) < 2 << 20


@pytest_asyncio.fixture
async def system(tmp_path: Path) -> AsyncGenerator[Client]:
    """Return a client that is the system user of a server with 64 KiB and a little stored."""
    configuration = tmp_path / "nats.conf"
    configuration.write_text(
        'system_account: SYS, no_auth_user: w, accounts: {SYS: {users: [{user: s, password: "s"}]}, '
        'W: {jetstream: enabled, users: [{user: w, password: "w"}]}}'
    )
    server = NatsServer(tmp_path, arguments=["-c", str(configuration)])
    server.start()
    try:
        client = await nats.connect(server.url)
        js = client.jetstream()
        await js.add_stream(name="s", subjects=["s"])
        await js.publish("s", bytes(64 << 10))
        await client.close()
        client = await nats.connect(server.url, user="s", password="s")
        yield client
        await client.close()
    finally:
        server.kill()


@pytest.mark.asyncio
async def test_limit_rises_with_the_disk_with_some_play(
    system: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = Disk(100_000 * GB, 50_000 * GB)  # more than the server took by itself
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: disk)
    storage = Storage(DataDir(tmp_path), tmp_path, None)
    await storage.look(system)
    first = storage.limit_bytes
    assert first is not None
    assert 64 << 10 <= first - limit(0, disk.total, disk.free) < 128 << 10
    disk.free += 1 << 20
    await storage.look(system)
    assert storage.limit_bytes == first
    disk.free += GB
    await storage.look(system)
    assert storage.limit_bytes == first + GB + (1 << 20)
    disk.free = reserve(disk.total)
    for _ in range(2):
        await storage.look(system)
    assert storage.limit_bytes == first + GB + (1 << 20)  # nats-server would refuse a lower one
    assert [record.message for record in caplog.records] == [
        "the disk of NATS is full, publishers wait until there is room"
    ]
    disk.free = GB
    await storage.look(system)
    assert caplog.records[-1].message == "the disk of NATS has room again"


@pytest.mark.asyncio
async def test_limit_that_the_server_took_by_itself_is_not_lowered(
    system: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Disk(100 * GB, 1))
    storage = Storage(DataDir(tmp_path), tmp_path, None)
    await storage.look(system)
    assert storage.limit_bytes is None


@pytest.mark.asyncio
async def test_nats_whose_write_failed_is_restarted_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(100 * GB, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: disk)

    async def ask(_client: object, what: str) -> dict[str, Any]:
        return {"storage": 1} if what == "JSZ" else {"error": "JetStream stream 'a' write error: no space left"}

    monkeypatch.setattr(nats_storage, "_ask", ask)
    storage, client = Storage(DataDir(tmp_path), tmp_path, None), Client()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as process:  # noqa: ASYNC220 - takes no time
        try:
            running = run_file.Run(supervisor_pid=1, sockets="", endpoints={}, pids={"nats": process.pid})
            monkeypatch.setattr(run_file, "read_running", lambda _data: running)
            await storage.look(client)
            assert process.poll() is None
            disk.free = GB
            await storage.look(client)
            assert process.wait(10) == -signal.SIGTERM
        finally:
            process.kill()
    caplog.clear()
    storage = Storage(DataDir(tmp_path), tmp_path, None)
    await storage.look(client)  # what is known of the process is old
    assert "restart it now" in caplog.messages[-1]
    storage = Storage(DataDir(tmp_path), tmp_path, None)
    monkeypatch.setattr(run_file, "read_running", lambda _data: None)
    caplog.clear()
    for _ in range(2):
        await storage.look(client)
    assert [record.message for record in caplog.records] == [
        "a write of NATS had failed: restart it now that there is room"
    ]


@pytest.mark.asyncio
async def test_restarts_become_rare_when_they_do_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may fail with room on the disk: for its permissions, or since the disk is broken."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Disk(100 * GB, GB))

    async def ask(_client: object, what: str) -> dict[str, Any]:
        return {"storage": 1} if what == "JSZ" else {"error": "JetStream stream 'a' write error: permission denied"}

    now = 0.0
    restarts: list[float] = []
    running = run_file.Run(supervisor_pid=1, sockets="", endpoints={}, pids={"nats": 2})
    monkeypatch.setattr(nats_storage, "_ask", ask)
    monkeypatch.setattr(run_file, "read_running", lambda _data: running)
    monkeypatch.setattr(os, "kill", lambda _pid, _signal: restarts.append(now))
    storage, client = Storage(DataDir(tmp_path), tmp_path, None, monotonic_s=lambda: now), Client()
    for now in range(0, 20_000, 5):  # noqa: B007 - the clock
        await storage.look(client)
    pauses = [after - before for before, after in itertools.pairwise(restarts)]
    assert restarts[0] == 0
    assert pauses[:10] == [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    now = 60_000.0  # all was well meanwhile
    for _ in range(2):
        await storage.look(client)
        now += 15
    assert restarts[-2:] == [60_000, 60_015]
