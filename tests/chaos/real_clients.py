"""Clients that we did not write, as publishers and persistent subscribers: paho and aiomqtt."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from typing_extensions import override

from tests.chaos.ledger import Lane, Receipts
from tests.support.clients import close_sockets

PAHO_WINDOW = 50
LOG_LINES = 20_000
"""Of paho's own log, to be shown when something has failed."""


def _paho(name: str, *, clean_session: bool) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, name, clean_session=clean_session)
    client.reconnect_delay_set(1, 1)
    client.connect_timeout = 15
    return client


class PahoPublisher:
    """Publishes one lane in order, a message every `interval_s`; paho itself connects again and repeats.

    What is published after CONNECT is sent at once, but what is to be repeated only after CONNACK: paho would overtake
    itself. So nothing is published from the one until paho has begun to repeat, as an acknowledgement tells.
    """

    def __init__(self, name: str, port: int, lane: Lane, qos: int, interval_s: float) -> None:
        self.name = name
        self._interval_s = interval_s
        self._client = _paho(name, clean_session=True)
        self._client.max_inflight_messages_set(PAHO_WINDOW)
        self._port = port
        self._lane = lane
        self._qos = qos
        self._numbers: dict[int, int] = {}
        self._room = threading.Semaphore(PAHO_WINDOW)
        self._client.on_publish = self._on_publish
        self._client.on_connect = self._on_connect
        self._client.on_pre_connect = self._on_pre_connect
        self._client.on_disconnect = self._client.on_connect_fail = self._on_disconnect
        self._client.on_log = self._on_log
        self.log: deque[tuple[float, str]] = deque(maxlen=LOG_LINES)
        """What paho did last, and when by `time.monotonic`."""
        self._early: set[int] = set()
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._may_publish = threading.Event()
        self._may_publish.set()

    def _on_log(self, _client: object, _data: object, _level: object, text: str) -> None:
        self.log.append((time.monotonic(), text))

    def _on_pre_connect(self, *_: object) -> None:
        with self._publishing:
            self._may_publish.clear()

    def _on_disconnect(self, *_: object) -> None:
        self._may_publish.set()  # paho keeps it, and sends it in order after the next CONNACK

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: Any, _more: object) -> None:
        """Note what paho is about to send again: all that was not acknowledged."""
        with self._lock:
            for number in self._numbers.values():
                self._lane.sent_again[number] = 1
            if not self._numbers and not reason.is_failure:
                self._may_publish.set()

    def _on_publish(self, _client: object, _data: object, mid: int, *_more: object) -> None:
        self._may_publish.set()
        with self._lock:
            number = self._numbers.pop(mid, None)
            if number is None:
                self._early.add(mid)  # before `publish` returned
                return
        self._lane.acknowledge(number)
        self._room.release()

    def _publish(self, number: int) -> bool:
        """Publish a message, if that may be done now."""
        with self._publishing:
            if not self._may_publish.is_set():
                return False
            mid = self._client.publish(self._lane.topic, b"%d %d" % (self._lane.index, number), self._qos).mid
            with self._lock:
                if mid in self._early:
                    self._early.discard(mid)
                    self._lane.acknowledge(number)
                    self._room.release()
                else:
                    self._numbers[mid] = number
            return True

    def run(self) -> None:
        """Publish all, and wait for every acknowledgement."""
        self._client.connect_async("127.0.0.1", self._port, 30)
        self._client.loop_start()
        for n in range(self._lane.total):
            time.sleep(self._interval_s)
            assert self._room.acquire(timeout=120), "publishing does not go on"
            while not self._publish(n):
                assert self._may_publish.wait(120), "connecting does not end"
        for _ in range(PAHO_WINDOW):
            assert self._room.acquire(timeout=120), "publishing does not end"
        self._client.disconnect()
        self._client.loop_stop()
        close_sockets(self._client)


class PahoSubscriber:
    """Subscribes with a persistent session."""

    def __init__(self, name: str, port: int, topic_filter: str, qos: int, receipts: Receipts) -> None:
        self._client = _paho(name, clean_session=False)
        self._port = port
        self._filter = (topic_filter, qos)
        self.receipts = receipts
        self.subscribed = threading.Event()
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        self._client.on_message = self._on_message
        self._connected_s = 0.0

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self.receipts.take(bytes(message.payload), is_dup=message.dup, connected_s=self._connected_s)

    def _on_connect(self, client: paho.Client, _data: object, _flags: object, reason: Any, _more: object) -> None:
        self._connected_s = time.monotonic()
        if not reason.is_failure and not self.subscribed.is_set():
            client.subscribe(*self._filter)

    def start(self) -> None:
        """Connect, now and whenever the connection is lost."""
        self._client.connect_async("127.0.0.1", self._port, 30)
        self._client.loop_start()

    def stop(self) -> None:
        """End."""
        self._client.disconnect()
        self._client.loop_stop()
        close_sockets(self._client)


class AiomqttSubscriber:
    """Subscribes with a persistent session; tries the edges in turn."""

    def __init__(self, name: str, ports: list[int], topic_filter: str, qos: int, receipts: Receipts) -> None:
        self._name = name
        self._ports = ports
        self._filter = (topic_filter, qos)
        self.receipts = receipts
        self._connected_s = 0.0
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        """Connect again and again, until cancelled."""
        owner = self

        class Counting(asyncio.Queue[aiomqtt.Message]):
            """Counts when aiomqtt acknowledges: what it has not handed over when a connection ends is dropped."""

            @override
            def put_nowait(self, item: aiomqtt.Message) -> None:
                # It does not tell what has DUP.
                owner.receipts.take(bytes(item.payload), is_dup=False, connected_s=owner._connected_s)

        for port in itertools.cycle(self._ports):
            self._connected_s = time.monotonic()
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                async with aiomqtt.Client(
                    "127.0.0.1", port, identifier=self._name, clean_session=False, timeout=15, queue_type=Counting
                ) as client:
                    if not self.subscribed.is_set():
                        await client.subscribe(*self._filter)
                        self.subscribed.set()
                    async for _ in client.messages:
                        raise AssertionError("the queue hands nothing over")
            await asyncio.sleep(0.2)
