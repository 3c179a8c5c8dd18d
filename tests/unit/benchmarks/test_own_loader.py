"""Tests of `benchmarks.own_loader` against a broker of a few lines that passes on, loses or repeats what it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.own_loader import LoadError, measure, parsed
from services.edge.mqtt import codec, packets
from tests.support.tools import need

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def compiler() -> str:
    return need("cc", "gcc")


Change = Callable[[int], int]
"""How often the message of this number is delivered."""


@asynccontextmanager
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
            subscribers[packet.topic].write(codec.encode(packet) * change(count))
            count += 1
            if packet.qos:
                writer.write(codec.encode(packets.PubAck(packet.packet_identifier)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append((asyncio.current_task(), writer))
        decoder = codec.Decoder(1 << 20)
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


def arguments(port: int, qos: int) -> list[str]:
    return ["throughput", "-h", f"127.0.0.1:{port}", "-P", "3", "--qos", str(qos), "-t", "0.2", "--warmup", "0.1",
            "--settle", "0", "--drain", "0.5", "--json", "-q", "--strict"]  # fmt: skip


@pytest.mark.parametrize("qos", [0, 1])
async def test_all_that_is_sent_is_counted(qos: int) -> None:
    async with broker(lambda _: 1) as port:
        result = await asyncio.to_thread(measure, parsed(arguments(port, qos)))
    assert result["delivered"]
    assert {name: result[name] for name in ("lost", "dup", "corrupt", "unacked", "disconnects")} == dict.fromkeys(
        ("lost", "dup", "corrupt", "unacked", "disconnects"), 0
    )


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(("times", "fault"), [(0, "lost"), (2, "dup")])
async def test_a_message_that_is_lost_or_repeated_is_told(qos: int, times: int, fault: str) -> None:
    async with broker(lambda number: times if number == 5 else 1) as port:
        result = await asyncio.to_thread(measure, parsed(arguments(port, qos)))
    assert result[fault] == 1


async def test_a_client_that_is_refused_ends_the_run() -> None:
    async with broker(lambda _: 1, return_code=5) as port:
        with pytest.raises(LoadError, match="refused: 20020005"):
            await asyncio.to_thread(measure, parsed(arguments(port, 0)))


@pytest.mark.parametrize("more", [["--topology", "fanout"], ["--qos", "2"], ["--rate", "5000"]])
async def test_what_only_mqload_can_do_is_refused(more: list[str]) -> None:
    with pytest.raises(LoadError, match="set MQLOAD to its path"):
        parsed([*arguments(1, 0), *more])
