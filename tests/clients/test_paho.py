"""paho-mqtt as MQTT 3.1 and 3.1.1 over every transport, across two edges."""

from __future__ import annotations

import contextlib
import secrets

import paho.mqtt.client as paho
import pytest

from tests.support.clients import Client
from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e

TRANSPORTS = ["tcp", "tls", "ws", "wss"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("protocol", [paho.MQTTv31, paho.MQTTv311])
def test_messages_of_each_qos_cross_edges(mesh: Mesh, transport: str, protocol: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(Client(mesh, edge=1, transport=transport, protocol=protocol))
        sender = stack.enter_context(Client(mesh, transport=transport, protocol=protocol))
        # MQTT 3.1 counts 23 characters; a client id of the product needs more.
        assert len(Client(mesh, "x" * 24).client_id) > 23
        assert receiver.subscribe(f"{topic}/#", 2) == [2]
        payloads = [secrets.token_bytes(30_000) for _ in range(3)]
        for qos, payload in enumerate(payloads):
            sender.publish_and_wait(f"{topic}/{qos}", payload, qos)
        assert receiver.wait_messages(3) == [(f"{topic}/{qos}", payload, qos) for qos, payload in enumerate(payloads)]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("protocol", [paho.MQTTv31, paho.MQTTv311])
def test_the_will_is_sent_when_the_client_vanishes(mesh: Mesh, transport: str, protocol: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=1) as witness:
        witness.subscribe(topic, 1)
        client = Client(mesh, transport=transport, protocol=protocol, will=(topic, b"gone", 1, False)).connect()
        assert client.return_code == 0
        client.abort()
        assert witness.wait_messages(1) == [(topic, b"gone", 1)]
