"""The load generator for those who have no mqload: pairs of one publisher and one subscriber, QoS 0 and 1.

It takes mqload's options for that and prints its JSON, as far as the tables need it, and checks every payload, too.
Python takes more CPU time for a message than C, so it measures what is slower than itself: mosquitto as mqload does,
and of the mesh a lower bound where `loader_cores` comes near 1.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, cast

import uvloop
from typing_extensions import override

from benchmarks.peers import cpu_s
from benchmarks.wire import raise_file_limit
from services.common.signature import sign
from services.edge.mqtt import codec, packets

ANSWER_S = 30.0
"""How long the broker may take for CONNACK and SUBACK."""

MARK = struct.Struct(">QQ")
"""How a payload begins: number of the message of its stream, and when it was sent, in nanoseconds."""

PUBACKS = [b"\x40\x02" + number.to_bytes(2, "big") for number in range(65_536)]


class LoadError(Exception):
    """The broker did not do what a run needs."""


class Connection(asyncio.Protocol):
    """An MQTT connection; after its answers to CONNECT and SUBSCRIBE its bytes go to `take`."""

    def __init__(self, hello: bytes) -> None:
        self._hello = hello
        self._answered = asyncio.Event()
        self._wanted = 0
        self._rest = b""
        self.take: Callable[[bytes], bytes]
        self.transport: asyncio.Transport
        self.is_lost = False

    async def answer(self, data: bytes, size: int) -> bytes:
        """Send bytes and return those of the answer, whose size is known."""
        self._wanted = size
        self._answered.clear()
        self.transport.write(data)
        async with asyncio.timeout(ANSWER_S):
            await self._answered.wait()
        answer, self._rest = self._rest[:size], self._rest[size:]
        if len(answer) < size or answer[-1] & 0x83 == 0x80 or (answer[0] == 0x20 and answer[-1]):
            raise LoadError(f"a client was refused: {answer.hex() or 'closed'}")
        return answer

    async def open(self) -> None:
        """Send CONNECT and wait for CONNACK."""
        await self.answer(self._hello, 4)

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._rest += data
        if self._wanted:
            if len(self._rest) >= self._wanted:
                self._wanted = 0
                self._answered.set()
        else:
            self._rest = self.take(self._rest)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._answered.set()


class Pair:
    """One stream: its publisher, its subscriber, and what they know.

    Args:
        topic: of the stream.
        options: of the run.
    """

    def __init__(self, topic: str, options: argparse.Namespace) -> None:
        self.topic = topic
        self._qos: int = options.qos
        self._credit: int = options.credit or (64, 256)[self._qos]
        self._window: int = options.window if self._qos else sys.maxsize
        self._padding = bytes(options.payload - MARK.size)
        shown = codec.encode(
            packets.Publish(topic, MARK.pack(0, 0) + self._padding, self._qos, False, False, self._qos)
        )
        at = len(shown) - options.payload
        self._head = shown[: at - 2 * self._qos]
        self._format = struct.Struct(f">{len(self._head)}s{'H' * self._qos}QQ{len(self._padding)}s")
        self.publisher: Connection
        self.subscriber: Connection
        self.is_sending = False
        self.sent = self.acknowledged = self.delivered = 0
        self.lost = self.dup = self.corrupt = 0
        self.latencies_ns: list[int] = []
        """Of the first message of each chunk."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is on its way."""
        return self.delivered == self.sent and (not self._qos or self.acknowledged == self.sent)

    def send(self) -> None:
        """Publish what credit and window allow."""
        if not self.is_sending:
            return
        count = min(self._credit - self.sent + self.delivered, self._window - self.sent + self.acknowledged)
        if count <= 0:
            return
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        now, pack, head, padding = time.perf_counter_ns(), self._format.pack, self._head, self._padding
        if self._qos:
            data = b"".join([pack(head, n % 65_535 + 1, n, now, padding) for n in numbers])
        else:
            data = b"".join([pack(head, n, now, padding) for n in numbers])
        self.publisher.transport.write(data)

    def take_acknowledgements(self, data: bytes) -> bytes:
        """Count PUBACKs; they come in order. Returns what is no whole one."""
        whole = len(data) & ~3
        for kind, number in struct.iter_unpack(">HH", memoryview(data)[:whole]):
            if kind != 0x4002 or number != self.acknowledged % 65_535 + 1:
                self.corrupt += 1
            self.acknowledged += 1
        self.send()
        return data[whole:]

    def take_messages(self, data: bytes) -> bytes:
        """Check and acknowledge messages. Returns what is no whole one."""
        whole = len(data) - len(data) % self._format.size
        if not whole:
            return data
        head, padding, expected = self._head, self._padding, self.delivered
        identifiers: list[int] = []
        sent_ns = 0
        for found in self._format.iter_unpack(memoryview(data)[:whole]):
            number, at_ns = found[-3], found[-2]
            if found[0] != head or found[-1] != padding:
                self.corrupt += 1
            if number == expected:
                expected += 1
            elif number > expected:
                self.lost += number - expected
                expected = number + 1
            else:
                self.dup += 1
            sent_ns = sent_ns or at_ns
            if self._qos:
                identifiers.append(found[1])
        self.delivered = expected
        self.latencies_ns.append(time.perf_counter_ns() - sent_ns)
        if identifiers:
            self.subscriber.transport.write(b"".join([PUBACKS[each] for each in identifiers]))
        self.send()
        return data[whole:]


def connect_packet(options: argparse.Namespace, number: int) -> bytes:
    """Return the CONNECT of a client."""
    client_id = options.client_id % number
    password = sign(options.lmq_sign, client_id).encode() if options.lmq_sign else None
    return codec.encode(packets.Connect(4, client_id, True, 60, options.user, password, None))


async def start(options: argparse.Namespace, connections: list[Connection]) -> list[Pair]:
    """Return the pairs, connected and subscribed, not sending; what was opened is in `connections`."""
    loop = asyncio.get_running_loop()
    hosts = [each.rpartition(":") for each in options.host.split(",")]
    numbers = itertools.count()

    async def opened() -> Connection:
        number = next(numbers)
        host, _, port = hosts[number % len(hosts)]
        hello = connect_packet(options, number)
        _, connection = await loop.create_connection(lambda: Connection(hello), host, int(port))
        connections.append(connection)
        await connection.open()
        return connection

    pairs = [Pair(options.topic.replace("%d", str(n)), options) for n in range(options.pubs)]
    for pair in pairs:
        pair.publisher = await opened()
        pair.publisher.take = pair.take_acknowledgements
    for pair in pairs:
        pair.subscriber = await opened()
        pair.subscriber.take = pair.take_messages
        await pair.subscriber.answer(codec.encode(packets.Subscribe(1, [(pair.topic, options.qos)])), 5)
    await asyncio.sleep(options.settle)
    return pairs


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run once and return what mqload would print."""
    connections: list[Connection] = []
    try:
        return await _measured(options, connections)
    finally:
        for connection in connections:
            connection.transport.close()


async def _measured(options: argparse.Namespace, connections: list[Connection]) -> dict[str, object]:
    pids = {each: int(each) for each in options.pid.split(",") if each}
    pairs = await start(options, connections)
    for pair in pairs:
        pair.is_sending = True
        pair.send()
    await asyncio.sleep(options.warmup)
    for pair in pairs:
        pair.latencies_ns.clear()
    began, before, own, broker = time.perf_counter(), _delivered(pairs), time.process_time(), cpu_s(pids)
    await asyncio.sleep(options.duration)
    wall, delivered, own = time.perf_counter() - began, _delivered(pairs) - before, time.process_time() - own
    after = cpu_s(pids)
    broker_s = sum(after[each] - broker[each] for each in pids)
    latencies = sorted(itertools.chain.from_iterable(pair.latencies_ns for pair in pairs)) or [0]
    for pair in pairs:
        pair.is_sending = False
    disconnects = await _drain(pairs, options.drain)
    sent, arrived = sum(pair.sent for pair in pairs), _delivered(pairs)
    return {
        "tool": "weimq",
        "delivered_per_s": delivered / wall,
        "delivered_per_broker_cpu_s": delivered / broker_s if broker_s else 0,
        "delivered": arrived,
        "latency": {f"p{part}_us": latencies[len(latencies) * part // 100] / 1e3 for part in (50, 99)},
        "usage": {"wall_s": wall, "loader_cpu_s": own, "broker_cpu_s": broker_s},
        "lost": sum(pair.lost for pair in pairs) + sent - arrived,
        "dup": sum(pair.dup for pair in pairs),
        "corrupt": sum(pair.corrupt for pair in pairs),
        "unacked": sum(pair.sent - pair.acknowledged for pair in pairs) if options.qos else 0,
        "disconnects": disconnects,
    }


def _delivered(pairs: Sequence[Pair]) -> int:
    return sum(pair.delivered for pair in pairs)


async def _drain(pairs: Sequence[Pair], idle_s: float) -> int:
    """Wait for what is on its way, until nothing comes for `idle_s`; return how many connections were lost."""
    before, since = -1, time.perf_counter()
    while not all(pair.is_complete for pair in pairs) and time.perf_counter() - since < idle_s:
        if (now := _delivered(pairs)) != before:
            before, since = now, time.perf_counter()
        await asyncio.sleep(0.01)
    return sum(pair.publisher.is_lost + pair.subscriber.is_lost for pair in pairs)


class Parser(argparse.ArgumentParser):
    """Refuses what only mqload can do with its name."""

    @override
    def error(self, message: str) -> NoReturn:
        raise LoadError(f"mqload is needed for that, set MQLOAD to its path ({message})")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; their meanings are mqload's.

    Raises:
        LoadError: it can't do that.
    """
    parser = Parser(prog="python -m benchmarks.own_loader", description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("mode", choices=["throughput"])
    parser.add_argument("-h", "--host", required=True)
    parser.add_argument("-P", "--pubs", type=int, default=1)
    parser.add_argument("--qos", type=int, choices=[0, 1], default=0)
    parser.add_argument("--payload", type=int, default=64)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--credit", type=int, default=0)
    parser.add_argument("--topic", default="bench/%d")
    parser.add_argument("--client-id", default="own_%06d")
    parser.add_argument("--user")
    parser.add_argument("--lmq-sign", default="")
    parser.add_argument("-t", "--duration", type=float, default=5)
    parser.add_argument("--warmup", type=float, default=1)
    parser.add_argument("--drain", type=float, default=3)
    parser.add_argument("--settle", type=float, default=0.3)
    parser.add_argument("--pid", default="")
    for flag in ("--json", "-q", "--strict"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(arguments)


def main() -> int:
    """Run once; return 3 when a message was lost, repeated, reordered or changed."""
    raise_file_limit()
    try:
        options = parsed(sys.argv[1:])
        result = uvloop.run(measure(options))
    except (LoadError, OSError, TimeoutError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    faults = any(result[name] for name in ("lost", "dup", "corrupt", "unacked", "disconnects"))
    return 3 if options.strict and faults else 0


if __name__ == "__main__":
    sys.exit(main())
