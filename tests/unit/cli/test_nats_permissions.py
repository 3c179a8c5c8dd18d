"""NATS as configured by us, with a real server: what the user of backend applications may and may not do."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import nats
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js import api

from services.cli import nats_config
from services.cli.mesh import find_nats_server
from services.cli.nats_config import BACKEND_USER, PRIVATE_STREAMS, WEIMQ_USER
from services.cli.ports import split_address
from services.cli.secrets import DataDir
from services.common.jetstream import INBOX_PREFIX
from services.common.subjects import event_filter, event_stream, event_subject, log_filter, log_stream, log_subject

LOG = log_stream("mqtt-demo", "demo")
EVENTS = event_stream("mqtt-demo")


@dataclass
class Broker:
    """A server with both users connected."""

    url: Callable[[str, str], str]
    weimq: Client
    backend: Client
    violations: list[str] = field(default_factory=list)

    async def refused(self, work: Awaitable[object]) -> str:
        """Return what NATS says about `work`, which must fail for want of permission."""
        self.violations.clear()
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await work
        return await self.violation()

    async def violation(self) -> str:
        """Return the violation that NATS reports; nats-py calls back in a task of its own."""
        await self.backend.flush()
        async with asyncio.timeout(5):
            while not self.violations:  # noqa: ASYNC110 - a list filled by a callback
                await asyncio.sleep(0.01)
        return self.violations[0]


async def _greeted(address: str) -> None:
    """Wait until NATS answers there."""
    host, port = split_address(address)
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                greeting = await reader.readline()
                writer.close()
                await writer.wait_closed()
                if b'"jetstream":true' in greeting:
                    return
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    data = DataDir(tmp_path / "data")
    data.initialize()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    nats_config.write_files(data, listen=address, address=address, store=data.nats_store)
    assert data.nats_conf.stat().st_mode & 0o777 == 0o600
    passwords = data.read_nats_passwords()
    assert data.read_text(data.nats_url) == f"nats://weimq:{passwords.weimq}@{address}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [find_nats_server(), "-c", str(data.nats_conf)], stdout=log, stderr=log
        )
    violations: list[str] = []

    async def on_error(error: Exception) -> None:
        violations.append(str(error))

    async def connect(user: str, password: str, prefix: str) -> Client:
        return await nats.connect(
            nats_config.url(user, password, address), inbox_prefix=prefix, error_cb=on_error, allow_reconnect=False
        )

    try:
        await _greeted(address)
        weimq = await connect(WEIMQ_USER, passwords.weimq, INBOX_PREFIX)
        backend = await connect(BACKEND_USER, passwords.backend, "_INBOX")
        violations.clear()
        yield Broker(
            url=lambda user, password: nats_config.url(user, password, address),
            weimq=weimq,
            backend=backend,
            violations=violations,
        )
        await backend.close()
        await weimq.close()
    finally:
        process.terminate()
        process.wait()


async def fill(broker: Broker) -> None:
    """Make what the services make."""
    js = broker.weimq.jetstream()
    await js.add_stream(name=LOG, subjects=log_filter("mqtt-demo", "demo"), allow_direct=True)
    await js.add_stream(name=EVENTS, subjects=[event_filter("mqtt-demo")])
    await js.add_stream(name="MQ_IN", subjects=["mq.in.>"])
    await js.publish(log_subject("mqtt-demo", "demo/a"), b"message")
    await js.publish(event_subject("mqtt-demo", "GID_demo", "connect"), b"event")
    await (await js.create_key_value(bucket="resources")).put("key", b"secret")


@pytest.mark.asyncio
async def test_backend_reads_logs_and_events_and_publishes_inbound(broker: Broker) -> None:
    await fill(broker)
    js = broker.backend.jetstream(timeout=5)
    assert {info.config.name for info in await js.streams_info()} >= {LOG, EVENTS}
    for stream, subject, payload in (
        (LOG, log_filter("mqtt-demo", "demo")[1], b"message"),
        (EVENTS, event_filter("mqtt-demo"), b"event"),
    ):
        subscription = await js.pull_subscribe(subject, durable="app", stream=stream)
        (message,) = await subscription.fetch(1, timeout=5)
        assert message.data == payload
        await message.ack_sync(timeout=5)
        assert (await subscription.consumer_info()).num_ack_pending == 0
        await js.delete_consumer(stream, "app")
    ordered = await js.subscribe(log_subject("mqtt-demo", "demo/a"), ordered_consumer=True)
    assert (await ordered.next_msg(timeout=5)).data == b"message"
    assert (await js.get_msg(LOG, 1, direct=True)).data == b"message"
    await js.publish("mq.in.mqtt-demo.demo", b"from backend")
    assert broker.violations == []


@pytest.mark.asyncio
async def test_backend_reads_no_private_stream(broker: Broker) -> None:
    await fill(broker)
    admin = broker.weimq.jetstream()
    js = broker.backend.jetstream(timeout=0.05)
    for name in PRIVATE_STREAMS:
        if name not in {"KV_resources", "MQ_IN"}:
            await admin.add_stream(name=name, subjects=[f"private.{name}.>"], allow_direct=True)
    for name in PRIVATE_STREAMS:
        pull = api.ConsumerConfig(durable_name="thief", ack_policy=api.AckPolicy.EXPLICIT)
        await admin.add_consumer(name, pull)
        for work in (
            js.stream_info(name),
            js.get_msg(name, 1),
            js.get_msg(name, 1, direct=True),
            js.get_last_msg(name, "$KV.resources.key", direct=True),
            js.add_consumer(name, api.ConsumerConfig(durable_name="other", ack_policy=api.AckPolicy.EXPLICIT)),
            js.add_consumer(name, api.ConsumerConfig(deliver_subject="_INBOX.thief")),
            js.consumer_info(name, "thief"),
            js.consumers_info(name),
            js.delete_consumer(name, "thief"),
            broker.backend.request(f"$JS.API.CONSUMER.MSG.NEXT.{name}.thief", b"", timeout=0.05),
            broker.backend.request(f"$JS.API.CONSUMER.CREATE.{name}.x.>", b"{}", timeout=0.05),
        ):
            assert "publish" in await broker.refused(work)
    await broker.refused(js.key_value("resources"))


@pytest.mark.asyncio
async def test_backend_changes_nothing_but_the_inbound_queue(broker: Broker) -> None:
    await fill(broker)
    js = broker.backend.jetstream(timeout=0.05)
    for work in (
        js.publish(log_subject("mqtt-demo", "demo/forged"), b"", timeout=0.05),
        js.publish(event_subject("mqtt-demo", "GID_demo", "connect"), b"", timeout=0.05),
        js.publish("$KV.resources.key", b"", timeout=0.05),
        js.add_stream(name="mine", subjects=["mine"]),
        js.update_stream(name=LOG, subjects=["elsewhere"]),
        js.purge_stream(LOG),
        js.delete_stream(LOG),
        js.delete_msg(LOG, 1),
    ):
        assert "publish" in await broker.refused(work)


@pytest.mark.asyncio
async def test_backend_hears_no_answers_to_services(broker: Broker) -> None:
    await fill(broker)
    heard: list[str] = []

    async def note(message: object) -> None:
        heard.append(repr(message))

    await broker.backend.subscribe("_INBOX.>", cb=note)
    await broker.backend.flush()
    bucket = await broker.weimq.jetstream().key_value("resources")
    assert (await bucket.get("key")).value == b"secret"
    watcher = await bucket.watchall()
    assert await watcher.updates(timeout=5) is not None  # type: ignore[no-untyped-call]  # nats-py has no types here
    await watcher.stop()  # type: ignore[no-untyped-call]
    await broker.backend.flush()
    assert heard == []
    for subject in (f"{INBOX_PREFIX}.>", "$KV.>", "mq.>", ">"):
        broker.violations.clear()
        await broker.backend.subscribe(subject)
        assert "subscription" in await broker.violation()


@pytest.mark.asyncio
async def test_backend_plants_nothing_in_a_bucket_through_a_push_consumer(broker: Broker) -> None:
    await fill(broker)
    plant = api.ConsumerConfig(deliver_subject="$KV.resources.planted", ack_policy=api.AckPolicy.NONE)
    with contextlib.suppress(nats.errors.Error, TimeoutError):
        await broker.backend.jetstream(timeout=1).add_consumer(LOG, plant)
    js = broker.weimq.jetstream()
    for _ in range(10):
        await js.publish(log_subject("mqtt-demo", "demo/a"), b"planted")
    assert await (await js.key_value("resources")).keys() == ["key"]


@pytest.mark.asyncio
async def test_wrong_or_missing_password_is_refused(broker: Broker) -> None:
    for url in (broker.url(BACKEND_USER, "wrong"), broker.url("", "").replace(":@", "")):
        client = Client()
        with pytest.raises(nats.errors.Error):
            await client.connect(url, max_reconnect_attempts=0, allow_reconnect=False, connect_timeout=5)
        await client.close()


def test_every_bucket_of_the_services_is_private() -> None:
    """NATS can't deny by prefix, so the list has to keep up with the services: read from their sources."""
    sources = Path(nats_config.__file__).parents[1].glob("*/**/*.py")
    named = re.compile(r'BUCKET\w*\s*(?::[^=\n]*)?=\s*"(\w+)"|ensure_bucket\(\s*[\w.]+,\s*"(\w+)"')
    buckets = {name for path in sources for match in named.findall(path.read_text()) for name in match if name}
    assert "resources" in buckets
    assert {f"KV_{name}" for name in buckets} <= set(PRIVATE_STREAMS)
