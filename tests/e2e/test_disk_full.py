"""The disk of a whole mesh is full, of NATS as of everything else: publishers wait, nothing is lost, all goes on."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_outage import MOST_GROWTH, check, memory, until_acknowledged
from tests.e2e.test_presence_exact import check_sequences, read_events
from tests.support.clients import Client
from tests.support.firehose import Firehose
from tests.support.mesh import Mesh
from tests.support.small_disk import SmallDisk, mounted
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

MOST_LATE = 200
PAUSE_S = 0.1
"""Of each publisher after 50 messages of 1 KiB."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


async def stopped(hoses: list[Firehose]) -> list[int]:
    """Wait until nothing is acknowledged any more, and return how much was."""
    async with asyncio.timeout(60):
        while True:
            before = [len(hose.acknowledged) for hose in hoses]
            await asyncio.sleep(3)
            if before == [len(hose.acknowledged) for hose in hoses] and all(
                hose.sent > len(hose.acknowledged) for hose in hoses
            ):
                return before


async def until_full_and_back(mesh: Mesh, disk: SmallDisk, free_topic: str) -> tuple[list[Firehose], str]:
    name = secrets.token_hex(4)
    hoses = [Firehose(mesh, f"{mesh.topic}/{name}/{n}", edge=n % mesh.edges, pause_s=PAUSE_S) for n in range(2)]
    async with asyncio.TaskGroup() as group:
        for hose in hoses:
            group.create_task(hose.run())
        await until_acknowledged(hoses, 200)
        before = memory(mesh)
        await asyncio.to_thread(disk.fill)
        acknowledged = await stopped(hoses)
        await asyncio.to_thread(until, lambda: not mesh.is_healthy("router"), seconds=40, what="an unhealthy router")
        visitor = await asyncio.to_thread(visit, mesh, free_topic)
        assert memory(mesh) - before < MOST_GROWTH
        # A little may fit in where another process let go of a page.
        for hose, before_visit in zip(hoses, acknowledged, strict=True):
            assert len(hose.acknowledged) - before_visit < MOST_LATE
        disk.make_room()
        await until_acknowledged(hoses, max(acknowledged) + 200)
        for hose in hoses:
            hose.stop()
    return hoses, visitor


def visit(mesh: Mesh, free_topic: str) -> str:
    """Come, publish to a topic without a log, get it, and go; returns the client id."""
    with Client(mesh) as client:
        client.subscribe(f"{free_topic}/#", 1)
        client.publish_and_wait(f"{free_topic}/a", b"needs no disk")
        assert client.wait_messages(1)[0][1] == b"needs no disk"
        return client.client_id


async def tags_of(mesh: Mesh, client_id: str, count: int) -> list[str]:
    """Return the lifecycle events of a client, once there are so many."""
    deadline = time.monotonic() + 30
    while True:
        events = await read_events(mesh)
        tags = [tag for of_channel in check_sequences(events, {client_id}).get(client_id, []) for tag in of_channel]
        if len(tags) >= count or time.monotonic() > deadline:
            return tags
        await asyncio.sleep(0.2)


def test_disk_is_full_under_load_and_all_goes_on_by_itself_when_there_is_room(disk: SmallDisk) -> None:
    mesh = Mesh(disk.path / "data")
    mesh.start()
    try:
        free_topic = f"free{secrets.token_hex(4)}"
        mesh.weimq("topic", "create", free_topic, "--no-log")
        mesh.wait_healthy()
        hoses, visitor = asyncio.run(until_full_and_back(mesh, disk, free_topic))
        check(mesh, hoses)
        mesh.wait_healthy()
        assert asyncio.run(tags_of(mesh, visitor, 3)) == ["connect", "disconnect", "tcpclean"]
    finally:
        assert mesh.stop() == 0
