"""Topics without a log, whose messages skip the router while all their subscribers are on the publisher's edge."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from typing import Self

import pytest

from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def parent(mesh: Mesh) -> str:
    """A parent topic without a log."""
    name = f"free{secrets.token_hex(4)}"
    mesh.weimq("topic", "create", name, "--no-log")
    return name


class Stream:
    """Publishes numbers to a topic, one after the other, until it is stopped."""

    def __init__(self, client: Client, topic: str, qos: int) -> None:
        self._client = client
        self._topic = topic
        self._qos = qos
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            self._client.publish_and_wait(self._topic, b"%d" % self.count, self._qos)
            self.count += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _wait_for(client: Client, number: int) -> None:
    until(lambda: any(each > number for each in _numbers(client)))


def _numbers(client: Client) -> Iterator[int]:
    return (int(payload) for _, payload, _ in client.messages)


@pytest.mark.parametrize("qos", [1, 2])
def test_subscribers_come_and_go_on_both_edges_and_none_misses_a_message(mesh: Mesh, parent: str, qos: int) -> None:
    topic = f"{parent}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher, Client(mesh, edge=0) as always:
        always.subscribe(topic, qos)
        with Stream(publisher, topic, qos) as stream:
            for edge_filter in (topic, f"{parent}/+", f"{parent}/#"):
                until(lambda: stream.count > 100)
                # A new one each time: what is under way at QoS 2 still comes after UNSUBACK, and would seem to be new.
                with Client(mesh, edge=1) as guest:
                    guest.subscribe(edge_filter, qos)
                    after = stream.count + 1  # the one on its way may have been published before
                    _wait_for(guest, after + 50)
                    received = list(_numbers(guest))
                    assert received[0] <= after
                    assert received == list(range(received[0], received[0] + len(received)))
                    guest.unsubscribe(edge_filter)
            stream.stop()
            always.wait_messages(stream.count)
            assert list(_numbers(always)) == list(range(stream.count))


def test_a_new_subscriber_of_the_same_edge_gets_the_next_message(mesh: Mesh, parent: str) -> None:
    topic = f"{parent}/{secrets.token_hex(4)}"
    with Client(mesh) as publisher, Client(mesh) as one, Client(mesh) as two:
        one.subscribe(topic, 1)
        for n in range(30):
            publisher.publish_and_wait(topic, b"%d" % n)
        two.subscribe(f"{parent}/#", 1)
        for n in range(30, 60):
            publisher.publish_and_wait(topic, b"%d" % n)
        one.wait_messages(60)
        two.wait_messages(30)
        assert list(_numbers(one)) == list(range(60))
        assert list(_numbers(two)) == list(range(30, 60))
