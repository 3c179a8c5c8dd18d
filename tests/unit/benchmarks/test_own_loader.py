"""Tests of `benchmarks.own_loader` against a broker of a few lines that passes on, loses or repeats what it gets."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from typing import cast

import pytest

from benchmarks.own_loader import LoadError, measure, parsed
from services.edge.mqtt import codec, packets
from tests.support.tools import need

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def compiler() -> str:
    return need("cc", "gcc")


Change = Callable[[int, bytes], bytes]
"""What is delivered for the message of this number."""


@contextlib.asynccontextmanager
async def broker(change: Change, return_code: int = 0) -> AsyncGenerator[int]:
    """Run one; yield its port."""
    subscribers: dict[str, asyncio.StreamWriter] = {}
    serving: list[tuple[asyncio.Task[None] | None, asyncio.StreamWriter]] = []
    count = 0

    def take(packet: packets.Packet, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        if isinstance(packet, packets.Connect):
            writer.write(codec.encode(packets.ConnAck(False, packets.ConnectReturnCode(return_code))))
        elif isinstance(packet, packets.Subscribe):
            ((topic, qos),) = packet.filters
            subscribers[topic] = writer
            writer.write(codec.encode(packets.SubAck(packet.packet_identifier, [qos])))
        elif isinstance(packet, packets.Publish):
            count += 1
            subscribers[packet.topic].write(change(count - 1, codec.encode(packet)))
            if packet.qos:
                writer.write(codec.encode(packets.PubAck(packet.packet_identifier)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append((asyncio.current_task(), writer))
        decoder = codec.Decoder(1 << 20)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                for packet in decoder.feed(data):
                    take(packet, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for _, writer in serving:
            writer.transport.abort()
        await asyncio.gather(*(task for task, _ in serving if task), return_exceptions=True)


def _nothing(_number: int, message: bytes) -> bytes:
    return message


def _at(number: int, change: Callable[[bytes], bytes]) -> Change:
    return lambda count, message: change(message) if count == number else message


def _marked(place: int, change: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """Change one of the numbers at the beginning of a payload of 64 bytes: stream, message, time."""

    def changed(message: bytes) -> bytes:
        at = len(message) - 64 + 8 * place
        number = change(int.from_bytes(message[at : at + 8], sys.byteorder)) % (1 << 64)
        return message[:at] + number.to_bytes(8, sys.byteorder) + message[at + 8 :]

    return changed


def arguments(port: int, qos: int) -> list[str]:
    return ["throughput", "-h", f"127.0.0.1:{port}", "-P", "3", "--qos", str(qos), "-t", "0.2", "--warmup", "0.1",
            "--settle", "0", "--drain", "0.5", "--json", "-q", "--strict"]  # fmt: skip


@pytest.mark.parametrize("qos", [0, 1])
async def test_all_that_is_sent_is_counted(qos: int) -> None:
    async with broker(_nothing) as port:
        result = await asyncio.to_thread(measure, parsed(arguments(port, qos)))
    assert result["delivered"]
    assert {name: result[name] for name in ("lost", "dup", "corrupt", "unacked", "disconnects")} == dict.fromkeys(
        ("lost", "dup", "corrupt", "unacked", "disconnects"), 0
    )


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(("times", "fault"), [(0, "lost"), (2, "dup")])
async def test_a_message_that_is_lost_or_repeated_is_told(qos: int, times: int, fault: str) -> None:
    async with broker(_at(5, lambda message: message * times)) as port:
        result = await asyncio.to_thread(measure, parsed(arguments(port, qos)))
    assert result[fault] == 1


async def test_what_is_lost_is_not_delivered() -> None:
    async with broker(lambda number, message: b"" if 50 <= number < 100 else message) as port:
        result = await asyncio.to_thread(measure, parsed([*arguments(port, 1), "--warmup", "0"]))
    assert result["lost"] == 50
    assert result["published"] == result["delivered"] + 50  # type: ignore[operator]


CHANGES = {
    "of another stream": _marked(0, lambda stream: stream + 1),
    "number that was never sent": _marked(1, lambda number: number + (1 << 56)),
    "largest number": _marked(1, lambda _: -1),
    "time to come": _marked(2, lambda time_ns: time_ns + (1 << 40)),
    "padding": lambda message: message[:-1] + b"x",
    "topic": lambda message: message[:5] + b"x" + message[6:],
}


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_message_that_was_changed_is_told(qos: int, change: Callable[[bytes], bytes]) -> None:
    async with broker(_at(5, change)) as port:
        result = await asyncio.to_thread(measure, parsed(arguments(port, qos)))
    assert (result["corrupt"], result["lost"], result["dup"]) == (1, 1, 0)
    assert cast("int", result["delivered"]) > 5


async def test_lost_connections_are_told() -> None:
    def end(_message: bytes) -> bytes:
        raise ConnectionError  # the broker closes the publisher's connection

    async with broker(_at(100, end)) as port:
        result = await asyncio.to_thread(measure, parsed(arguments(port, 1)))
    assert result["disconnects"] == 1


async def test_a_client_that_is_refused_ends_the_run() -> None:
    async with broker(_nothing, return_code=5) as port:
        with pytest.raises(LoadError, match="refused: 20020005"):
            await asyncio.to_thread(measure, parsed(arguments(port, 0)))


@pytest.mark.parametrize("more", [["--topology", "fanout"], ["--qos", "2"], ["--rate", "5000"], ["--credit", "0"]])
async def test_what_only_mqload_can_do_is_refused(more: list[str]) -> None:
    with pytest.raises(LoadError, match="set MQLOAD to its path"):
        parsed([*arguments(1, 0), *more])
