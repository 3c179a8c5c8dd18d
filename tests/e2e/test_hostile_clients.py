"""Bad bytes and bad manners close the connection that brought them, and nothing else."""

from __future__ import annotations

import secrets
import socket

import pytest

from services.edge.mqtt import codec
from services.edge.mqtt.packets import Connect, PingReq
from tests.support.clients import Client
from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e


def _connect(mesh: Mesh, keep_alive_s: int = 60) -> socket.socket:
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    sock = socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=10)
    sock.sendall(codec.encode(Connect(4, client_id, True, keep_alive_s, user, password.encode(), None)))
    assert sock.recv(4) == b"\x20\x02\x00\x00"
    return sock


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x10\xff\xff\xff\xff\x7f",
        b"\x10\xff\xff\xff\x7f" + b"\x00" * 10,
        codec.encode(PingReq()),
    ],
)
def test_bytes_that_are_no_connect_close_the_connection(mesh: Mesh, data: bytes) -> None:
    with Client(mesh) as witness, socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=10) as sock:
        sock.sendall(data)
        assert _is_closed(sock)
        witness.publish_and_wait(f"{mesh.topic}/x", b"x")


@pytest.mark.parametrize(
    "data",
    [
        b"\x36\x03\x00\x01a",  # QoS 3
        b"\x30\x03\x00\x01#",  # wildcard in a topic name
        b"\x82\x02\x00\x01",  # SUBSCRIBE without a filter
        b"\x10\x00",  # a second CONNECT
        b"\x20\x02\x00\x00",  # CONNACK from a client
        b"\xf0\x00",  # reserved packet type
    ],
)
def test_malformed_packets_close_the_connection(mesh: Mesh, data: bytes) -> None:
    with Client(mesh) as witness, _connect(mesh) as sock:
        sock.sendall(data)
        assert _is_closed(sock)
        witness.publish_and_wait(f"{mesh.topic}/x", b"x")


def test_silence_beyond_the_keep_alive_closes_the_connection(mesh: Mesh) -> None:
    with _connect(mesh, keep_alive_s=1) as sock:
        assert _is_closed(sock)


def test_a_connect_may_come_byte_by_byte(mesh: Mesh) -> None:
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    with socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in codec.encode(Connect(4, client_id, True, 60, user, password.encode(), None)):
            sock.sendall(bytes((byte,)))
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        sock.sendall(codec.encode(PingReq()))
        assert sock.recv(2) == b"\xd0\x00"


def test_packets_sent_with_connect_are_handled_after_it(mesh: Mesh) -> None:
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    connect = codec.encode(Connect(4, client_id, True, 60, user, password.encode(), None))
    with socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=10) as sock:
        sock.sendall(connect + codec.encode(PingReq()))
        received = b""
        while len(received) < 6:
            received += sock.recv(6)
        assert received == b"\x20\x02\x00\x00\xd0\x00"
