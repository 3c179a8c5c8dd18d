"""paho-mqtt clients with waiting built in."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.mesh import Mesh
from tests.support.wait import WAIT_S, until


def close_sockets(client: paho.Client) -> None:
    """Close what paho keeps open until it is collected, when pytest would complain of it."""
    client._reset_sockets()


class Client:
    """A connected client; leaving the context disconnects it.

    Attributes:
        client_id: full client id.
        messages: (topic, payload, QoS) of what was received, in order.
        retained: the retain flag of each of them.
        duplicates: the DUP flag of each of them.
        identifiers: the packet identifier of each of them.
        times: when each of them came, monotonic seconds.
        return_code: of CONNACK, once it came.
        session_present: of CONNACK, once it came.
    """

    def __init__(
        self,
        mesh: Mesh,
        device: str = "",
        *,
        edge: int = 0,
        client_id: str = "",
        password: str | None = None,
        login: tuple[str, str] | None = None,
        clean_session: bool = True,
        keepalive: int = 60,
        reconnect: bool = False,
        transport: str = "tcp",
        protocol: int = paho.MQTTv311,
        will: tuple[str, bytes, int, bool] | None = None,
        instance: str = "",
        manual_ack: bool = False,
    ) -> None:
        """Prepare; `connect`, or entering the context, connects.

        Args:
            mesh: with the edges.
            device: of a client id of the bootstrap group; empty: a random one.
            edge: index of the edge.
            client_id: the whole client id instead.
            password: instead of the right one.
            login: user name and password instead of those of the first AccessKey.
            clean_session: flag of CONNECT.
            keepalive: of CONNECT, seconds.
            reconnect: whether paho connects again by itself.
            transport: `tcp`, `tls`, `ws` or `wss`.
            will: topic, payload, QoS and retain flag.
            instance: that serves clients without user name; empty: the bootstrap instance, with credentials.
            manual_ack: whether nothing is acknowledged.
        """
        self.client_id = client_id or mesh.client_id(device or secrets.token_hex(4))
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            self.client_id,
            clean_session=clean_session,
            protocol=protocol,  # type: ignore[arg-type]  # one of paho's own constants
            reconnect_on_failure=reconnect,
            transport="websockets" if transport in {"ws", "wss"} else "tcp",
            manual_ack=manual_ack,
        )
        if transport in {"tls", "wss"}:
            self._paho.tls_set(ca_certs=str(mesh.data / "tls" / "certificate.pem"))
        if will is not None:
            self._paho.will_set(*will)
        if not instance:
            user, right_password = login or mesh.login(self.client_id)
            self._paho.username_pw_set(user, right_password if password is None else password)
        self._paho.max_inflight_messages_set(20)
        self._paho.reconnect_delay_set(1, 1)
        self.messages: list[tuple[str, bytes, int]] = []
        self.retained: list[bool] = []
        self.duplicates: list[bool] = []
        self.identifiers: list[int] = []
        self.times: list[float] = []
        self.return_code: int | None = None
        self.session_present: bool | None = None
        self._connected = threading.Event()
        self._disconnected = threading.Event()
        self._granted: queue.Queue[list[int]] = queue.Queue()
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_message = self._on_message
        self._paho.on_subscribe = self._on_subscribe
        self._port = mesh.mqtt_port(edge, transport)
        self._keepalive = keepalive

    def _on_connect(self, _client: object, _userdata: object, flags: Any, reason: Any, _properties: object) -> None:
        self.return_code = reason.value
        self.session_present = flags.session_present
        self._connected.set()

    def _on_disconnect(self, *_args: object) -> None:
        self._disconnected.set()

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        self.retained.append(message.retain)
        self.duplicates.append(message.dup)
        self.identifiers.append(message.mid)
        self.times.append(time.monotonic())
        self.messages.append((message.topic, bytes(message.payload), message.qos))

    def _on_subscribe(
        self, _client: object, _userdata: object, _mid: int, reasons: list[Any], _properties: object
    ) -> None:
        self._granted.put([reason.value for reason in reasons])

    def connect(self) -> Self:
        """Connect and wait for CONNACK, whatever it says."""
        self._paho.connect("127.0.0.1", self._port, self._keepalive)
        self._paho.loop_start()
        assert self._connected.wait(WAIT_S), "no CONNACK"
        return self

    def __enter__(self) -> Self:
        self.connect()
        assert self.return_code == 0, f"CONNACK {self.return_code}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Send DISCONNECT and stop."""
        self._paho.disconnect()
        self._paho.loop_stop()
        close_sockets(self._paho)

    def abort(self) -> None:
        """Drop the TCP connection without DISCONNECT."""
        self._paho.on_disconnect = None
        sock = self._paho.socket()
        self._paho.loop_stop()
        if sock is not None:
            sock.close()
        close_sockets(self._paho)

    def subscribe(self, topic_filter: str, qos: int = 0) -> list[int]:
        """Subscribe and return the codes of SUBACK."""
        self._paho.subscribe(topic_filter, qos)
        return self._granted.get(timeout=WAIT_S)

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe and wait for UNSUBACK."""
        done = threading.Event()
        self._paho.on_unsubscribe = lambda *_: done.set()
        self._paho.unsubscribe(topic_filter)
        assert done.wait(WAIT_S), "no UNSUBACK"

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> paho.MQTTMessageInfo:
        """Publish without waiting; `wait_for_publish` of the result waits for the acknowledgement."""
        return self._paho.publish(topic, payload, qos, retain)

    def publish_and_wait(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publish and wait until the broker acknowledged it."""
        info = self.publish(topic, payload, qos, retain=retain)
        info.wait_for_publish(WAIT_S)
        assert info.is_published(), "not acknowledged"

    def wait_messages(self, count: int, seconds: float = WAIT_S) -> list[tuple[str, bytes, int]]:
        """Wait for at least `count` messages and return all."""
        until(lambda: len(self.messages) >= count, seconds=seconds, what=f"{count} messages at {self.client_id}")
        return list(self.messages)

    def wait_disconnected(self, seconds: float = WAIT_S) -> None:
        """Wait until the connection is gone."""
        assert self._disconnected.wait(seconds), "still connected"
