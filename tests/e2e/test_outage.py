"""NATS away or full under load: publishers wait, nothing acknowledged is lost, memory is bounded, all goes on after."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import struct
import time
from pathlib import Path

import nats
import pytest
from nats.js.api import DiscardPolicy

from services.common import subjects
from tests.support import queue
from tests.support.clients import Client
from tests.support.firehose import Firehose
from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e

PUBLISHERS = 4
MOST_GROWTH = 400 << 20
"""What router and edges may grow together: their bounds are 32 MiB for the log, 8 MiB for each link and direction, and
1,024 messages of a client, each several times over in Python objects."""


def memory(mesh: Mesh) -> int:
    """Return the resident bytes of router and edges."""
    total = 0
    for process in ("router", *(f"edge-{n}" for n in range(mesh.edges))):
        fields = Path(f"/proc/{mesh.pid(process)}/statm").read_text().split()
        total += int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def numbers(mesh: Mesh, topic: str, count: int) -> list[int]:
    """Return the numbers of a topic's messages in its log, in order."""
    found = queue.read(
        mesh,
        subjects.log_stream(mesh.instance, topic.partition("/")[0]),
        subjects.log_subject(mesh.instance, topic),
        count,
        seconds=30,
    )
    return [struct.unpack(">Q", message.data[:8])[0] for message in found]


async def until_acknowledged(hoses: list[Firehose], count: int, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while any(len(hose.acknowledged) < count for hose in hoses):  # noqa: ASYNC110 - sets that tasks fill
            await asyncio.sleep(0.05)


async def until_quiet(hoses: list[Firehose], seconds: float = 60) -> list[int]:
    """Wait for answers that are under way; return how many each has."""
    async with asyncio.timeout(seconds):
        while True:
            before = [len(hose.acknowledged) for hose in hoses]
            await asyncio.sleep(1)
            if before == [len(hose.acknowledged) for hose in hoses]:
                return before


async def outage(mesh: Mesh, away_s: float) -> list[Firehose]:
    """Stop NATS for a while under load, and return what the publishers know afterwards."""
    name = secrets.token_hex(4)
    hoses = [Firehose(mesh, f"{mesh.topic}/{name}/{n}", edge=n % mesh.edges) for n in range(PUBLISHERS)]
    async with asyncio.TaskGroup() as group:
        for hose in hoses:
            group.create_task(hose.run())
        await until_acknowledged(hoses, 200)
        before = memory(mesh)
        os.kill(mesh.pid("nats"), signal.SIGSTOP)
        try:
            acknowledged = await until_quiet(hoses)
            deadline = time.monotonic() + away_s
            while time.monotonic() < deadline:
                await asyncio.sleep(0.25)
                assert memory(mesh) - before < MOST_GROWTH
            assert [len(hose.acknowledged) for hose in hoses] == acknowledged, "acknowledged without the log"
        finally:
            os.kill(mesh.pid("nats"), signal.SIGCONT)
        await until_acknowledged(hoses, max(acknowledged) + 200)
        for hose in hoses:
            hose.stop()
    return hoses


def check(mesh: Mesh, hoses: list[Firehose]) -> None:
    for hose in hoses:
        assert len(hose.acknowledged) == hose.sent
        assert numbers(mesh, hose.topic, hose.sent) == list(range(hose.sent))


@pytest.mark.timeout(150)
def test_nats_is_away_for_some_seconds_under_load(mesh: Mesh) -> None:
    mesh.wait_healthy()
    check(mesh, asyncio.run(outage(mesh, 6)))
    mesh.wait_healthy()


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_nats_is_away_for_a_minute_under_load(mesh: Mesh) -> None:
    mesh.wait_healthy()
    check(mesh, asyncio.run(outage(mesh, 60)))
    mesh.wait_healthy()


async def full(mesh: Mesh, topic: str, other: str) -> tuple[Firehose, Firehose]:
    """Let the log of one topic be full for a while, while another goes on."""
    url = (mesh.data / "secrets" / "nats.url").read_text().strip()
    client = await nats.connect(url, inbox_prefix="_INBOX_test")
    hose, neighbour = Firehose(mesh, f"{topic}/a"), Firehose(mesh, f"{other}/a", edge=1)
    try:
        js = client.jetstream()
        config = (await js.stream_info(subjects.log_stream(mesh.instance, topic))).config
        await js.update_stream(dataclasses.replace(config, max_bytes=2 << 20, discard=DiscardPolicy.NEW))
        async with asyncio.TaskGroup() as group:
            group.create_task(hose.run())
            async with asyncio.timeout(30):
                while hose.sent < 4_000 or len(hose.acknowledged) < 1_000:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
            (waiting,) = await until_quiet([hose])
            assert waiting < 4_000
            group.create_task(neighbour.run())
            await until_acknowledged([neighbour], 1_000)
            assert len(hose.acknowledged) == waiting
            neighbour.stop()
            hose.stop()
            await js.update_stream(config)
    finally:
        await client.close()
    return hose, neighbour


@pytest.mark.timeout(120)
def test_full_log_makes_its_publishers_wait_and_no_others(mesh: Mesh) -> None:
    topics = [f"full{secrets.token_hex(4)}" for _ in range(2)]
    for topic in topics:
        mesh.weimq("topic", "create", topic, "--ordered")
    check(mesh, list(asyncio.run(full(mesh, *topics))))


@pytest.mark.timeout(120)
def test_topics_come_and_go_under_traffic(mesh: Mesh) -> None:
    async def exercise() -> list[Firehose]:
        steady = Firehose(mesh, f"{mesh.topic}/{secrets.token_hex(4)}", pause_s=0.05)
        async with asyncio.TaskGroup() as group:
            group.create_task(steady.run())
            for turn in range(3):
                topic = f"run{secrets.token_hex(4)}"
                await asyncio.to_thread(mesh.weimq, "topic", "create", topic)
                hose = Firehose(mesh, f"{topic}/x", edge=turn % mesh.edges, pause_s=0.05)
                hosing = asyncio.ensure_future(hose.run())
                await until_acknowledged([hose], 200)
                assert numbers_of_start(await asyncio.to_thread(numbers, mesh, hose.topic, 100))
                await asyncio.to_thread(mesh.weimq, "topic", "delete", topic)
                # Its publishers are closed: the topic does not exist.
                with contextlib.suppress(AssertionError, BaseExceptionGroup, OSError):
                    async with asyncio.timeout(20):
                        await hosing
                seen = len(steady.acknowledged)
                await until_acknowledged([steady], seen + 500)
            steady.stop()
        return [steady]

    def numbers_of_start(found: list[int]) -> bool:
        return found[:100] == list(range(100))

    check(mesh, asyncio.run(exercise()))
    with Client(mesh) as client:
        client.publish_and_wait(f"{mesh.topic}/after", b"")
