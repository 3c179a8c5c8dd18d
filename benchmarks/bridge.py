"""The backend queue both ways: `python -m benchmarks.bridge`.

Bridged messages a second, CPU time of every process for each message, and latencies at a low rate; what the bridge adds
is the difference to those from one MQTT client to another without a log. All messages have QoS 1; the load runs in this
one process, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import uvloop
from nats.aio.msg import Msg
from nats.js import api
from rich.console import Console
from rich.table import Table

from benchmarks.peers import FREE_TOPIC, Broker, Mesh
from benchmarks.report import HERE, commit, machine
from benchmarks.wire import Client, Login, connected
from services.common import subjects
from services.common.raw_nats import Tap, write
from services.edge.mqtt import codec, packets

PUBLISHERS = 4
WINDOW = 256
"""Unacknowledged publications of each publisher."""
INBOUND_WINDOW = 4_096
PAYLOAD_BYTES = 128
LATENCY_RATE = 500
LATENCY_S = 4.0

Payload = Callable[[], bytes]


class Case:
    """One mesh with its clients."""

    def __init__(self, mesh: Mesh) -> None:
        made = mesh.credentials
        self.mesh = mesh
        self.broker = Broker("weimq", [], mesh.pids())
        self.url = made["nats_url"]
        self.instance, self.topic = made["instance"], made["topic"]
        self._login = Login(made["group"], made["access_key"], made["instance"], made["secret"])

    async def client(self, device: str, on_packet: Callable[[packets.Packet], None]) -> Client:
        return await connected(self.mesh.base, "tcp", self._login.connect(device)[1], on_packet)

    async def subscriber(self, device: str, topic_filter: str, take: Callable[[bytes], None]) -> Client:
        """Return a client that acknowledges what it gets."""
        subscribed = asyncio.Event()

        def on_packet(packet: packets.Packet) -> None:
            if isinstance(packet, packets.Publish):
                if packet.qos:
                    client.send(codec.encode(packets.PubAck(packet.packet_identifier)))
                take(packet.payload)
            elif isinstance(packet, packets.SubAck):
                subscribed.set()

        client = await self.client(device, on_packet)
        client.send(codec.encode(packets.Subscribe(1, [(topic_filter, 1)])))
        await subscribed.wait()
        return client


async def publish(case: Case, device: str, topic: str, count: int, payload: Payload, *, rate: float = 0) -> None:
    """Publish at QoS 1, at a rate or as fast as the window allows, and wait for every PUBACK."""
    acknowledged = 0
    moved = asyncio.Event()

    def on_packet(packet: packets.Packet) -> None:
        nonlocal acknowledged
        if isinstance(packet, packets.PubAck):
            acknowledged += 1
            moved.set()

    client = await case.client(device, on_packet)
    began = time.perf_counter()
    for number in range(count):
        while number - acknowledged >= WINDOW:
            moved.clear()
            await moved.wait()
        if rate:
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        client.send(codec.encode(packets.Publish(topic, payload(), 1, False, False, number % 65_535 + 1)))
    while acknowledged < count:
        moved.clear()
        await moved.wait()
    client.transport.close()


async def publish_inbound(case: Case, count: int, payload: Payload, *, rate: float = 0) -> None:
    """Publish to the inbound subject as a backend, pipelined, and wait for every acknowledgement of JetStream."""
    client = await nats.connect(case.url)
    acknowledged = 0
    moved = asyncio.Event()

    def on_answer(_message: Msg) -> None:
        nonlocal acknowledged
        acknowledged += 1
        moved.set()

    inbox = client.new_inbox()
    await client.subscribe(inbox, future=Tap(on_answer))
    await client.flush()
    head = b"NATS/1.0\r\nmqttSecondTopic: /bridge\r\n\r\n"
    subject = subjects.in_subject(case.instance, case.topic)
    began = time.perf_counter()
    for number in range(count):
        while number - acknowledged >= INBOUND_WINDOW:
            moved.clear()
            await moved.wait()
        if rate:
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        elif number % 64 == 63:
            await asyncio.sleep(0)
        body = payload()
        line = f"HPUB {subject} {inbox} {len(head)} {len(head) + len(body)}\r\n".encode()
        write(client, (line, head, body, b"\r\n"))
    while acknowledged < count:
        moved.clear()
        await moved.wait()
    await client.close()


async def consume(case: Case, count: int, take: Callable[[bytes], None]) -> Callable[[], Awaitable[None]]:
    """Read new messages of the log as a backend; returns what ends it."""
    client = await nats.connect(case.url)
    stream = subjects.log_stream(case.instance, case.topic)
    config = api.ConsumerConfig(
        name="bench", ack_policy=api.AckPolicy.NONE, deliver_policy=api.DeliverPolicy.NEW, inactive_threshold=60
    )
    await client.jetstream().add_consumer(stream, config)
    inbox = client.new_inbox()
    await client.subscribe(inbox, future=Tap(lambda message: take(message.data) if message.reply else None))
    request = json.dumps({"batch": count, "expires": int(60e9)}).encode()
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.bench", request, reply=inbox)
    await client.flush()

    async def end() -> None:
        await client.jetstream().delete_consumer(stream, "bench")
        await client.close()

    return end


async def throughput(case: Case, count: int) -> dict[str, Any]:
    """Measure both directions at full speed."""
    body = bytes(PAYLOAD_BYTES)
    results: dict[str, Any] = {}

    async def out() -> None:
        topic = f"{case.topic}/bridge"
        share = count // PUBLISHERS
        await asyncio.gather(*(publish(case, f"pub{n}", topic, share, lambda: body) for n in range(PUBLISHERS)))

    results["mqtt_to_queue"] = await timed(case, out, count)
    got = 0
    all_got = asyncio.Event()

    def take(_payload: bytes) -> None:
        nonlocal got
        got += 1
        if got == count:
            all_got.set()

    subscriber = await case.subscriber("sub", f"{case.topic}/bridge", take)

    async def inbound() -> None:
        await publish_inbound(case, count, lambda: body)
        await all_got.wait()

    results["queue_to_mqtt"] = await timed(case, inbound, count)
    subscriber.transport.close()
    return results


async def timed(case: Case, work: Callable[[], Awaitable[None]], count: int) -> dict[str, Any]:
    before, began = case.broker.cpu_s(), time.perf_counter()
    async with asyncio.timeout(300):
        await work()
    passed = time.perf_counter() - began
    used = {name: (after - before[name]) / count * 1e6 for name, after in case.broker.cpu_s().items()}
    return {"messages_per_s": count / passed, "cpu_us": used, "cpu_us_sum": sum(used.values())}


async def latencies(case: Case) -> dict[str, dict[str, float]]:
    """Measure the three ways at a low rate, in milliseconds."""
    count = int(LATENCY_RATE * LATENCY_S)
    found: dict[str, dict[str, float]] = {}
    times: list[float] = []

    def stamp() -> bytes:
        return repr(time.perf_counter()).encode()

    def take(payload: bytes) -> None:
        times.append((time.perf_counter() - float(payload)) * 1e3)

    async def note(name: str) -> None:
        async with asyncio.timeout(10):
            while len(times) < count:  # noqa: ASYNC110 - a list that a callback fills
                await asyncio.sleep(0.01)
        cuts = statistics.quantiles(times, n=100)
        found[name] = {"p50_ms": cuts[49], "p99_ms": cuts[98]}
        times.clear()

    for name, topic in (("mqtt_to_mqtt", FREE_TOPIC), ("mqtt_to_mqtt_logged", case.topic)):
        subscriber = await case.subscriber("sub", f"{topic}/latency", take)
        await publish(case, "pub", f"{topic}/latency", count, stamp, rate=LATENCY_RATE)
        await note(name)
        subscriber.transport.close()
    end = await consume(case, count, take)
    await publish(case, "pub", f"{case.topic}/latency", count, stamp, rate=LATENCY_RATE)
    await note("mqtt_to_queue")
    await end()
    subscriber = await case.subscriber("sub", f"{case.topic}/bridge", take)
    await publish_inbound(case, count, stamp, rate=LATENCY_RATE)
    await note("queue_to_mqtt")
    subscriber.transport.close()
    return found


async def measure(mesh: Mesh, count: int) -> dict[str, Any]:
    case = Case(mesh)
    await throughput(case, max(count // 10, PUBLISHERS))  # warm up
    result = await throughput(case, count)
    for way, values in (await latencies(case)).items():
        result.setdefault(way, {}).update(values)
    return result


def report(console: Console, rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Print the medians and return them."""
    medians: dict[str, dict[str, float]] = {}
    for way in rounds[0]:
        figures = [name for name, value in rounds[0][way].items() if isinstance(value, (int, float))]
        medians[way] = {name: statistics.median(each[way][name] for each in rounds) for name in figures}
        if "cpu_us" in rounds[0][way]:
            for process in rounds[0][way]["cpu_us"]:
                used = statistics.median(each[way]["cpu_us"][process] for each in rounds)
                medians[way][f"cpu_us.{process}"] = used
    direct = medians["mqtt_to_mqtt"]
    for way, values in medians.items():
        if way != "mqtt_to_mqtt":
            values |= {f"added_{name}": values[name] - direct[name] for name in ("p50_ms", "p99_ms")}
    table = Table("way", "messages/s", "CPU us/message", "of it", "p50 / p99 ms", "added p50 / p99 ms")
    for way, values in medians.items():
        parts = {name[7:]: value for name, value in values.items() if name.startswith("cpu_us.") and value >= 1}
        table.add_row(
            way.replace("_", " "),
            f"{values['messages_per_s']:,.0f}" if "messages_per_s" in values else "",
            f"{values['cpu_us_sum']:.0f}" if "cpu_us_sum" in values else "",
            ", ".join(f"{name} {value:.0f}" for name, value in sorted(parts.items(), key=lambda item: -item[1])),
            f"{values['p50_ms']:.2f} / {values['p99_ms']:.2f}",
            f"{values['added_p50_ms']:.2f} / {values['added_p99_ms']:.2f}" if "added_p50_ms" in values else "",
        )
    console.print(table)
    return medians


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port-base", type=int, default=27_000)
    options = parser.parse_args()
    console = Console()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="weimq-bench-") as directory:
            mesh = Mesh(Path(directory), options.port_base, edges=1)
            try:
                rounds.append(uvloop.run(measure(mesh, options.messages)))
            finally:
                mesh.stop()
    medians = report(console, rounds)
    record = {"commit": commit(), "machine": machine(), "options": vars(options), "medians": medians}
    path = HERE / "results" / f"bridge-{commit()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
