"""Each process killed with -9 in turn: the mesh heals by itself and loses nothing that was acknowledged."""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
from collections.abc import Iterator

import pytest

from services.common import subjects
from tests.support import queue
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


class Flow:
    """Publishes numbers one after the other until stopped; knows which were acknowledged."""

    def __init__(self, client: Client, topic: str, qos: int) -> None:
        self._client = client
        self._topic = topic
        self._qos = qos
        self._stop = threading.Event()
        self.acknowledged: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        n = 0
        while not self._stop.is_set():
            batch = [(m, self._client.publish(self._topic, b"%d" % m, self._qos)) for m in range(n, n + 10)]
            n += 10
            for m, info in batch:
                info.wait_for_publish(60)
                if info.is_published():
                    self.acknowledged.append(m)

    def wait_more(self, count: int = 50) -> None:
        """Wait until `count` more messages were acknowledged."""
        goal = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= goal, seconds=40, what="publishing goes on")

    def stop(self) -> list[int]:
        """Stop and return what was acknowledged."""
        self._stop.set()
        self._thread.join(70)
        assert not self._thread.is_alive()
        return self.acknowledged


@pytest.fixture(autouse=True)
def _healthy(mesh: Mesh) -> Iterator[None]:
    mesh.wait_healthy()
    yield
    mesh.wait_healthy()


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("process", ["router", "session", "auth", "status", "nats"])
def test_messages_survive_the_death_of(mesh: Mesh, process: str, qos: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher, Client(mesh, edge=1) as subscriber:
        subscriber.subscribe(topic, qos)
        flow = Flow(publisher, topic, qos)
        flow.wait_more()
        mesh.kill(process)
        flow.wait_more()
        mesh.wait_healthy()
        flow.wait_more()
        acknowledged = flow.stop()
        until(
            lambda: set(acknowledged) <= {int(payload) for _, payload, _ in subscriber.messages},
            what="every acknowledged message at the subscriber",
        )
        received = [int(payload) for _, payload, _ in subscriber.messages]
        first = list(dict.fromkeys(received))
        assert first == sorted(first)
        if qos == 2:
            assert received == first
        stored = queue.read(
            mesh,
            subjects.log_stream(mesh.instance, mesh.topic),
            subjects.log_subject(mesh.instance, topic),
            len(acknowledged),
        )
        numbers = [int(message.data) for message in stored]
        assert set(acknowledged) <= set(numbers)
        assert len(numbers) == len(set(numbers)), "a retried publish is doubled in the log"


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("process", ["router", "session"])
def test_a_link_that_breaks_by_silence_is_resumed(mesh: Mesh, process: str, qos: int) -> None:
    """Both processes live on, so nothing is repeated either."""
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher, Client(mesh, edge=1) as subscriber:
        subscriber.subscribe(topic, qos)
        flow = Flow(publisher, topic, qos)
        flow.wait_more()
        os.kill(mesh.pid(process), signal.SIGSTOP)
        try:
            until(lambda: not mesh.is_healthy("edge-0"), what="the edge misses its link")
            until(lambda: not mesh.is_healthy("edge-1"), what="the edge misses its link")
        finally:
            os.kill(mesh.pid(process), signal.SIGCONT)
        mesh.wait_healthy()
        flow.wait_more()
        acknowledged = flow.stop()
        subscriber.wait_messages(len(acknowledged))
        assert [int(payload) for _, payload, _ in subscriber.messages[: len(acknowledged)]] == acknowledged
        assert mesh.json("status", subscriber.client_id)["online"] == 1


def test_the_death_of_an_edge_is_announced(mesh: Mesh) -> None:
    subject = f"{subjects.EVENT}.{subjects.encode_token(mesh.instance)}.>"
    with Client(mesh, edge=1) as lost, Client(mesh, edge=0) as other:
        mesh.kill("edge-1")
        lost.wait_disconnected()

        def seen() -> list[str]:
            found = queue.read(mesh, subjects.event_stream(mesh.instance), subject, 100_000, 1)
            events = [json.loads(message.data) for message in found]
            return [str(event["eventType"]) for event in events if event["clientId"] == lost.client_id]

        until(lambda: seen() == ["connect", "tcpclean"], what="tcpclean of a client of the dead edge")
        other.publish_and_wait(f"{mesh.topic}/p2p/{other.client_id}", b"alive")
        other.wait_messages(1)
    mesh.wait_healthy()
    with Client(mesh, client_id=lost.client_id, edge=1) as again:
        again.publish_and_wait(f"{mesh.topic}/p2p/{again.client_id}", b"back")
        again.wait_messages(1)


def test_presence_survives_the_session_service(mesh: Mesh) -> None:
    with Client(mesh, edge=1) as client:
        assert mesh.json("status", client.client_id)["online"] == 1
        mesh.kill("session")
        mesh.wait_healthy()
        until(lambda: mesh.json("status", client.client_id)["online"] == 1, what="online again")
        duplicate = Client(mesh, client_id=client.client_id, edge=0).connect()
        assert duplicate.return_code == 133
        duplicate.disconnect()


def test_new_clients_are_let_in_after_auth_is_back(mesh: Mesh) -> None:
    mesh.kill("auth")
    mesh.wait_healthy()
    with Client(mesh) as client:
        client.publish_and_wait(f"{mesh.topic}/x", b"x")
