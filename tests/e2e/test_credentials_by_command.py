"""What `weimq token|device|accesskey|instance` and the token HTTP API give a device, and take while it is connected."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import httpx
import pytest

from services.common.signature import sign, string_to_sign
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = pytest.mark.e2e

INVALID_NOTICE = "$SYS/tokenInvalidNotice"
LATEST_S = 1.0
"""How soon a change takes effect on live connections, at the latest."""


def logged_in(mesh: Mesh, made: dict[str, Any], device: str = "", edge: int = 0) -> Client:
    """Return a client with what a command printed."""
    return Client(mesh, device, login=(made["username"], made["password"]), edge=edge)


def test_a_token_from_apply_to_revoke(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    reading = mesh.json("token", "apply", topic, "--actions", "R", "--lifetime", "10m")
    writing = mesh.json("token", "apply", f"{topic}/#", "--actions", "W")
    with logged_in(mesh, reading) as reader, logged_in(mesh, writing, edge=1) as writer:
        assert reader.subscribe(topic, 1) == [1]
        writer.publish_and_wait(topic, b"hello")
        assert reader.wait_messages(1) == [(topic, b"hello", 1)]
        assert mesh.json("token", "revoke", reading["token"])["revoked"] == 1
        begin = time.monotonic()
        reader.wait_disconnected()
        assert time.monotonic() - begin < LATEST_S + 4  # others may take the CPU meanwhile
        notice, payload, _ = reader.messages[-1]
        assert (notice, json.loads(payload)) == (INVALID_NOTICE, {"code": 3, "type": "R"})
        writer.publish_and_wait(topic, b"still here")
    assert mesh.json("token", "query", reading["token"])["worth"] == "revoked"
    refused = logged_in(mesh, reading).connect()
    assert refused.return_code not in {0, None}
    refused.disconnect()


def test_a_token_applied_for_over_http(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    signed = {
        "actions": "R,W",
        "resources": topic,
        "expireTime": str(round(time.time() * 1_000) + 600_000),
        "serviceName": "mq",
        "instanceId": mesh.instance,
    }
    asked = {
        **signed,
        "proxyType": "MQTT",
        "accessKey": mesh.credentials["access_key"],
        "signature": sign(mesh.credentials["secret"], string_to_sign(signed)),
    }
    answer = httpx.post(f"http://127.0.0.1:{mesh.base + 5}/token/apply", data=asked, timeout=30).json()
    assert answer["code"] == 200
    login = {
        "username": f"Token|{mesh.credentials['access_key']}|{mesh.instance}",
        "password": f"RW|{answer['tokenData']}",
    }
    with logged_in(mesh, login) as client:
        assert client.subscribe(topic, 1) == [1]
        client.publish_and_wait(topic, b"over http")
        assert client.wait_messages(1) == [(topic, b"over http", 1)]


def test_a_device_from_register_to_refresh_to_revoke(mesh: Mesh) -> None:
    device = secrets.token_hex(4)
    client_id = mesh.client_id(device)
    first = mesh.json("device", "register", client_id)
    with logged_in(mesh, first, device) as client:
        client.publish_and_wait(f"{mesh.topic}/device", b"mine")
        second = mesh.json("device", "refresh", client_id)
        client.wait_disconnected()
    refused = logged_in(mesh, first, device).connect()
    assert refused.return_code not in {0, None}
    refused.disconnect()
    with logged_in(mesh, second, device, edge=1) as client:
        mesh.weimq("device", "revoke", client_id)
        client.wait_disconnected()


def test_a_key_that_may_only_read(mesh: Mesh) -> None:
    key = mesh.json("accesskey", "create", "--permission", "subscribe", "--topic-filter", f"{mesh.topic}/open/#")
    user = f"Signature|{key['access_key_id']}|{mesh.instance}"

    def client() -> Client:
        device = secrets.token_hex(4)
        return Client(mesh, device, login=(user, sign(key["secret"], mesh.client_id(device))))

    with client() as reader, Client(mesh) as writer:
        assert reader.subscribe(f"{mesh.topic}/open/#", 1) == [1]
        writer.publish_and_wait(f"{mesh.topic}/open/a", b"open")
        assert reader.wait_messages(1)[0][1] == b"open"
        reader.publish(f"{mesh.topic}/open/a", b"refused", 1)
        reader.wait_disconnected()
    with client() as reader:
        mesh.weimq("accesskey", "delete", key["access_key_id"])
        reader.wait_disconnected()


def test_a_limit_takes_effect_on_live_connections(mesh: Mesh) -> None:
    name = f"inst-{secrets.token_hex(4)}"
    mesh.weimq("instance", "create", name, "--profile", "standard")
    key = mesh.json("accesskey", "create", "--instance", name)
    client_id = f"any-{secrets.token_hex(4)}"
    login = (f"Signature|{key['access_key_id']}|{name}", sign(key["secret"], client_id))
    with Client(mesh, client_id=client_id, login=login) as client:
        assert client.subscribe("a", 1) == [1]
        mesh.weimq("instance", "set", name, "--max-subscriptions", "1")
        until(lambda: client.subscribe(secrets.token_hex(4), 1) == [0x80], what="the limit on subscriptions")
    mesh.weimq("instance", "delete", name, "--force")
