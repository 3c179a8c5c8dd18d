"""MQTT.js on Node over TCP, TLS, WebSocket and secure WebSocket."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh import Mesh
from tests.support.tools import need

# The first test also installs what npm brings.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

TIMEOUT_S = 20.0
SCHEMES = {"tcp": "mqtt", "tls": "mqtts", "ws": "ws", "wss": "wss"}


def _client(mesh: Mesh, transport: str, edge: int, **options: Any) -> dict[str, Any]:
    client_id = mesh.client_id(secrets.token_hex(2))
    user, password = mesh.login(client_id)
    path = "/mqtt" if transport in {"ws", "wss"} else ""
    return {
        "url": f"{SCHEMES[transport]}://127.0.0.1:{mesh.mqtt_port(edge, transport)}{path}",
        "ca": str(mesh.data / "tls" / "certificate.pem") if transport in {"tls", "wss"} else None,
        "options": {"clientId": client_id, "username": user, "password": password, **options},
    }


def _run(node_modules: Path, job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [need("node", "nodejs"), str(node_modules.with_name("mqttjs.mjs"))],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def _message(topic: str, payload: str, qos: int) -> dict[str, object]:
    return {"topic": topic, "payload": payload, "qos": qos}


@pytest.mark.parametrize("transport", SCHEMES)
@pytest.mark.parametrize("version", ["3.1.1", "3.1"])
def test_messages_of_each_qos_cross_edges(mesh: Mesh, node_modules: Path, transport: str, version: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    protocol = {"protocolId": "MQIsdp", "protocolVersion": 3} if version == "3.1" else {"protocolVersion": 4}
    messages = [_message(f"{topic}/{qos}", secrets.token_hex(15_000), qos) for qos in (0, 1, 2)]
    outcome = _run(
        node_modules,
        {
            "subscriber": _client(mesh, transport, 1, **protocol),
            "publisher": _client(mesh, transport, 0, **protocol),
            "filter": f"{topic}/#",
            "messages": messages,
            "vanish": False,
            "count": len(messages),
        },
    )
    assert outcome["granted"] == [2]
    # Of different QoS the order is not the standard's concern.
    assert sorted(outcome["received"], key=lambda message: message["topic"]) == messages


@pytest.mark.parametrize("transport", SCHEMES)
def test_peers_talk_without_subscription(mesh: Mesh, node_modules: Path, transport: str) -> None:
    receiver, sender = _client(mesh, transport, 1), _client(mesh, transport, 0)
    topic = f"{mesh.topic}/p2p/{receiver['options']['clientId']}"
    outcome = _run(
        node_modules,
        {
            "subscriber": receiver,
            "publisher": sender,
            "filter": f"{mesh.topic}/{secrets.token_hex(4)}",
            "messages": [_message(topic, "hello", 1)],
            "vanish": False,
            "count": 1,
        },
    )
    (message,) = outcome["received"]
    assert message["payload"] == "hello"
    assert message["qos"] == 1
    assert message["topic"].startswith(f"{mesh.topic}/p2p/")


@pytest.mark.parametrize("transport", SCHEMES)
def test_the_will_is_sent_when_the_client_vanishes(mesh: Mesh, node_modules: Path, transport: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    outcome = _run(
        node_modules,
        {
            "subscriber": _client(mesh, transport, 1),
            "publisher": _client(mesh, transport, 0, will={"topic": topic, "payload": "gone", "qos": 1}),
            "filter": topic,
            "messages": [_message(topic, "here", 1)],
            "vanish": True,
            "count": 2,
        },
    )
    assert outcome["received"] == [_message(topic, "here", 1), _message(topic, "gone", 1)]
