"""Will messages, also of a dead edge, and retained messages, also after a restart of what keeps them."""

from __future__ import annotations

import secrets

import pytest

from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def _forget(mesh: Mesh, *topics: str) -> None:
    """Remove retained messages, which other tests with wide filters would get."""
    with Client(mesh) as publisher:
        for topic in topics:
            publisher.publish_and_wait(topic, b"", 1, retain=True)


@pytest.mark.spec("MQTT-3.1.2-8")
@pytest.mark.spec("MQTT-3.1.2-16")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_will_is_sent_when_a_client_vanishes(mesh: Mesh, qos: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=1) as subscriber:
        subscriber.subscribe(topic, 2)
        client = Client(mesh, edge=0, will=(topic, b"gone", qos, False))
        with client:
            client.abort()
        assert subscriber.wait_messages(1) == [(topic, b"gone", qos)]


@pytest.mark.spec("MQTT-3.1.2-10")
@pytest.mark.spec("MQTT-3.14.4-3")
@pytest.mark.spec("MQTT-3.1.2-12")
def test_no_will_after_disconnect(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=1) as subscriber:
        subscriber.subscribe(topic, 1)
        with Client(mesh, edge=0, will=(topic, b"gone", 1, False)):
            pass
        with Client(mesh, edge=0) as publisher:
            publisher.publish_and_wait(topic, b"end")
        assert subscriber.wait_messages(1) == [(topic, b"end", 1)]


def test_the_will_of_a_client_of_a_dead_edge_is_sent(mesh: Mesh) -> None:
    mesh.wait_healthy()
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as subscriber:
        subscriber.subscribe(topic, 1)
        with Client(mesh, edge=1, will=(topic, b"gone", 1, False)) as client:
            mesh.kill("edge-1")
            client.wait_disconnected()
            assert subscriber.wait_messages(1) == [(topic, b"gone", 1)]
    mesh.wait_healthy()


@pytest.mark.spec("MQTT-3.3.1-5")
@pytest.mark.spec("MQTT-3.3.1-6")
@pytest.mark.spec("MQTT-3.3.1-7")
@pytest.mark.spec("MQTT-3.3.1-8")
@pytest.mark.spec("MQTT-3.3.1-10")
@pytest.mark.spec("MQTT-3.3.1-11")
def test_retained_messages_are_replayed_and_deleted(mesh: Mesh) -> None:
    root = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher:
        for name, qos in (("a", 0), ("b", 1), ("c", 2)):
            publisher.publish_and_wait(f"{root}/{name}", b"old", 1, retain=True)
            publisher.publish_and_wait(f"{root}/{name}", name.encode(), qos, retain=True)
        publisher.publish_and_wait(f"{root}/end", b"", 1)
        with Client(mesh, edge=1) as subscriber:
            subscriber.subscribe(f"{root}/#", 1)
            received = subscriber.wait_messages(3)
            assert sorted(received) == [(f"{root}/a", b"a", 0), (f"{root}/b", b"b", 1), (f"{root}/c", b"c", 1)]
            assert subscriber.retained == [True] * 3
            publisher.publish_and_wait(f"{root}/b", b"live", 1, retain=True)
            subscriber.wait_messages(4)
            assert subscriber.retained[-1] is False
        for name in "ab":
            publisher.publish_and_wait(f"{root}/{name}", b"", 1, retain=True)
        with Client(mesh, edge=0) as subscriber:
            subscriber.subscribe(f"{root}/+", 1)
            assert subscriber.wait_messages(1) == [(f"{root}/c", b"c", 1)]
    _forget(mesh, f"{root}/c")


@pytest.mark.parametrize("process", ["router", "nats"])
def test_retained_messages_survive_the_death_of(mesh: Mesh, process: str) -> None:
    mesh.wait_healthy()
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh) as publisher:
        publisher.publish_and_wait(topic, b"kept", 1, retain=True)
        mesh.kill(process)
        mesh.wait_healthy()
        with Client(mesh, edge=1) as subscriber:
            subscriber.subscribe(topic, 1)
            assert subscriber.wait_messages(1) == [(topic, b"kept", 1)]
        publisher.publish_and_wait(topic, b"", 1, retain=True)


@pytest.mark.spec("MQTT-3.1.2-17")
def test_a_retained_will_is_retained(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0, will=(topic, b"offline", 1, True)) as client:
        client.abort()

    def retained() -> bool:
        with Client(mesh, edge=1) as subscriber:
            subscriber.subscribe(topic, 1)
            subscriber.subscribe(f"{topic}/end", 1)
            subscriber.publish_and_wait(f"{topic}/end", b"")
            return (topic, b"offline", 1) in subscriber.wait_messages(1)

    until(retained, what="the retained will")
    _forget(mesh, topic)


@pytest.mark.spec("MQTT-3.1.2-12")
def test_a_client_without_will_leaves_nothing_behind(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=1) as subscriber:
        subscriber.subscribe(f"{topic}/#", 1)
        with Client(mesh, edge=0) as client:
            client.abort()
            until(lambda: mesh.json("status", client.client_id)["online"] == 0, what="the client is gone")
        subscriber.publish_and_wait(topic, b"end")
        assert subscriber.wait_messages(1) == [(topic, b"end", 1)]


@pytest.mark.spec("MQTT-3.1.2-7")
@pytest.mark.spec("MQTT-3.3.1-12")
@pytest.mark.spec("MQTT-3.8.4-3")
def test_what_a_retained_message_outlives(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher:
        publisher.publish_and_wait(topic, b"kept", 1, retain=True)
        publisher.publish_and_wait(topic, b"not retained", 1)
        publisher.publish_and_wait(topic, b"", 1)
    # The publisher's session has ended, and neither message without the flag replaced or removed it.
    with Client(mesh, edge=1) as subscriber:
        for n in (1, 2):
            # A subscription that replaces an identical one gets it again.
            subscriber.subscribe(topic, 1)
            assert subscriber.wait_messages(n) == [(topic, b"kept", 1)] * n
    _forget(mesh, topic)
