"""A persistent client of the benchmark of offline messages: every wait has an end, and says what is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

from typing_extensions import override

from benchmarks.wire import Login
from services.common.signature import sign
from services.edge.mqtt import codec, packets

WAIT_S = 60.0
"""How long a client waits for an answer."""


class MissingError(Exception):
    """Something did not come; the text says what, to whom, and whether the connection was lost."""


class Client(asyncio.Protocol):
    """A persistent client of the bootstrap group.

    Args:
        login: of the group.
        name: device name.
        take: called with each message.

    Attributes:
        received: messages so far.
        first_at: when the first one came, by `time.perf_counter`; 0: none has.
        begun_at: when it began to connect.
        unanswered: packet identifiers of its publications without PUBACK.
        is_lost: whether there is no connection.
    """

    def __init__(self, login: Login, name: str, take: Callable[[packets.Publish], None] | None = None) -> None:
        self.client_id = f"{login.group}@@@{name}"
        user = f"Signature|{login.access_key}|{login.instance}"
        password = sign(login.secret, self.client_id).encode()
        self._hello = codec.encode(packets.Connect(4, self.client_id, False, 0, user, password, None))
        self._take = take
        self._decoder: codec.Decoder
        self._transport: asyncio.Transport
        self._changed = asyncio.Event()
        self._return_code: int | None = None
        self._is_subscribed = False
        self.received = 0
        self.first_at = self.begun_at = 0.0
        self.unanswered: set[int] = set()
        self.is_lost = True

    async def connect(self, port: int, wait_s: float = WAIT_S) -> None:
        """Connect and wait for CONNACK.

        Raises:
            MissingError: it did not come within `wait_s` seconds, or refused the client.
        """
        self.received, self.first_at, self.begun_at = 0, 0.0, time.perf_counter()
        self._decoder = codec.Decoder(1 << 20)
        self._return_code = None
        self.is_lost = False
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        await self.until(lambda: self._return_code is not None, "CONNACK", wait_s)
        if self._return_code:
            raise MissingError(f"{self.client_id} was not let in: CONNACK {self._return_code}")

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1 and wait for SUBACK."""
        self._is_subscribed = False
        self._send(packets.Subscribe(1, [(topic_filter, 1)]), "SUBACK")
        await self.until(lambda: self._is_subscribed, "SUBACK")

    def publish(self, topic: str, payload: bytes, identifier: int) -> None:
        """Publish at QoS 1.

        Raises:
            MissingError: the connection is lost.
        """
        self.unanswered.add(identifier)
        self._send(packets.Publish(topic, payload, 1, False, False, identifier), "PUBACK")

    def _send(self, packet: packets.Packet, answer: str) -> None:
        self.check(answer)
        self._transport.write(codec.encode(packet))

    async def until_unanswered(self, most: int) -> None:
        """Wait until at most so many publications have no PUBACK."""
        await self.until(lambda: len(self.unanswered) <= most, "PUBACK")

    async def until(self, condition: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
        """Wait for a condition of what comes over the connection.

        Raises:
            MissingError: the connection ended before, or nothing made it true within `wait_s` seconds.
        """
        try:
            async with asyncio.timeout(wait_s):
                while not condition():
                    self.check(what)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise MissingError(f"{self.client_id} got no {what} within {wait_s:g} s") from None

    def check(self, what: str) -> None:
        """Raise MissingError when there is no connection on which `what` could come."""
        if self.is_lost:
            raise MissingError(f"{self.client_id} lost its connection before {what} came")

    async def leave(self) -> None:
        """Disconnect."""
        self._send(packets.Disconnect(), "the end of its work")
        self._transport.close()
        try:
            async with asyncio.timeout(WAIT_S):
                while not self.is_lost:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._transport.abort()
            raise MissingError(f"{self.client_id} could not send its DISCONNECT within {WAIT_S:g} s") from None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._hello)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._changed.set()

    @override
    def data_received(self, data: bytes) -> None:
        answers = []
        for packet in self._decoder.feed(data):
            if isinstance(packet, packets.Publish):
                if not self.received:
                    self.first_at = time.perf_counter()
                self.received += 1
                if self._take is not None:
                    self._take(packet)
                answers.append(codec.encode(packets.PubAck(packet.packet_identifier)))
            elif isinstance(packet, packets.PubAck):
                self.unanswered.discard(packet.packet_identifier)
            elif isinstance(packet, packets.ConnAck):
                self._return_code = packet.return_code
            elif isinstance(packet, packets.SubAck):
                self._is_subscribed = True
        if answers:
            self._transport.write(b"".join(answers))
        self._changed.set()
