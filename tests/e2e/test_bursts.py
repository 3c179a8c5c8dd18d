"""Messages of QoS 1 that come many in one read, which stay together from the publisher's edge to the subscribers'."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import pytest

from services.common import subjects
from services.edge.mqtt.packets import PubAck, Publish
from tests.support import queue
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.raw import RawClient
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

BURST = 20


@pytest.fixture(autouse=True)
def _healthy(mesh: Mesh) -> Iterator[None]:
    mesh.wait_healthy()
    yield
    mesh.wait_healthy()


class Bursts:
    """Publishes numbers at QoS 1, `BURST` in one write and the next ones when all are acknowledged, until stopped."""

    def __init__(self, mesh: Mesh, topic: str) -> None:
        self._raw = RawClient(mesh)
        self._raw.socket.settimeout(60)
        self._topic = topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0
        """Of messages that were acknowledged, all those before."""

    def _run(self) -> None:
        while not self._stop.is_set():
            self.burst()

    def burst(self) -> None:
        """Publish and wait for the answers, which come in order."""
        numbers = range(self.count, self.count + BURST)
        self._raw.send(*(Publish(self._topic, b"%06d" % n, 1, False, False, n % 65_535 + 1) for n in numbers))
        assert [self._raw.receive() for _ in numbers] == [PubAck(n % 65_535 + 1) for n in numbers]
        self.count += BURST

    def start(self) -> None:
        """Publish without end."""
        self._thread.start()

    def stop(self) -> int:
        """End, and return how many were acknowledged."""
        self._stop.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(70)
            assert not self._thread.is_alive()
        self._raw.close()
        return self.count

    def wait_more(self, count: int = 400) -> None:
        """Wait until so many more were acknowledged."""
        goal = self.count + count
        until(lambda: self.count >= goal, seconds=40, what="publishing goes on")


def _numbers(client: Client) -> list[int]:
    return [int(payload) for _, payload, _ in client.messages]


def _logged(mesh: Mesh, topic: str, count: int) -> list[int]:
    name = subjects.log_stream(mesh.instance, mesh.topic)
    return [int(message.data) for message in queue.read(mesh, name, subjects.log_subject(mesh.instance, topic), count)]


@pytest.mark.parametrize("granted", [0, 1, 2])
def test_everyone_gets_each_message_once_and_in_order(mesh: Mesh, granted: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with (
        Client(mesh) as here,
        Client(mesh, edge=1) as there,
        Client(mesh, edge=1, clean_session=False) as persistent,
        Client(mesh, edge=0) as one,
        Client(mesh, edge=1) as other,
    ):
        for client in (here, there, persistent):
            client.subscribe(topic, granted)
        for client in (one, other):
            client.subscribe(f"$share/{secrets.token_hex(4)}/{topic}", granted)
        bursts = Bursts(mesh, topic)
        for _ in range(10):
            bursts.burst()
        count = bursts.count
        numbers = list(range(count))
        for client in (here, there, persistent, one, other):
            client.wait_messages(count)
            assert _numbers(client) == numbers
            assert {qos for *_, qos in client.messages} == {min(granted, 1)}
        bursts.stop()
        assert _logged(mesh, topic, count) == numbers


def test_p2p_messages_reach_their_client_on_another_edge_in_order(mesh: Mesh) -> None:
    with Client(mesh, edge=1) as receiver:
        topic = f"{mesh.topic}/p2p/{receiver.client_id}"
        bursts = Bursts(mesh, topic)
        for _ in range(10):
            bursts.burst()
        receiver.wait_messages(bursts.count)
        assert _numbers(receiver) == list(range(bursts.count))
        assert _logged(mesh, topic, bursts.count) == list(range(bursts.count))
        bursts.stop()


@pytest.mark.parametrize("process", ["router", "nats"])
def test_nothing_acknowledged_is_lost_when_a_process_is_killed(mesh: Mesh, process: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh) as here, Client(mesh, edge=1) as there:
        here.subscribe(topic, 1)
        there.subscribe(topic, 1)
        bursts = Bursts(mesh, topic)
        bursts.start()
        try:
            bursts.wait_more()
            mesh.kill(process)
            bursts.wait_more()
            mesh.wait_healthy()
            bursts.wait_more()
        finally:
            count = bursts.stop()
        numbers = list(range(count))
        for client in (here, there):
            until(lambda client=client: set(numbers) <= set(_numbers(client)), what="every message")  # type: ignore[misc]  # a default
            first = list(dict.fromkeys(_numbers(client)))
            assert first == sorted(first)
    assert _logged(mesh, topic, count)[:count] == numbers
