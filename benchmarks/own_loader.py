"""The load generator for those who have no mqload: pairs of one publisher and one subscriber, QoS 0 and 1.

It takes mqload's options for that and prints its JSON, as far as the tables need it, and checks every payload, too. A
stream that has lost as many messages as it has credit rests.
What happens to each message is in C (`own_loader.c`): a loader that is slower than the broker takes in and publishes
more at a time, which lets the broker do more at a time, and shows it faster than it is.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from typing_extensions import override

from benchmarks.peers import cpu_s
from benchmarks.wire import raise_file_limit
from services.common.signature import sign
from services.edge.mqtt import codec, packets

ANSWER_S = 30.0
"""How long the broker may take for CONNACK and SUBACK."""

MARK_SIZE = 24
"""A payload begins with its stream, the number of the message, and when it was sent."""

SLICE_S = 0.1
"""How long C has the say: Ctrl-C has to wait for it."""

MAX_CREDIT = 1 << 15

MAX_PAYLOAD = 1 << 20

STEPS = 64
"""Of the histogram of latencies, for each power of two."""

BUILD = Path(__file__).parents[1] / "build"


class LoadError(Exception):
    """The broker did not do what a run needs, or the loader can't do it."""


class Stream(ctypes.Structure):
    """One publisher and its subscriber: their sockets, -1 once they are lost, and what was counted."""

    _fields_: ClassVar[Sequence[Any]] = (
        ("publisher", ctypes.c_int32), ("subscriber", ctypes.c_int32),
        *((name, ctypes.c_uint64) for name in ("sent", "acknowledged", "expected")),
        *((name, ctypes.c_uint64) for name in ("delivered", "lost", "dup", "corrupt")),
    )  # fmt: skip


class Load(ctypes.Structure):
    """What all streams have in common."""

    _fields_: ClassVar[Sequence[Any]] = (
        *((name, ctypes.c_uint32) for name in ("qos", "credit", "window", "payload_size", "is_sending")),
        ("latencies", ctypes.c_uint64 * (64 * STEPS)),
    )


def build(source: Path, *flags: str) -> Path | None:
    """Compile a C source unless that was done; return the result, or None without a compiler."""
    if (compiler := shutil.which("cc") or shutil.which("gcc")) is None:
        return None
    digest = hashlib.sha256(source.read_bytes() + repr(flags).encode()).hexdigest()[:16]
    target = BUILD / f"{source.stem}-{digest}"
    if not target.exists():
        BUILD.mkdir(exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")  # others may make the same one
        subprocess.run([compiler, "-O2", "-std=gnu11", *flags, "-o", str(made), str(source)], check=True)
        made.replace(target)
    return target


class Run:
    """Connections and counters of a run.

    Args:
        options: of the run.

    Raises:
        LoadError: there is no C compiler, or a client was refused.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        library = build(Path(__file__).with_suffix(".c"), "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
        if library is None:
            raise LoadError("a C compiler is needed for that, or mqload: set MQLOAD to its path")
        loader = ctypes.CDLL(str(library))
        self._turn = loader.loop_run
        self._turn.argtypes = (ctypes.c_void_p, ctypes.c_double, ctypes.c_int)
        self._turn.restype = None
        loader.loop_new.restype = ctypes.c_void_p
        qos: int = options.qos
        self.load = Load(qos, options.credit, options.window, options.payload)
        topics = [options.topic.replace("%d", str(n)) for n in range(options.pubs)]
        self._sockets: list[socket.socket] = []
        try:
            self._connect(options, topics)
        except BaseException:
            self.close()
            raise
        sockets = [each.fileno() for each in self._sockets]
        self.streams = (Stream * options.pubs)(*zip(sockets[: options.pubs], sockets[options.pubs :], strict=True))
        payload = bytes(options.payload)
        shown = [codec.encode(packets.Publish(topic, payload, qos, False, False, qos)) for topic in topics]
        self._packets = (ctypes.c_char_p * options.pubs)(*shown)
        sizes = (ctypes.c_size_t * options.pubs)(*map(len, shown))
        self._loop = loader.loop_new(
            ctypes.byref(self.load), self.streams, ctypes.c_size_t(options.pubs), self._packets, sizes
        )

    def _connect(self, options: argparse.Namespace, topics: Sequence[str]) -> None:
        """Connect the publishers, then the subscribers, and subscribe these."""
        hosts = [each.rpartition(":") for each in options.host.split(",")]
        for number in range(2 * len(topics)):
            host, _, port = hosts[number % len(hosts)]
            connection = socket.create_connection((host, int(port)), ANSWER_S)
            self._sockets.append(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _ask(connection, connect_packet(options, number), 4)
        for connection, topic in zip(self._sockets[len(topics) :], topics, strict=True):
            _ask(connection, codec.encode(packets.Subscribe(1, [(topic, options.qos)])), 5)
        for connection in self._sockets:
            connection.setblocking(False)

    def turn(self, seconds: float, *, until_complete: bool = False) -> None:
        """Send and receive for some time, or until everything that was sent has come."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0 and not (until_complete and self.is_complete):
            self._turn(self._loop, min(left, SLICE_S), until_complete)

    def total(self, name: str) -> int:
        """Return the sum of a counter over the streams."""
        return sum(getattr(each, name) for each in self.streams)

    @property
    def disconnects(self) -> int:
        """How many connections were lost."""
        return sum((each.publisher < 0) + (each.subscriber < 0) for each in self.streams)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is on its way."""
        return not any(
            each.expected < each.sent or (self.load.qos and each.acknowledged < each.sent) for each in self.streams
        )

    def latency_us(self, percent: int) -> float:
        """Return a percentile of the latencies."""
        counts = list(self.load.latencies)
        wanted = sum(counts) * percent / 100
        for bucket, seen in enumerate(itertools.accumulate(counts)):
            if seen >= wanted and seen:
                power, step = divmod(bucket, STEPS)
                return (step if not power else STEPS + step << power - 1) / 1e3
        return 0.0

    def close(self) -> None:
        """Close all connections."""
        for each in self._sockets:
            each.close()


def _ask(connection: socket.socket, question: bytes, size: int) -> None:
    connection.sendall(question)
    answer = b""
    while len(answer) < size and (more := connection.recv(size - len(answer))):
        answer += more
    if len(answer) < size or answer[-1] & 0x83 == 0x80 or (answer[0] == 0x20 and answer[-1]):
        raise LoadError(f"a client was refused: {answer.hex() or 'closed'}")


def connect_packet(options: argparse.Namespace, number: int) -> bytes:
    """Return the CONNECT of a client."""
    client_id = options.client_id % number
    password = sign(options.lmq_sign, client_id).encode() if options.lmq_sign else None
    return codec.encode(packets.Connect(4, client_id, True, 0, options.user, password, None))


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run once and return what mqload would print."""
    run = Run(options)
    try:
        return _measured(options, run)
    finally:
        run.close()


def _measured(options: argparse.Namespace, run: Run) -> dict[str, object]:
    pids = {each: int(each) for each in options.pid.split(",") if each}
    run.turn(options.settle)
    run.load.is_sending = 1
    run.turn(options.warmup)
    ctypes.memset(run.load.latencies, 0, ctypes.sizeof(run.load.latencies))
    began, before, own, broker = time.perf_counter(), run.total("delivered"), time.process_time(), cpu_s(pids)
    run.turn(options.duration)
    wall, delivered, own = time.perf_counter() - began, run.total("delivered") - before, time.process_time() - own
    after = cpu_s(pids)
    broker_s = sum(after[each] - broker[each] for each in pids)
    latency = {f"p{percent}_us": run.latency_us(percent) for percent in (50, 99)}
    run.load.is_sending = 0
    _drain(run, options.drain)
    sent = run.total("sent")
    return {
        "tool": "weimq",
        "delivered_per_s": delivered / wall,
        "delivered_per_broker_cpu_s": delivered / broker_s if broker_s else 0,
        "published": sent,
        "delivered": run.total("delivered"),
        "latency": latency,
        "usage": {"wall_s": wall, "loader_cpu_s": own, "broker_cpu_s": broker_s},
        "lost": run.total("lost") + sent - run.total("expected"),
        "dup": run.total("dup"),
        "corrupt": run.total("corrupt"),
        "unacked": sent - run.total("acknowledged") if options.qos else 0,
        "disconnects": run.disconnects,
    }


def _drain(run: Run, idle_s: float) -> None:
    """Wait for what is on its way, until nothing comes for `idle_s`."""
    before = -1
    while not run.is_complete and (now := run.total("expected") + run.total("acknowledged")) != before:
        before = now
        run.turn(idle_s, until_complete=True)


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
    parser.add_argument("--credit", type=int)
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
    options = parser.parse_args(arguments)
    if options.credit is None:
        options.credit = (64, 256)[options.qos]
    if not MARK_SIZE <= options.payload <= MAX_PAYLOAD:
        parser.error(f"a payload has {MARK_SIZE} to {MAX_PAYLOAD} bytes")
    if not 1 <= options.credit <= MAX_CREDIT or not 1 <= options.window <= MAX_CREDIT:
        parser.error(f"credit and window are 1 to {MAX_CREDIT} messages")
    return options


def main() -> int:
    """Run once; return 3 when a message was lost, repeated, reordered or changed."""
    raise_file_limit()
    try:
        options = parsed(sys.argv[1:])
        result = measure(options)
    except (LoadError, OSError, TimeoutError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    faults = any(result[name] for name in ("lost", "dup", "corrupt", "unacked", "disconnects"))
    return 3 if options.strict and faults else 0


if __name__ == "__main__":
    sys.exit(main())
