"""What a backend application finds in the logs and in the lifecycle events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client as Nats

from services.common import subjects
from services.edge.mqtt import codec
from services.edge.mqtt.packets import Connect, Publish
from tests.support import queue
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.nats import REFUSALS
from tests.support.wait import until

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_message_is_in_the_log_of_its_topic(mesh: Mesh, qos: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}/x y"
    with Client(mesh) as publisher:
        for n in range(20):
            publisher.publish_and_wait(topic, b"%d" % n, qos)
        found = queue.read(
            mesh, subjects.log_stream(mesh.instance, mesh.topic), subjects.log_subject(mesh.instance, topic), 20
        )
        assert [message.data for message in found] == [b"%d" % n for n in range(20)]
        headers = found[0].headers
        assert headers["qoslevel"] == str(qos)
        assert headers["cleansessionflag"] == "true"
        assert headers["mqttSecondTopic"] == topic.removeprefix(mesh.topic)
        assert headers["clientId"] == publisher.client_id
        assert headers["Nats-Msg-Id" if qos == 2 else "mqttMsgId"]


def test_p2p_messages_are_in_the_log(mesh: Mesh) -> None:
    with Client(mesh) as sender:
        topic = f"{mesh.topic}/p2p/{mesh.client_id(secrets.token_hex(4))}"
        sender.publish_and_wait(topic, b"kept")
        found = queue.read(
            mesh, subjects.log_stream(mesh.instance, mesh.topic), subjects.log_subject(mesh.instance, topic), 1
        )
        assert found[0].headers["mqttSecondTopic"] == topic.removeprefix(mesh.topic)


async def _delete_every_consumer(url: str, is_over: asyncio.Event) -> int:
    """Do what a backend may do to the consumers that it can see, until told to stop; returns how many it deleted."""
    client = await nats.connect(url)
    deleted = 0

    async def ask(call: str) -> Any:
        return json.loads((await client.request(f"$JS.API.{call}", b"", timeout=5)).data)

    try:
        while not is_over.is_set():
            with contextlib.suppress(nats.errors.Error, TimeoutError):  # auth is busy
                for stream in (await ask("STREAM.NAMES"))["streams"]:
                    for consumer in (await ask(f"CONSUMER.NAMES.{stream}")).get("consumers") or ():
                        await ask(f"CONSUMER.DELETE.{stream}.{consumer}")
                        deleted += 1
    finally:
        await client.close()
    return deleted


def test_backend_that_deletes_every_consumer_harms_no_service(mesh: Mesh) -> None:
    """Backends of one instance may touch each other's consumers, but no service depends on one there."""

    async def exercise() -> None:
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            deleting = group.create_task(_delete_every_consumer(mesh.credentials["nats_url"], is_over))
            for process in ("session", "router"):
                await asyncio.to_thread(mesh.kill, process)
            await asyncio.to_thread(mesh.wait_healthy)
            assert not deleting.done()
            await asyncio.to_thread(bridge)
            is_over.set()

    def bridge() -> None:
        """Send a message each way."""
        topic = f"{mesh.topic}/{secrets.token_hex(4)}"
        with Client(mesh) as client:
            client.subscribe(topic, 1)
            client.publish_and_wait(topic, b"from a client")
            asyncio.run(publish_inbound(topic))
            assert [payload for _, payload, _ in client.wait_messages(2)] == [b"from a client", b"from a backend"]

    async def publish_inbound(topic: str) -> None:
        backend = await nats.connect(mesh.credentials["nats_url"])
        headers = {"mqttSecondTopic": topic.removeprefix(mesh.topic)}
        await backend.jetstream().publish(
            subjects.in_subject(mesh.instance, mesh.topic), b"from a backend", headers=headers
        )
        await backend.close()

    with Client(mesh) as client:
        asyncio.run(exercise())
    assert [event["eventType"] for event in _events(mesh, client.client_id, 3)] == ["connect", "disconnect", "tcpclean"]


def test_lifecycle_events_of_a_polite_client(mesh: Mesh) -> None:
    with Client(mesh) as client:
        pass
    events = _events(mesh, client.client_id, 3)
    assert [event["eventType"] for event in events] == ["connect", "disconnect", "tcpclean"]
    assert len({event["channelId"] for event in events}) == 1
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    for event in events:
        assert list(event) == ["clientId", "time", "eventType", "channelId", "clientIp", "eventIndex"]
        assert re.fullmatch(r"[0-9a-f]{32}", event["channelId"])
        assert re.fullmatch(r"127\.0\.0\.1:\d+", event["clientIp"])


def test_lifecycle_events_of_a_client_that_vanishes(mesh: Mesh) -> None:
    with Client(mesh, edge=1) as client:
        client.abort()
        events = _events(mesh, client.client_id, 2)
        assert [event["eventType"] for event in events] == ["connect", "tcpclean"]


def test_tags_are_in_header_and_subject(mesh: Mesh) -> None:
    with Client(mesh) as client:
        pass
    found = queue.read(
        mesh,
        subjects.event_stream(mesh.instance),
        subjects.event_subject(mesh.instance, "GID_demo", "tcpclean"),
        10_000,
        3,
    )
    assert {message.headers["Tag"] for message in found} == {"tcpclean"}
    assert client.client_id in {json.loads(message.data)["clientId"] for message in found}


def test_a_repeated_publish_is_delivered_but_a_qos_2_repeat_is_not(mesh: Mesh) -> None:
    """A client that repeats QoS 2 with DUP before PUBREL adds nothing to the log."""
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=30) as sock:
        sock.sendall(codec.encode(Connect(4, client_id, True, 60, user, password.encode(), None)))
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        for dup in (False, True, True):
            sock.sendall(codec.encode(Publish(topic, b"once", 2, False, dup, 7)))
            assert sock.recv(4) == b"\x50\x02\x00\x07"
        sock.sendall(b"\x62\x02\x00\x07")
        assert sock.recv(4) == b"\x70\x02\x00\x07"
    stream, subject = subjects.log_stream(mesh.instance, mesh.topic), subjects.log_subject(mesh.instance, topic)
    assert [message.data for message in queue.read(mesh, stream, subject, 2, 1)] == [b"once"]


def _events(mesh: Mesh, client_id: str, count: int) -> list[dict[str, Any]]:
    subject = f"{subjects.EVENT}.{subjects.encode_token(mesh.instance)}.>"
    for _ in range(20):
        found = [
            json.loads(message.data)
            for message in queue.read(mesh, subjects.event_stream(mesh.instance), subject, 100_000, 1)
        ]
        events = [event for event in found if event["clientId"] == client_id]
        if len(events) >= count:
            return events
    raise AssertionError(f"no {count} events of {client_id}")


def test_backend_of_another_instance_made_at_run_time(mesh: Mesh) -> None:
    instance, topic = f"mqtt-{secrets.token_hex(4)}", "data"
    mesh.weimq("instance", "create", instance)
    mesh.weimq("topic", "create", topic, "--instance", instance)
    made = mesh.json("backend", "create", "app", "--instance", instance)
    assert {"instance": instance, "name": "app", "user": f"{instance}.app"} in mesh.json("backend", "list")
    assert mesh.json("backend", "show", "app", "--instance", instance) == made

    async def talk() -> str:
        client = await nats.connect(made["nats_url"])
        js = client.jetstream()
        try:
            await js.publish(subjects.in_subject(instance, topic), b"hello", headers={"mqttSecondTopic": "/x"})
            # The new topic is in the account within a second.
            async with asyncio.timeout(40):
                messages = await js.pull_subscribe("", durable="app", stream=subjects.log_stream(instance, topic))
                while True:
                    with contextlib.suppress(nats.errors.Error, TimeoutError):
                        (message,) = await messages.fetch(1, timeout=1)
                        break
            with pytest.raises((nats.errors.Error, TimeoutError)):
                await js.stream_info(subjects.log_stream(mesh.instance, mesh.topic))
            return message.data.decode()
        finally:
            await client.close()

    assert asyncio.run(talk()) == "hello"
    mesh.weimq("backend", "delete", "app", "--instance", instance)

    async def is_let_in() -> bool:
        client = Nats()
        with contextlib.suppress(*REFUSALS, TimeoutError):
            await client.connect(made["nats_url"], allow_reconnect=False, max_reconnect_attempts=0)
            await client.close()
            return True
        await client.close()
        return False

    until(lambda: not asyncio.run(is_let_in()), what="the deleted user is refused")
