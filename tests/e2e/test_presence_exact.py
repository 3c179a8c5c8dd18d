"""Lifecycle events are exact: folded by the reference consumer they equal the online query, whatever was killed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from services.common.signature import sign, string_to_sign
from services.common.subjects import event_stream
from tests.support.crowd import Crowd
from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples" / "presence_consumer.py"
SETTLE_S = 60.0
CUT_OFF, GOODBYE = ["connect", "tcpclean"], ["connect", "disconnect", "tcpclean"]
"""Events of a connection that is over."""
KILLED = ("edge-0", "session", "nats", "edge-1")


def reference_consumer() -> Any:
    """Return a `Presence` of examples/presence_consumer.py."""
    spec = importlib.util.spec_from_file_location("presence_consumer", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Presence()


async def read_events(mesh: Mesh) -> list[dict[str, Any]]:
    """Return all lifecycle events of the instance, in the order of the stream."""
    client = await nats.connect(mesh.credentials["nats_url"])
    try:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=30)
        events = await client.jetstream().pull_subscribe("", stream=event_stream(mesh.instance), config=config)
        left = (await events.consumer_info()).num_pending or 0
        found: list[dict[str, Any]] = []
        while len(found) < left:
            found += [json.loads(message.data) for message in await events.fetch(1_000, timeout=30)]
        return found
    finally:
        await client.close()


async def online_query(mesh: Mesh, client_ids: list[str]) -> dict[str, int]:
    """Ask for each client as product.md section 4 has it."""
    answers: dict[str, int] = {}
    async with httpx.AsyncClient(timeout=30) as http:
        for client_id in client_ids:
            fields = {
                "accessKey": mesh.credentials["access_key"],
                "instanceId": mesh.instance,
                "resource": client_id,
                "timestamp": str(int(time.time() * 1000)),
            }
            fields["signature"] = sign(mesh.credentials["secret"], string_to_sign(fields))
            answer = await http.get(f"{mesh.status_url}/route/clientId/get", params=fields)
            answers[client_id] = int(answer.json()["online"])
    return answers


def check_sequences(events: list[dict[str, Any]], client_ids: set[str]) -> dict[str, list[list[str]]]:
    """Check what each client's events promise: order, and nothing twice or without its beginning.

    Returns:
        For each client, the events of each of its connections, in order.
    """
    time_of: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    tags: dict[str, list[str]] = defaultdict(list)
    channels: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for event in events:
        if (client_id := event["clientId"]) not in client_ids:
            continue
        assert event["time"] >= time_of[client_id][0], "time goes back"
        assert event["eventIndex"] > time_of[client_id][1], "eventIndex does not rise"
        time_of[client_id] = (event["time"], event["eventIndex"])
        tags[event["channelId"]].append(event["eventType"])
        channels[client_id].setdefault(event["channelId"], tags[event["channelId"]])
    for of_channel in tags.values():
        assert of_channel in (["connect"], ["connect", "disconnect"], CUT_OFF, GOODBYE)
    return {client_id: list(of_client.values()) for client_id, of_client in channels.items()}


async def compare(mesh: Mesh, crowd: Crowd) -> dict[str, list[list[str]]]:
    """Wait until the fold of the events equals the online query and what the clients want to be.

    Returns:
        See `check_sequences`.
    """
    wanted = {member.client_id: int(member.is_online) for member in crowd.members}
    differing: dict[str, tuple[int, int, int]] = {}
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        events = await read_events(mesh)
        presence = reference_consumer()
        for event in events:
            presence.take(event)
        asked = await online_query(mesh, list(wanted))
        folded = {client_id: len(presence.channels.get(client_id, ())) for client_id in wanted}
        differing = {
            client_id: (wanted[client_id], folded[client_id], asked[client_id])
            for client_id in wanted
            if not wanted[client_id] == folded[client_id] == asked[client_id]
        }
        if not differing:
            return check_sequences(events, set(wanted))
        await asyncio.sleep(0.2)
    raise AssertionError(f"{len(differing)} clients differ (wanted, folded, asked): {list(differing.items())[:5]}")


async def exercise(mesh: Mesh, size: int, rounds: int) -> None:
    crowd = Crowd(mesh, size, seed=6)
    try:
        await crowd.churn(0.7)
        for turn in range(rounds):
            victim = KILLED[turn % len(KILLED)]
            async with asyncio.TaskGroup() as group:  # it dies while they come and go
                group.create_task(crowd.churn(0.5))
                group.create_task(asyncio.to_thread(mesh.kill, victim))
            await crowd.settle()
        await asyncio.to_thread(mesh.wait_healthy)
        await crowd.settle()
        await compare(mesh, crowd)
        assert sum(member.connections for member in crowd.members) > size
    finally:
        said_goodbye = {member.client_id for member in crowd.members if member.is_online}
        await crowd.disperse()
    connections = {member.client_id: member.connections for member in crowd.members}
    async with asyncio.timeout(SETTLE_S):
        while True:
            channels = await compare(mesh, crowd)
            if all(of_channel[-1] == "tcpclean" for of_client in channels.values() for of_channel in of_client):
                break
            await asyncio.sleep(0.2)
    for client_id, of_client in channels.items():
        # One may have been let in by an edge that died before it said so.
        assert len(of_client) >= connections[client_id], "a connection without its events"
        if client_id in said_goodbye:
            assert of_client[-1] == GOODBYE, "it said goodbye"
    assert sum(connections.values()) == sum(connections[client_id] for client_id in channels)


@pytest.mark.timeout(180)
def test_fold_of_events_equals_the_online_query_after_kills_and_mass_reconnects(mesh: Mesh) -> None:
    asyncio.run(exercise(mesh, size=300, rounds=4))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_fold_of_events_of_thousands_of_clients(mesh: Mesh) -> None:
    asyncio.run(exercise(mesh, size=3_000, rounds=12))
