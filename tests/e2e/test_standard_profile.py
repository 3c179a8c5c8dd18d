"""Plain MQTT: what an ordinary client expects of any broker (the `standard` profile)."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.clients import Client, close_sockets
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = pytest.mark.e2e


class Plain:
    """An anonymous paho client."""

    def __init__(self, mesh: Mesh, client_id: str = "", *, edge: int = 0, user: str | None = None) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self.code: int | None = None
        self.is_connected = False
        self.subscribed = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, reconnect_on_failure=False)
        if user is not None:
            self.client.username_pw_set(user, "any")
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda _client, _userdata, message: self.messages.append(
            (message.topic, bytes(message.payload), message.retain)
        )
        self.client.connect("127.0.0.1", mesh.mqtt_port(edge))
        self.client.loop_start()
        until(lambda: self.code is not None, what="CONNACK")

    def _on_connect(
        self, _client: object, _userdata: object, _flags: object, reason: object, _properties: object
    ) -> None:
        self.is_connected = True
        self.code = reason.value  # type: ignore[attr-defined]  # a ReasonCode

    def _on_disconnect(self, *_args: object) -> None:
        self.is_connected = False

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        self.subscribed.clear()
        self.client.subscribe(topic_filter, qos)
        assert self.subscribed.wait(10), "no SUBACK"

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        info = self.client.publish(topic, payload, qos, retain)
        info.wait_for_publish(10)
        assert info.is_published()

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        close_sockets(self.client)


@pytest.fixture
def plain(mesh: Mesh) -> Iterator[type[Plain]]:
    """Make clients with `plain(mesh, ...)`; they are stopped at the end."""
    made: list[Plain] = []

    class Tracked(Plain):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # as given
            made.append(self)

    yield Tracked
    for client in made:
        client.stop()


@pytest.mark.parametrize(
    "topic", ["a", "/", "a//b", "$own/x", "ünï/çødé", "a b/c", "x" * 2000, "a/" * 60 + "b", "p/p2p/q"]
)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_any_topic_needs_no_creation(mesh: Mesh, plain: type[Plain], topic: str, qos: int) -> None:
    subscriber, publisher = plain(mesh, edge=1), plain(mesh, edge=0)
    subscriber.subscribe(topic, qos)
    payload = secrets.token_bytes(8)
    publisher.publish(topic, payload, qos)
    until(lambda: (topic, payload, False) in subscriber.messages, what="the message")


def test_any_client_id_and_any_user_are_let_in(mesh: Mesh, plain: type[Plain]) -> None:
    for client_id in ("", "x", "with/slash", "with+plus#", "ü" * 100, "y" * 1000):
        assert plain(mesh, client_id).code == 0
    assert plain(mesh, "named", user="somebody").code == 0


@pytest.mark.parametrize("wildcards", [("#",), ("+", "+/#", "/+")])
@pytest.mark.parametrize("server", ["$dollar", "$SYS"])
def test_wildcards_match_all_but_dollar_topics(
    mesh: Mesh, plain: type[Plain], wildcards: tuple[str, ...], server: str
) -> None:
    everything, publisher = plain(mesh, edge=1), plain(mesh)
    for topic_filter in wildcards:
        everything.subscribe(topic_filter)
    mark = secrets.token_hex(4)
    publisher.publish(f"{server}/{mark}", b"no")
    publisher.publish(f"/{mark}", b"yes")
    publisher.publish(mark, b"end")
    until(lambda: (mark, b"end", False) in everything.messages, what="the last message")
    mine = [topic for topic, _, _ in everything.messages if mark in topic]
    assert mine == [f"/{mark}", mark]


@pytest.mark.parametrize("edge", [0, 1])
def test_a_client_id_in_use_is_taken_over(mesh: Mesh, plain: type[Plain], edge: int) -> None:
    client_id = secrets.token_hex(4)
    first = plain(mesh, client_id, edge=0)
    second = plain(mesh, client_id, edge=edge)
    assert second.code == 0
    until(lambda: not first.is_connected, what="the first connection is closed")
    second.publish("x", b"x")


def test_large_payloads_pass(mesh: Mesh, plain: type[Plain]) -> None:
    subscriber, publisher = plain(mesh, edge=1), plain(mesh)
    topic = secrets.token_hex(4)
    subscriber.subscribe(topic)
    payload = secrets.token_bytes(1_000_000)
    publisher.publish(topic, payload)
    until(lambda: subscriber.messages == [(topic, payload, False)], what="the message")


def test_instances_do_not_see_each_other(mesh: Mesh, plain: type[Plain]) -> None:
    everything = plain(mesh, edge=1)
    everything.subscribe("#")
    mark = secrets.token_hex(4)
    with Client(mesh) as other:
        other.publish_and_wait(f"{mesh.topic}/{mark}", b"secret")
    everything.publish(mark, b"end")
    until(lambda: (mark, b"end", False) in everything.messages, what="the last message")
    assert not [topic for topic, _, _ in everything.messages if mark in topic and topic != mark]
