"""The online query over HTTP, as product.md section 4 has it."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from services.common.signature import sign, string_to_sign
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = pytest.mark.e2e

PATH = "/route/clientId/get"


def _query(mesh: Mesh, client_id: str, **changes: str | None) -> httpx.Response:
    fields = {
        "accessKey": mesh.credentials["access_key"],
        "instanceId": mesh.instance,
        "resource": client_id,
        "timestamp": str(int(time.time() * 1000)),
    }
    fields.update({k: v for k, v in changes.items() if v is not None and k != "signature"})
    fields["signature"] = changes.get("signature") or sign(mesh.credentials["secret"], string_to_sign(fields))
    for name, value in changes.items():
        if value is None:
            del fields[name]
    return httpx.get(mesh.status_url + PATH, params=fields, timeout=30)


def _online(mesh: Mesh, client_id: str) -> int:
    answer = _query(mesh, client_id)
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    assert body["code"] == 0
    assert body["success"] is True
    return int(body["online"])


@pytest.mark.parametrize("edge", [0, 1])
def test_online_follows_the_client(mesh: Mesh, edge: int) -> None:
    client = Client(mesh, edge=edge)
    assert _online(mesh, client.client_id) == 0
    with client:
        assert _online(mesh, client.client_id) == 1
    until(lambda: _online(mesh, client.client_id) == 0, what="offline")


@pytest.mark.parametrize("missing", ["accessKey", "instanceId", "resource", "timestamp", "signature"])
def test_a_missing_parameter_is_400_code_1(mesh: Mesh, missing: str) -> None:
    answer = _query(mesh, "GID_demo@@@x", **{missing: None})
    assert (answer.status_code, answer.json()["code"], answer.json()["success"]) == (400, 1, False)


def test_a_wrong_url_is_400(mesh: Mesh) -> None:
    assert httpx.get(mesh.status_url + "/route/clientId/nothing", timeout=30).status_code == 400


def test_a_wrong_signature_is_403_code_2(mesh: Mesh) -> None:
    answer = _query(mesh, "GID_demo@@@x", signature="AAAA")
    assert (answer.status_code, answer.json()["code"]) == (403, 2)
    answer = _query(mesh, "GID_demo@@@x", accessKey="nosuchkey")
    assert (answer.status_code, answer.json()["code"]) == (403, 2)


def test_a_foreign_group_is_403_code_3(mesh: Mesh) -> None:
    answer = _query(mesh, "GID_foreign@@@x")
    assert (answer.status_code, answer.json()["code"]) == (403, 3)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_an_old_timestamp_is_403_code_4(mesh: Mesh, minutes: int) -> None:
    answer = _query(mesh, "GID_demo@@@x", timestamp=str(int(time.time() * 1000) + minutes * 60_000))
    assert (answer.status_code, answer.json()["code"]) == (403, 4)


def test_questions_about_clients_over_two_edges(mesh: Mesh) -> None:
    with Client(mesh, edge=0) as here, Client(mesh, edge=1) as there:
        topic = f"{mesh.topic}/{here.client_id.rpartition('@')[2]}"
        here.subscribe(f"{topic}/#", 1)
        there.subscribe(f"{topic}/+", 2)
        both = sorted((here.client_id, there.client_id))
        online = {client["client_id"] for client in mesh.json("clients")}
        assert online >= set(both)
        assert [client["client_id"] for client in mesh.json("clients", "--topic", f"{topic}/x")] == both
        assert [client["client_id"] for client in mesh.json("clients", "--topic", f"{topic}/x/y")] == [here.client_id]
        described = mesh.json("status", there.client_id)
        [connection] = described["connections"]
        assert connection["subscriptions"] == [{"topic_filter": f"{topic}/+", "qos": 2}]
        values = {"instanceId": mesh.instance, "groupId": mesh.credentials["group"], "action": "listGroupClients"}
        values |= {"accessKey": mesh.credentials["access_key"], "timestamp": str(int(time.time() * 1000))}
        values["signature"] = sign(mesh.credentials["secret"], string_to_sign(values))
        answer = httpx.get(f"{mesh.status_url}/v1/listGroupClients", params=values, timeout=30)
        assert answer.status_code == 200
        assert {client["clientId"] for client in answer.json()["clients"]} >= set(both)
