"""aiomqtt over TCP, TLS and WebSocket."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
from contextlib import AsyncExitStack

import aiomqtt
import pytest

from tests.support.mesh import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio]

TRANSPORTS = ["tcp", "tls", "ws", "wss"]
TIMEOUT_S = 15.0


def _client(mesh: Mesh, transport: str, edge: int, will: aiomqtt.Will | None = None) -> aiomqtt.Client:
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    context = None
    if transport in {"tls", "wss"}:
        context = ssl.create_default_context(cafile=mesh.data / "tls" / "certificate.pem")
    return aiomqtt.Client(
        "127.0.0.1",
        mesh.mqtt_port(edge, transport),
        identifier=client_id,
        username=user,
        password=password,
        protocol=aiomqtt.ProtocolVersion.V311,
        transport="websockets" if transport in {"ws", "wss"} else "tcp",
        websocket_path="/mqtt",
        tls_context=context,
        will=will,
    )


def _received(message: aiomqtt.Message) -> tuple[str, object, int]:
    return message.topic.value, message.payload, message.qos


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_messages_of_each_qos_cross_edges(mesh: Mesh, transport: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    publisher, subscriber = _client(mesh, transport, 0), _client(mesh, transport, 1)
    async with asyncio.timeout(TIMEOUT_S), subscriber, publisher:
        granted = await subscriber.subscribe(f"{topic}/#", 2)
        assert [getattr(code, "value", code) for code in granted] == [2]
        for qos in (0, 1, 2):
            payload = secrets.token_bytes(30_000)
            await publisher.publish(f"{topic}/{qos}", payload, qos)
            assert _received(await anext(subscriber.messages)) == (f"{topic}/{qos}", payload, qos)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_burst_arrives_in_order(mesh: Mesh, transport: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    publisher, subscriber = _client(mesh, transport, 0), _client(mesh, transport, 1)
    async with asyncio.timeout(TIMEOUT_S), subscriber, publisher:
        await subscriber.subscribe(topic, 1)
        for n in range(50):
            await publisher.publish(topic, b"%d" % n, 1)
        received = [_received(await anext(subscriber.messages)) for _ in range(50)]
    assert received == [(topic, b"%d" % n, 1) for n in range(50)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_peers_talk_without_subscription(mesh: Mesh, transport: str) -> None:
    one, other = _client(mesh, transport, 0), _client(mesh, transport, 1)
    async with asyncio.timeout(TIMEOUT_S), one, other:
        for sender, receiver in ((one, other), (other, one)):
            topic = f"{mesh.topic}/p2p/{receiver.identifier}"
            await sender.publish(topic, b"hello", 1)
            got, payload, qos = _received(await anext(receiver.messages))
            assert (payload, qos) == (b"hello", 1)
            assert got.startswith(f"{mesh.topic}/p2p/")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("orderly", [True, False])
async def test_the_will_is_sent_only_when_the_client_vanishes(mesh: Mesh, transport: str, orderly: bool) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    watcher = _client(mesh, transport, 1)
    async with asyncio.timeout(TIMEOUT_S), watcher, AsyncExitStack() as stack:
        await watcher.subscribe(topic, 1)
        client = _client(mesh, transport, 0, aiomqtt.Will(topic, b"gone", 1))
        await stack.enter_async_context(client)
        await client.publish(topic, b"here", 1)
        assert _received(await anext(watcher.messages)) == (topic, b"here", 1)
        if orderly:
            await stack.aclose()
            await watcher.publish(topic, b"end", 1)
        else:
            # aiomqtt has no way to leave without DISCONNECT.
            paho = client._client.socket()
            assert paho is not None
            with socket.socket(fileno=os.dup(paho.fileno())) as connection:
                connection.shutdown(socket.SHUT_RDWR)
            with pytest.raises(aiomqtt.MqttError):
                await anext(client.messages)
        assert _received(await anext(watcher.messages)) == (topic, b"end" if orderly else b"gone", 1)
