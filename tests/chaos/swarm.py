"""Publishers and persistent subscribers that connect again, and elsewhere, whenever their connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque

from typing_extensions import override

from services.edge.mqtt.packets import Packet, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe
from tests.chaos.ledger import Lane, Receipts
from tests.chaos.raw import Connection, connect

WINDOW = 200
"""Publications of a publisher that wait for their acknowledgement."""
STAY = 0.75
"""How likely the next message of a publisher is of the same lane: edges pass on together what follows one another."""
PAUSE_S = 0.2
"""Before the next attempt to connect."""
LOOK_S = 0.05
"""How often a publisher looks whether it goes on, and what its pace allows."""
ANSWER_S = 15.0
"""Without any answer for this long a publisher takes another connection."""


class Wanderer:
    """A client that drops its connection now and then and comes back, on any edge."""

    def __init__(
        self,
        name: str,
        ports: list[int],
        chance: random.Random,
        *,
        clean_session: bool,
        stay_s: float,
        login: tuple[str, str] | None = None,
    ) -> None:
        self._login = login
        self.name = name
        self._ports = ports
        self._chance = chance
        self._clean_session = clean_session
        self._stay_s = stay_s
        self.connection: Connection | None = None
        self.connected_s = 0.0
        """When it connected last, by `time.monotonic`."""
        self.connects = 0
        self.lost_sessions = 0
        """Connections without the session that must have been there."""

    def take(self, connection: Connection, packets: list[Packet]) -> None:
        """Take what the server sent."""
        raise NotImplementedError

    def connected(self, connection: Connection) -> None:
        """Begin on a new connection."""
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        raise NotImplementedError

    async def run(self) -> None:
        """Connect again and again until all is done."""
        while not self.is_done:
            self.connected_s = time.monotonic()
            try:
                connection, answer = await connect(
                    self._chance.choice(self._ports),
                    self.name,
                    self.take,
                    clean_session=self._clean_session,
                    login=self._login,
                )
            except OSError:
                await asyncio.sleep(PAUSE_S * self._chance.random())
                continue
            if self.connects and not self._clean_session and not answer.session_present:
                self.lost_sessions += 1
            self.connects += 1
            self.connection = connection
            self.connected(connection)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stay_s * (0.5 + self._chance.random())):
                    await self._stay(connection)
            self.connection = None
            connection.abort()

    async def _stay(self, connection: Connection) -> None:
        """Wait until the connection is of no more use."""
        await connection.lost.wait()


class Publisher(Wanderer):
    """Publishes a few of each lane in turn, in order, `rate` messages a second; repeats in order what has no answer."""

    def __init__(
        self,
        name: str,
        ports: list[int],
        chance: random.Random,
        *,
        lanes: list[Lane],
        qos: int,
        stay_s: float,
        rate: float,
        login: tuple[str, str] | None = None,
        clean_session: bool = True,
    ) -> None:
        super().__init__(name, ports, chance, clean_session=clean_session, stay_s=stay_s, login=login)
        self._rate = rate
        self._started = time.monotonic()
        self._sent = 0
        self.lanes = lanes
        self._qos = qos
        self._next = {lane.index: 0 for lane in lanes}
        self._turns = deque(lanes)
        self._waiting: dict[int, tuple[Lane, int]] = {}
        self._identifier = 0
        self._answers = 0

    @property
    @override
    def is_done(self) -> bool:
        return not self._waiting and not self._turns

    @override
    def connected(self, connection: Connection) -> None:
        for lane, n in self._waiting.values():
            lane.sent_again[n] = 1
        connection.send([self._packet(identifier, dup=True) for identifier in self._waiting])
        self._fill(connection)

    def _packet(self, identifier: int, *, dup: bool) -> Packet:
        lane, n = self._waiting[identifier]
        return Publish(lane.topic, b"%d %d" % (lane.index, n), self._qos, False, dup, identifier)

    def _fill(self, connection: Connection) -> None:
        packets = []
        allowed = (time.monotonic() - self._started) * self._rate
        while len(self._waiting) < WINDOW and self._turns and self._sent < allowed:
            lane = self._turns[0]
            n = self._next[lane.index]
            if n == lane.total:
                self._turns.popleft()
                continue
            if self._chance.random() > STAY:
                self._turns.rotate(-1)
            self._next[lane.index] = n + 1
            self._sent += 1
            self._identifier = self._identifier % 65_535 + 1
            self._waiting[self._identifier] = (lane, n)
            packets.append(self._packet(self._identifier, dup=False))
        connection.send(packets)

    @override
    def take(self, connection: Connection, packets: list[Packet]) -> None:
        answers: list[Packet] = []
        for packet in packets:
            if isinstance(packet, (PubAck, PubRec)):
                entry = self._waiting.pop(packet.packet_identifier, None)
                if entry is not None:
                    entry[0].acknowledge(entry[1])
                if isinstance(packet, PubRec):
                    answers.append(PubRel(packet.packet_identifier))
        self._answers += 1
        connection.send(answers)
        self._fill(connection)

    @override
    async def _stay(self, connection: Connection) -> None:
        seen, quiet_s = self._answers, 0.0
        while not connection.lost.is_set() and not self.is_done and quiet_s < ANSWER_S:
            await asyncio.sleep(LOOK_S)
            quiet_s = quiet_s + LOOK_S if self._answers == seen else 0.0
            seen = self._answers
            self._fill(connection)


class Subscriber(Wanderer):
    """Subscribes once, if to anything, with a persistent session, and acknowledges all that comes."""

    def __init__(
        self,
        name: str,
        ports: list[int],
        chance: random.Random,
        *,
        filters: list[tuple[str, int]],
        receipts: Receipts,
        stay_s: float,
        login: tuple[str, str] | None = None,
        clean_session: bool = False,
    ) -> None:
        super().__init__(name, ports, chance, clean_session=clean_session, stay_s=stay_s, login=login)
        self._filters = filters
        self.receipts = receipts
        self.subscribed = asyncio.Event()
        self._stop = False
        self._unreleased: set[int] = set()  # packet identifiers of QoS 2; they outlive the connection

    @property
    @override
    def is_done(self) -> bool:
        return self._stop

    def stop(self) -> None:
        """End."""
        self._stop = True
        if self.connection is not None:
            self.connection.abort()

    @override
    def connected(self, connection: Connection) -> None:
        if not self._filters:
            self.subscribed.set()
        elif not self.subscribed.is_set():
            connection.send([Subscribe(1, self._filters)])

    @override
    def take(self, connection: Connection, packets: list[Packet]) -> None:
        answers: list[Packet] = []
        for packet in packets:
            if isinstance(packet, Publish):
                if packet.packet_identifier in self._unreleased and packet.qos > 1:
                    self.receipts.discarded += 1
                else:
                    self.receipts.take(packet.payload, is_dup=packet.dup, connected_s=self.connected_s)
                if packet.qos == 1:
                    answers.append(PubAck(packet.packet_identifier))
                elif packet.qos:
                    self._unreleased.add(packet.packet_identifier)
                    answers.append(PubRec(packet.packet_identifier))
            elif isinstance(packet, PubRel):
                self._unreleased.discard(packet.packet_identifier)
                answers.append(PubComp(packet.packet_identifier))
            elif isinstance(packet, SubAck):
                assert packet.return_codes == [qos for _, qos in self._filters]
                self.subscribed.set()
        connection.send(answers)
