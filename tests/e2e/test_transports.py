"""The same mesh over TCP, TLS, WebSocket and secure WebSocket, with paho-mqtt as the client."""

from __future__ import annotations

import secrets
import ssl

import pytest

from services.edge.mqtt import codec
from services.edge.mqtt.packets import Connect
from tests.support.clients import Client
from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e

TRANSPORTS = ["tcp", "tls", "ws", "wss"]


@pytest.mark.parametrize("sender", TRANSPORTS)
@pytest.mark.parametrize("receiver", TRANSPORTS)
def test_clients_of_any_two_transports_talk(mesh: Mesh, sender: str, receiver: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=1, transport=receiver) as subscriber, Client(mesh, edge=0, transport=sender) as publisher:
        subscriber.subscribe(topic, 2)
        payload = secrets.token_bytes(60_000)
        p2p = f"{mesh.topic}/p2p/{subscriber.client_id}"
        for qos in (0, 1, 2):
            publisher.publish_and_wait(topic, payload, qos)
            publisher.publish_and_wait(p2p, b"%d" % qos, qos)
            # Those of another QoS may overtake them (MQTT 3.1.1, 4.6; decision 10).
            received = subscriber.wait_messages(2 * (qos + 1))[-2:]
            assert sorted(received) == sorted([(topic, payload, qos), (p2p, b"%d" % qos, qos)])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_online_query_sees_clients_of_each_transport(mesh: Mesh, transport: str) -> None:
    with Client(mesh, transport=transport) as client:
        status = mesh.json("status", client.client_id)
        assert status["online"] == 1
        assert status["connections"][0]["address"].startswith("127.0.0.1:")


def test_old_tls_is_refused(mesh: Mesh) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(mesh.data / "tls" / "certificate.pem")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        mesh.tls_socket(context).close()


def test_malformed_bytes_over_tls_close_that_connection_only(mesh: Mesh) -> None:
    context = ssl.create_default_context(cafile=mesh.data / "tls" / "certificate.pem")
    with Client(mesh, transport="tls") as witness, mesh.tls_socket(context) as sock:
        client_id = mesh.client_id(secrets.token_hex(4))
        user, password = mesh.login(client_id)
        sock.sendall(codec.encode(Connect(4, client_id, True, 60, user, password.encode(), None)))
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        sock.sendall(b"\xff" * 10)
        assert sock.recv(10) == b""
        witness.publish_and_wait(f"{mesh.topic}/x", b"x")
