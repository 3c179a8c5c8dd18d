"""Debian's mosquitto_pub and mosquitto_sub with what `weimq sign` prints."""

from __future__ import annotations

import secrets
import subprocess

import pytest

from tests.support.mesh import Mesh
from tests.support.tools import need
from tests.support.wait import until

pytestmark = pytest.mark.e2e


def _arguments(mesh: Mesh, client_id: str, edge: int, transport: str, version: str) -> list[str]:
    login = mesh.json("sign", client_id)
    trust = ["--cafile", str(mesh.data / "tls" / "certificate.pem")] if transport == "tls" else []
    return [
        "-h", "localhost", "-p", str(mesh.mqtt_port(edge, transport)), "-V", version, *trust,
        "-i", client_id, "-u", login["username"], "-P", login["password"],
    ]  # fmt: skip


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.parametrize(("transport", "version"), [("tcp", "311"), ("tls", "311"), ("tcp", "31"), ("tls", "31")])
def test_pub_and_sub_talk_across_edges(mesh: Mesh, qos: str, transport: str, version: str) -> None:
    publish, subscribe = need("mosquitto_pub", "mosquitto-clients"), need("mosquitto_sub", "mosquitto-clients")
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    receiver = mesh.client_id(secrets.token_hex(4))
    arguments = _arguments(mesh, receiver, 1, transport, version)
    sub = subprocess.Popen(
        # It buffers its output when that is a pipe.
        ["stdbuf", "-oL", subscribe, *arguments, "-t", topic, "-q", qos, "-C", "1", "-W", "20", "-d"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sub.stdout is not None
    lines: list[str] = []
    while not any("SUBACK" in line or "Subscribed" in line for line in lines):
        lines.append(sub.stdout.readline())
        assert lines[-1], f"mosquitto_sub ended: {lines}"
    until(lambda: mesh.json("status", receiver)["online"] == 1, what="weimq status sees the subscriber")
    sender = mesh.client_id(secrets.token_hex(4))
    arguments = _arguments(mesh, sender, 0, transport, version)
    subprocess.run([publish, *arguments, "-t", topic, "-q", qos, "-m", "hello"], check=True, timeout=20)
    rest, _ = sub.communicate(timeout=20)
    assert sub.returncode == 0
    assert "hello" in rest
