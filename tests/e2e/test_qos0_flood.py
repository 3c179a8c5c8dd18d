"""QoS 1 beside more QoS 0 than goes through, over two edges."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator

import pytest

from services.edge.mqtt import codec
from services.edge.mqtt.packets import Connect, Publish, Subscribe
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = pytest.mark.e2e

FLOODS = 4
MESSAGES = 100


def _socket(mesh: Mesh, edge: int) -> socket.socket:
    client_id = mesh.client_id(secrets.token_hex(6))
    user, password = mesh.login(client_id)
    sock = socket.create_connection(("127.0.0.1", mesh.mqtt_port(edge)), 20)
    sock.sendall(codec.encode(Connect(4, client_id, True, 0, user, password.encode(), None)))
    assert sock.recv(4)[3] == 0
    return sock


class Flood:
    """One client that sends QoS 0 as fast as TCP takes it, and one that reads it on the other edge."""

    def __init__(self, mesh: Mesh, topic: str) -> None:
        self._reader = _socket(mesh, 1)
        self._reader.sendall(codec.encode(Subscribe(1, [(topic, 0)])))
        assert self._reader.recv(5)[4] == 0
        self._writer = _socket(mesh, 0)
        self._data = codec.encode(Publish(topic, bytes(100), 0, False, False, 0)) * 500
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._write, self._read)]
        self.received_bytes = 0

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while not self._stop.is_set():
                self._writer.sendall(self._data)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._reader.recv(1 << 20):
                self.received_bytes += len(data)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for sock in (self._writer, self._reader):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in self._threads:
                thread.join()
            for sock in (self._writer, self._reader):
                sock.close()


def test_qos_1_gets_through_a_flood_of_qos_0(mesh: Mesh) -> None:
    parent = f"free{secrets.token_hex(4)}"
    mesh.weimq("topic", "create", parent, "--no-log")
    with contextlib.ExitStack() as stack:
        floods = [Flood(mesh, f"{parent}/flood/{n}") for n in range(FLOODS)]
        for flood in floods:
            stack.enter_context(flood.running())
        until(lambda: all(flood.received_bytes > 1 << 20 for flood in floods), seconds=30)
        subscriber = stack.enter_context(Client(mesh, edge=1))
        subscriber.subscribe(f"{parent}/careful", 1)
        publisher = stack.enter_context(Client(mesh, edge=0))
        before = [flood.received_bytes for flood in floods]
        for n in range(MESSAGES):  # each in its time, which `publish_and_wait` bounds
            publisher.publish_and_wait(f"{parent}/careful", b"%d" % n, 1)
        until(lambda: len(subscriber.messages) == MESSAGES)
        assert [payload for _, payload, _ in subscriber.messages] == [b"%d" % n for n in range(MESSAGES)]
        until(lambda: all(flood.received_bytes > count for flood, count in zip(floods, before, strict=True)))
