"""Logged topics, whose messages an edge gives to its own subscribers while the router sends them to all others."""

from __future__ import annotations

import secrets
import threading

import pytest

from services.common import subjects
from tests.support import queue
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


class Publisher:
    """Publishes numbers at QoS 1, some under way at a time, until it is stopped."""

    def __init__(self, mesh: Mesh, topic: str) -> None:
        self._client = Client(mesh, edge=0)
        self._topic = topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        """Of messages that were acknowledged."""

    def _run(self) -> None:
        while not self._stop.is_set():
            infos = [self._client.publish(self._topic, b"%d" % (self.count + n), 1) for n in range(10)]
            for info in infos:
                info.wait_for_publish(60)
                assert info.is_published()
            self.count += len(infos)

    def start(self) -> None:
        """Connect and begin."""
        self._client.__enter__()
        self._thread.start()

    def stop(self) -> int:
        """End, and return how many were acknowledged."""
        self._stop.set()
        self._thread.join()
        self._client.__exit__(None, None, None)
        return self.count

    def wait_more(self, count: int = 200) -> None:
        """Wait until so many more were acknowledged."""
        goal = self.count + count
        until(lambda: self.count >= goal, seconds=40, what="publishing goes on")


def _numbers(client: Client, topic: str) -> list[int]:
    return [int(payload) for name, payload, _ in client.messages if name == topic]


def _wait_for(client: Client, topic: str, number: int) -> None:
    until(lambda: any(each > number for each in _numbers(client, topic)), what=f"a message after {number}")


def test_subscribers_come_and_go_on_both_edges_and_get_each_message_once_in_order(mesh: Mesh) -> None:
    mesh.wait_healthy()
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    publisher = Publisher(mesh, topic)
    with Client(mesh, edge=0) as here, Client(mesh, edge=1) as there:
        here.subscribe(topic, 1)
        there.subscribe(topic, 1)
        publisher.start()
        try:
            for topic_filter in (topic, f"{mesh.topic}/+", f"{mesh.topic}/#"):
                for edge in (0, 1):
                    publisher.wait_more()
                    with Client(mesh, edge=edge) as guest:
                        guest.subscribe(topic_filter, 1)
                        after = publisher.count + 10  # those under way may have been published before
                        _wait_for(guest, topic, after + 50)
                        received = _numbers(guest, topic)
                        assert received[0] <= after
                        assert received == list(range(received[0], received[0] + len(received)))
        finally:
            count = publisher.stop()
        for client in (here, there):
            client.wait_messages(count)
            assert _numbers(client, topic) == list(range(count))


@pytest.mark.parametrize("process", ["router", "nats"])
def test_nothing_acknowledged_is_lost_when_a_process_is_killed(mesh: Mesh, process: str) -> None:
    mesh.wait_healthy()
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    publisher = Publisher(mesh, topic)
    with Client(mesh, edge=0) as here, Client(mesh, edge=1) as there:
        here.subscribe(topic, 1)
        there.subscribe(topic, 1)
        publisher.start()
        try:
            publisher.wait_more()
            mesh.kill(process)
            publisher.wait_more()
            mesh.wait_healthy()
            publisher.wait_more()
        finally:
            count = publisher.stop()
        until(lambda: set(range(count)) <= set(_numbers(there, topic)), what="every message at the other edge")
        first = list(dict.fromkeys(_numbers(there, topic)))
        assert first == sorted(first)
        here.wait_messages(count)
        assert _numbers(here, topic) == list(range(count))  # nothing comes back to where it was delivered
    name = subjects.log_stream(mesh.instance, mesh.topic)
    stored = queue.read(mesh, name, subjects.log_subject(mesh.instance, topic), count)
    assert [int(message.data) for message in stored] == list(range(count))
