"""NATS as configured by us, with a real server: what backend applications of an instance may and may not do."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import nats
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import APIError

from services.auth import backend_api
from services.cli import nats_config
from services.cli.backends import _reload
from services.cli.mesh import find_nats_server
from services.cli.nats_config import WEIMQ_USER, config_text
from services.cli.ports import split_address
from services.cli.secrets import Backend, DataDir
from services.common import jetstream
from services.common.jetstream import INBOX_PREFIX
from services.common.readiness import Readiness
from services.common.runtime import background
from services.common.settings import Secret
from services.common.subjects import (
    dead_consumer,
    event_filter,
    event_stream,
    event_subject,
    in_subject,
    log_filter,
    log_stream,
    log_subject,
)
from services.router.inbound_stream import dead_config, in_config
from tests.support.nats import REFUSALS
from tests.support.ports import free_ports

MINE, THEIRS = "mqtt-demo", "mqtt_b.c"
"""Instances; the second needs escaping."""
PRIVATE = ("KV_resources", "KV_sessions", "PRESENCE", "MQ_IN", "RETAINED_mqtt-demo", "KEPT_mqtt-demo_0")

pytestmark = pytest.mark.asyncio


@dataclass
class Broker:
    """A server with the services' user and a backend of each instance connected, and auth's answers to them."""

    data: DataDir
    weimq: Client
    backend: Client
    other: Client
    violations: list[str] = field(default_factory=list)

    def url(self, user: str, password: str) -> str:
        return nats_config.url(user, password, nats_config._addresses(self.data)[0])


async def refused(work: Awaitable[object]) -> None:
    """Expect that `work` fails: NATS knows no such subject, or auth denies it."""
    with pytest.raises((nats.errors.Error, TimeoutError)):
        await work


async def _greeted(address: str) -> None:
    """Wait until NATS answers there."""
    host, port = split_address(address)
    async with asyncio.timeout(30):
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
    other = Backend(instance=THEIRS, name="app", user="other.app", password="0123")
    data.write_backends([other])
    data.backend_topics.write_text(f'{{"{MINE}": ["demo"], "{THEIRS}": ["demo", "a_b"]}}')
    address = f"127.0.0.1:{free_ports(1)[0]}"
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

    async def connect(url: str, prefix: str = "_INBOX") -> Client:
        return await nats.connect(url, inbox_prefix=prefix, error_cb=on_error, allow_reconnect=False)

    try:
        await _greeted(address)
        weimq = await connect(nats_config.url(WEIMQ_USER, passwords.weimq, address), INBOX_PREFIX)
        mine, theirs = [await connect(nats_config.backend_url(data, each)) for each in data.read_backends()]
        violations.clear()
        async with background(backend_api.serve(weimq)):
            made = Broker(data=data, weimq=weimq, backend=mine, other=theirs, violations=violations)
            await fill(made)
            yield made
        for client in (mine, theirs, weimq):
            await client.close()
    finally:
        process.terminate()
        process.wait()


async def fill(broker: Broker) -> None:
    """Make what the services make."""
    js = broker.weimq.jetstream()
    for instance, topics in ((MINE, ["demo"]), (THEIRS, ["demo", "a_b"])):
        for topic in topics:
            name, filters = log_stream(instance, topic), log_filter(instance, topic)
            await js.add_stream(name=name, subjects=filters, allow_direct=True)
            await js.publish(log_subject(instance, f"{topic}/a"), f"message of {instance}".encode())
        await js.add_stream(name=event_stream(instance), subjects=[event_filter(instance)])
        await js.publish(event_subject(instance, "GID_demo", "connect"), f"event of {instance}".encode())
    await js.add_stream(in_config())
    await js.add_stream(dead_config())
    await js.publish("mq.dead.mqtt-demo.demo", b"my dead letter")
    await js.publish("mq.dead.mqtt_b=2Ec.demo", b"their dead letter")
    await (await js.create_key_value(bucket="resources")).put("key", b"secret")
    for name in PRIVATE:
        if name not in {"KV_resources", "MQ_IN"}:
            await js.add_stream(name=name, subjects=[f"private.{name}.>"], allow_direct=True)
    await broker.weimq.flush()


async def read_one(client: Client, stream: str, consumer: str = "app") -> bytes:
    """Return the first message of a stream as an application reads it."""
    js = client.jetstream(timeout=20)
    subscription = await js.pull_subscribe("", durable=consumer, stream=stream)
    (message,) = await subscription.fetch(1, timeout=20)
    await message.ack_sync(timeout=20)
    assert (await subscription.consumer_info()).num_ack_pending == 0
    return message.data


async def test_backend_reads_the_logs_and_events_of_its_instance(broker: Broker) -> None:
    for client, instance, topics in ((broker.backend, MINE, ["demo"]), (broker.other, THEIRS, ["demo", "a_b"])):
        js = client.jetstream(timeout=20)
        own = {event_stream(instance), *(log_stream(instance, topic) for topic in topics)}
        assert {info.config.name for info in await js.streams_info()} == own
        assert await read_one(client, event_stream(instance)) == f"event of {instance}".encode()
        for topic in topics:
            stream = log_stream(instance, topic)
            assert await js.find_stream_name_by_subject(log_subject(instance, topic)) == stream
            assert await read_one(client, stream) == f"message of {instance}".encode()
            assert (await js.get_msg(stream, 1, direct=True)).data == f"message of {instance}".encode()
            assert (await js.get_msg(stream, 1)).data == f"message of {instance}".encode()
            assert (await js.stream_info(stream)).state.messages == 1
            assert [info.name for info in await js.consumers_info(stream)] == ["app"]
            await js.delete_consumer(stream, "app")
        assert (await js.account_info()).streams == 0
    assert broker.violations == []


async def test_backend_publishes_to_topics_of_its_instance_only(broker: Broker) -> None:
    js = broker.backend.jetstream(timeout=20)
    assert (await js.publish(in_subject(MINE, "demo"), b"")).stream == "MQ_IN"
    await refused(broker.backend.jetstream(timeout=1).publish(in_subject(THEIRS, "demo"), b""))
    assert (await broker.weimq.jetstream().stream_info("MQ_IN")).state.messages == 1


async def test_backend_reads_nothing_of_another_instance_nor_of_the_services(broker: Broker) -> None:
    admin = broker.weimq.jetstream()
    js = broker.backend.jetstream(timeout=0.3)
    hostile = (log_stream(THEIRS, "demo"), event_stream(THEIRS), *PRIVATE)
    for name in hostile:
        await admin.add_consumer(name, api.ConsumerConfig(durable_name="victim", ack_policy=api.AckPolicy.EXPLICIT))
        for work in (
            js.stream_info(name),
            js.get_msg(name, 1),
            js.get_msg(name, 1, direct=True),
            js.get_last_msg(name, "$KV.resources.key", direct=True),
            js.add_consumer(name, api.ConsumerConfig(durable_name="thief", ack_policy=api.AckPolicy.EXPLICIT)),
            js.consumer_info(name, "victim"),
            js.consumers_info(name),
            js.delete_consumer(name, "victim"),
        ):
            await refused(work)
        # A fetch and an acknowledgement reach nobody.
        for subject in (f"$JS.API.CONSUMER.MSG.NEXT.{name}.victim", f"$JS.ACK.{name}.victim.1.1.1.1.0"):
            with pytest.raises(nats.errors.NoRespondersError):
                await broker.backend.request(subject, b"", timeout=1)
        assert [info.name for info in await admin.consumers_info(name)] == ["victim"]
    await refused(js.key_value("resources"))


async def test_backend_hears_nothing_of_others(broker: Broker) -> None:
    heard: list[str] = []

    async def note(message: object) -> None:
        heard.append(repr(message))

    for subject in (">", "_INBOX.>", f"{INBOX_PREFIX}.>", "mq.>", "$JS.>", "_R_.>"):
        await broker.backend.subscribe(subject, cb=note)
    await broker.backend.flush()
    bucket = await broker.weimq.jetstream().key_value("resources")
    assert (await bucket.get("key")).value == b"secret"
    await broker.weimq.jetstream().publish(log_subject(THEIRS, "demo/x"), b"theirs")
    assert await read_one(broker.other, log_stream(THEIRS, "demo")) == f"message of {THEIRS}".encode()
    await broker.other.jetstream().publish(in_subject(THEIRS, "demo"), b"theirs")
    await broker.backend.flush()
    assert heard == []


async def test_backend_changes_nothing_but_the_inbound_queue(broker: Broker) -> None:
    js = broker.backend.jetstream(timeout=0.3)
    mine = log_stream(MINE, "demo")
    for work in (
        js.publish(log_subject(MINE, "demo/forged"), b""),
        js.publish(event_subject(MINE, "GID_demo", "connect"), b""),
        js.publish("$KV.resources.key", b""),
        js.publish("mq.dead.mqtt-demo.demo", b""),
        js.add_stream(name="mine", subjects=["mine"]),
        js.update_stream(name=mine, subjects=["elsewhere"]),
        js.purge_stream(mine),
        js.delete_stream(mine),
        js.delete_msg(mine, 1),
        js.add_consumer(mine, api.ConsumerConfig(deliver_subject="mq.out.mqtt_b=2Ec.demo")),
        js.add_consumer(mine, api.ConsumerConfig(durable_name="x", deliver_subject="$JS.API.STREAM.DELETE.PRESENCE")),
        broker.backend.request(f"$JS.API.CONSUMER.CREATE.{mine}.x", b"not JSON", timeout=0.3),
    ):
        with contextlib.suppress(nats.errors.Error, TimeoutError, APIError):
            answer = await work
            assert isinstance(answer, Msg)
            assert b'"code": 403' in answer.data
    admin = broker.weimq.jetstream()
    for name, count in ((mine, 1), ("MQ_DEAD", 2), (event_stream(MINE), 1)):
        assert (await admin.stream_info(name)).state.messages == count
    assert await admin.consumers_info(mine) == []


async def test_answers_to_a_fetch_can_not_be_sent_into_a_stream(broker: Broker) -> None:
    """The forgery that one account could not prevent: NATS does not check reply subjects."""
    mine = log_stream(MINE, "demo")
    js = broker.backend.jetstream(timeout=20)
    await js.add_consumer(mine, api.ConsumerConfig(durable_name="app", ack_policy=api.AckPolicy.EXPLICIT))
    forged = log_subject(THEIRS, "demo/forged")
    for subject in (forged, in_subject(THEIRS, "demo"), "mq.dead.mqtt-demo.demo"):
        await broker.backend.publish(f"$JS.API.CONSUMER.MSG.NEXT.{mine}.app", b'{"batch":1}', reply=subject)
        await broker.backend.publish(f"$JS.API.STREAM.INFO.{mine}", b"", reply=subject)
    await broker.backend.flush()
    await js.stream_info(mine)
    admin = broker.weimq.jetstream()
    assert (await admin.stream_info(log_stream(THEIRS, "demo"))).state.messages == 1
    assert (await admin.stream_info("MQ_IN")).state.messages == 0
    assert (await admin.stream_info("MQ_DEAD")).state.messages == 2


async def test_backend_reads_its_own_dead_letters_only(broker: Broker) -> None:
    js, hasty = broker.backend.jetstream(timeout=20), broker.backend.jetstream(timeout=0.3)
    name = dead_consumer(MINE)

    def config(durable: str, subject: str | None) -> api.ConsumerConfig:
        return api.ConsumerConfig(durable_name=durable, filter_subject=subject, ack_policy=api.AckPolicy.EXPLICIT)

    for durable, subject in (
        (name, None),
        (name, "mq.dead.>"),
        (name, "mq.dead.mqtt_b=2Ec.>"),
        ("app", "mq.dead.mqtt-demo.>"),
        (dead_consumer(THEIRS), "mq.dead.mqtt-demo.>"),
    ):
        await refused(hasty.add_consumer("MQ_DEAD", config(durable, subject)))
    await refused(hasty.stream_info("MQ_DEAD"))
    await refused(hasty.get_msg("MQ_DEAD", 2, direct=True))
    await js.add_consumer("MQ_DEAD", config(name, "mq.dead.mqtt-demo.>"))
    subscription = await js.pull_subscribe_bind(name, "MQ_DEAD")
    assert [each.data for each in await subscription.fetch(1, timeout=20)] == [b"my dead letter"]
    await refused(subscription.fetch(1, timeout=0.3))
    other = await broker.other.jetstream(timeout=0.3).pull_subscribe_bind(name, "MQ_DEAD")
    await refused(other.fetch(1, timeout=0.3))


async def test_new_topics_and_backends_come_without_a_break(broker: Broker) -> None:
    await broker.weimq.jetstream().add_stream(name=log_stream(MINE, "new"), subjects=log_filter(MINE, "new"))
    js = broker.backend.jetstream(timeout=20)
    subscription = await js.pull_subscribe("", durable="app", stream=log_stream(MINE, "demo"))
    await (await subscription.fetch(1, timeout=20))[0].ack()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(subscription.fetch(1, timeout=30))
        made = Backend(instance=MINE, name="more", user="more", password="4567")
        broker.data.write_backends([*broker.data.read_backends()[1:], made])
        await _reload(broker.data, config_text(broker.data, {MINE: ["demo", "new"]}, None))
        for subject in ("demo", "new"):
            await broker.weimq.jetstream().publish(log_subject(MINE, subject), b"after")
        (message,) = await waiting
        assert message.data == b"after"
        await message.ack_sync(timeout=20)
    async with await nats.connect(nats_config.backend_url(broker.data, made)) as client:
        assert await read_one(client, log_stream(MINE, "new")) == b"after"
    assert broker.weimq.is_connected
    broker.data.write_backends([])
    await _reload(broker.data, config_text(broker.data, {MINE: ["demo", "new"]}, None))
    await is_refused(nats_config.backend_url(broker.data, made))


async def test_reloads_fail_no_management_call_of_a_service(broker: Broker) -> None:
    url = Secret(broker.data.read_text(broker.data.nats_url))
    async with jetstream.connected(url, name="test", readiness=Readiness()) as client:
        js = client.jetstream(timeout=20)
        bucket = await js.key_value("resources")
        is_over = False

        async def ask() -> None:
            while not is_over:
                await js.stream_info("MQ_IN")
                assert (await bucket.get("key")).value == b"secret"

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            for count in range(10):
                topics = ["demo", *(f"t{n}" for n in range(count))]
                await _reload(broker.data, config_text(broker.data, {MINE: topics}, None))
            is_over = True


async def test_first_backend_of_an_instance_made_at_run_time_can_publish(broker: Broker) -> None:
    made = Backend(instance="mqtt-new", name="app", user="new", password="89ab")
    broker.data.write_backends([*broker.data.read_backends()[1:], made])
    await _reload(broker.data, config_text(broker.data, {"mqtt-new": ["demo"]}, None))
    async with await nats.connect(nats_config.backend_url(broker.data, made)) as client:
        assert (await client.jetstream().publish(in_subject("mqtt-new", "demo"), b"")).stream == "MQ_IN"


async def is_refused(url: str) -> None:
    client = Client()
    with pytest.raises(REFUSALS):
        await client.connect(url, max_reconnect_attempts=0, allow_reconnect=False, connect_timeout=30)
    await client.close()


async def test_wrong_or_missing_password_is_refused(broker: Broker) -> None:
    await is_refused(broker.url("backend", "wrong"))
    await is_refused(broker.url("", "").replace(":@", ""))
