"""Publish/subscribe and P2P between clients of two edges."""

from __future__ import annotations

import secrets

import pytest

from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("publish_qos", [0, 1, 2])
@pytest.mark.parametrize("subscribe_qos", [0, 1, 2])
@pytest.mark.parametrize("edge", [0, 1])
def test_a_message_arrives_once_with_the_lower_qos(mesh: Mesh, publish_qos: int, subscribe_qos: int, edge: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher, Client(mesh, edge=edge) as subscriber:
        assert subscriber.subscribe(topic, subscribe_qos) == [subscribe_qos]
        publisher.publish_and_wait(topic, b"hello", publish_qos)
        publisher.publish_and_wait(topic, b"end", publish_qos)
        assert subscriber.wait_messages(2) == [
            (topic, b"hello", min(publish_qos, subscribe_qos)),
            (topic, b"end", min(publish_qos, subscribe_qos)),
        ]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_of_a_publisher_keep_their_order(mesh: Mesh, qos: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher, Client(mesh, edge=1) as subscriber:
        subscriber.subscribe(topic, qos)
        for n in range(500):
            publisher.publish(topic, b"%d" % n, qos)
        messages = subscriber.wait_messages(500)
        assert [payload for _, payload, _ in messages] == [b"%d" % n for n in range(500)]


def test_wildcards_match_across_edges(mesh: Mesh) -> None:
    root = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=0) as publisher, Client(mesh, edge=1) as one, Client(mesh, edge=0) as many:
        one.subscribe(f"{root}/+/c", 1)
        many.subscribe(f"{root}/#", 1)
        for topic in (root, f"{root}/a", f"{root}/a/c", f"{root}/b/c", f"{root}/b/c/d"):
            publisher.publish_and_wait(topic, topic.encode())
        many.wait_messages(5)
        assert [topic for topic, _, _ in many.messages] == [
            root, f"{root}/a", f"{root}/a/c", f"{root}/b/c", f"{root}/b/c/d",
        ]  # fmt: skip
        assert [topic for topic, _, _ in one.wait_messages(2)] == [f"{root}/a/c", f"{root}/b/c"]


def test_overlapping_subscriptions_deliver_at_the_highest_qos(mesh: Mesh) -> None:
    root = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=1) as subscriber, Client(mesh) as publisher:
        subscriber.subscribe(f"{root}/#", 0)
        subscriber.subscribe(f"{root}/a", 1)
        publisher.publish_and_wait(f"{root}/a", b"x")
        publisher.publish_and_wait(f"{root}/b", b"y")
        assert subscriber.wait_messages(2) == [(f"{root}/a", b"x", 1), (f"{root}/b", b"y", 0)]


def test_unsubscribe_ends_the_flow(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with Client(mesh, edge=1) as subscriber, Client(mesh) as publisher:
        subscriber.subscribe(topic, 1)
        subscriber.subscribe(f"{topic}/end", 1)
        publisher.publish_and_wait(topic, b"1")
        subscriber.wait_messages(1)
        subscriber.unsubscribe(topic)
        publisher.publish_and_wait(topic, b"2")
        publisher.publish_and_wait(f"{topic}/end", b"3")
        subscriber.wait_messages(2)
        assert [payload for _, payload, _ in subscriber.messages] == [b"1", b"3"]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("edge", [0, 1])
def test_p2p_reaches_one_client_without_subscription(mesh: Mesh, edge: int, qos: int) -> None:
    with (
        Client(mesh, edge=0) as sender,
        Client(mesh, edge=edge) as receiver,
        Client(mesh, edge=edge) as other,
    ):
        other.subscribe(f"{mesh.topic}/#", 1)
        topic = f"{mesh.topic}/p2p/{receiver.client_id}"
        sender.publish_and_wait(topic, b"for you", qos)
        assert receiver.wait_messages(1) == [(topic, b"for you", qos)]
        sender.publish_and_wait(f"{mesh.topic}/p2p/{other.client_id}", b"for the other", 1)
        other.wait_messages(1)
        assert [payload for _, payload, _ in other.messages] == [b"for the other"]


def test_p2p_to_a_client_that_is_not_there_is_acknowledged(mesh: Mesh) -> None:
    with Client(mesh) as sender:
        sender.publish_and_wait(f"{mesh.topic}/p2p/{mesh.client_id('nobody')}", b"x", 1)


def test_unknown_parent_topic_closes_the_connection(mesh: Mesh) -> None:
    with Client(mesh) as publisher:
        publisher.publish("nosuchtopic/a", b"x", 1)
        publisher.wait_disconnected()
    with Client(mesh) as subscriber:
        subscriber._paho.subscribe("nosuchtopic/#", 1)
        subscriber.wait_disconnected()


@pytest.mark.parametrize(
    ("client_id", "password", "code"),
    [
        ("GID_demo@@@bad-signature", "bm90IHRoZSBzaWduYXR1cmU=", 134),
        ("GID_other@@@x", None, 135),
        ("no-group", None, 133),
    ],
)
def test_refusals_have_the_right_connack(mesh: Mesh, client_id: str, password: str | None, code: int) -> None:
    # paho shows the return codes 2, 4 and 5 of MQTT 3.1.1 as the reason codes 133, 134 and 135 of MQTT 5.0.
    client = Client(mesh, client_id=client_id, password=password).connect()
    assert client.return_code == code
    client.disconnect()


def test_a_client_id_in_use_is_refused_on_any_edge(mesh: Mesh) -> None:
    with Client(mesh, "twin", edge=0) as first:
        second = Client(mesh, "twin", edge=1).connect()
        assert second.return_code == 133
        second.disconnect()
        first.publish_and_wait(f"{mesh.topic}/p2p/{first.client_id}", b"still here")
        first.wait_messages(1)

    def is_free() -> bool:
        again = Client(mesh, "twin", edge=1).connect()
        again.disconnect()
        return again.return_code == 0

    until(is_free, what="the client id is free again")


def test_large_payload_and_binary(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    payload = secrets.token_bytes(60_000)
    with Client(mesh, edge=0) as publisher, Client(mesh, edge=1) as subscriber:
        subscriber.subscribe(topic, 1)
        publisher.publish_and_wait(topic, payload)
        publisher.publish_and_wait(topic, b"")
        assert [p for _, p, _ in subscriber.wait_messages(2)] == [payload, b""]
