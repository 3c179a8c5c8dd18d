"""Topic logs that are new, or deleted and made anew under their name, while persistent sessions read them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.common import log_reader, subjects
from services.common.log_reader import LogReader, StoredMessage
from services.session.router_link import RouterLink
from tests.contract.test_kept_receipts import deliver
from tests.contract.test_persistent_sessions import INSTANCE, Mesh, connected, mesh, numbered, subscribed, until
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio

LOG = subjects.log_stream(INSTANCE, "demo")
LOG_2 = subjects.log_stream(INSTANCE, "demo2")


async def test_a_log_that_is_made_anew_is_read_from_its_beginning(mesh: Mesh) -> None:
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo/#")
        await mesh.publish("demo/a", *numbered(5))
        await until(lambda: len(edge.payloads(channel_id)) == 5)
        edge.disconnect(channel_id)
        await until(lambda: edge.is_confirmed)
        await mesh.publish("demo/a", b"lost with its log")
    async with (
        mesh.nats() as client,
        mesh.serving(),
        mesh.edge() as edge,
    ):  # what it read from the log, it takes for certain
        await client.jetstream().delete_stream(LOG)
        await mesh.create_log()
        await mesh.publish("demo/a", *numbered(5, 10))
        channel_id = await connected(edge)
        await until(lambda: edge.payloads(channel_id)[-5:] == numbered(5, 10))


async def test_a_log_that_is_made_anew_while_it_is_read_is_read_from_its_beginning(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LogReader.read
    log = LOG
    remade: list[str] = []

    async def late(reader: LogReader, stream: str, after: int) -> list[StoredMessage]:
        """Read from the second stream, whose messages came live and were left to this reading."""
        if stream == log and not remade:
            remade.append(log)
            await client.jetstream().delete_stream(log)
            await mesh.create_log()
            await mesh.publish("demo/a", *numbered(5, 10))
        return await read(reader, stream, after)

    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo/#")
        await mesh.publish("demo/a", *numbered(5))
        await until(lambda: len(edge.payloads(channel_id)) == 5)
    async with mesh.nats() as client:
        monkeypatch.setattr(LogReader, "read", late)
        async with mesh.serving(), mesh.edge() as edge:
            channel_id = await connected(edge)
            await until(lambda: edge.payloads(channel_id)[-5:] == numbered(5, 10))
            assert remade


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
async def test_a_log_that_came_live_and_is_made_anew_is_read_from_its_beginning(
    mesh: Mesh, delay_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Client.request

    async def late(client: Client, subject: str, *args: Any, **kwargs: Any) -> Msg:
        """Ask NATS about streams with some delay."""
        if subject.startswith(("$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO")):
            await asyncio.sleep(delay_s)
        return await request(client, subject, *args, **kwargs)

    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo2/#")
        monkeypatch.setattr(Client, "request", late)
        await mesh.create_log("demo2")  # the shard has never read it
        await mesh.publish("demo2/a", *numbered(5))
        await until(lambda: len(edge.payloads(channel_id)) == 5)
        await client.jetstream().delete_stream(LOG_2)
        await mesh.create_log("demo2")
        await mesh.publish("demo2/a", *numbered(5, 5))  # under the sequences of the first ones
        await until(lambda: edge.payloads(channel_id)[-5:] == numbered(5, 5))


@pytest.mark.parametrize("is_asked_late", [False, True])
async def test_a_log_that_is_deleted_before_it_was_read_is_read_when_it_is_made_again(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, *, is_asked_late: bool
) -> None:
    asked, deleted = asyncio.Event(), asyncio.Event()
    request = Client.request

    async def late(client: Client, subject: str, *args: Any, **kwargs: Any) -> Msg:
        """Ask NATS about streams when they are gone."""
        if subject == f"$JS.API.STREAM.INFO.{LOG_2}":
            asked.set()
            await deleted.wait()
        return await request(client, subject, *args, **kwargs)

    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo2/#")
        monkeypatch.setattr(Client, "request", late)
        await mesh.create_log("demo2")
        await mesh.publish("demo2/a", *numbered(5))
        await asked.wait()
        await client.jetstream().delete_stream(LOG_2)
        if not is_asked_late:
            deleted.set()
        await mesh.create_log("demo2")
        deleted.set()
        await mesh.publish("demo2/a", *numbered(3, 5))
        await until(lambda: edge.payloads(channel_id)[-3:] == numbered(3, 5))
        await mesh.publish("demo2/a", *numbered(5, 8))
        await until(lambda: edge.payloads(channel_id)[-8:] == numbered(8, 5))


async def test_what_was_left_of_the_old_stream_hides_nothing_of_the_new_one(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
    request = Client.request

    async def late(client: Client, subject: str, *args: Any, **kwargs: Any) -> Msg:
        if subject != f"$JS.API.STREAM.INFO.{LOG_2}":
            return await request(client, subject, *args, **kwargs)
        asked.set()
        await go.wait()
        answer = await request(client, subject, *args, **kwargs)
        answered.set()
        return answer

    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo2/#")
        monkeypatch.setattr(Client, "request", late)
        await mesh.create_log("demo2")
        await mesh.publish("demo2/a", *numbered(5))
        await asked.wait()
        await mesh.publish("demo2/a", *numbered(5, 5))  # left to the reading
        await client.jetstream().delete_stream(LOG_2)
        await mesh.create_log("demo2")
        go.set()
        await answered.wait()
        await mesh.publish("demo2/a", *numbered(3, 100))
        await until(lambda: set(edge.payloads(channel_id)) >= set(numbered(3, 100)))


async def test_what_comes_before_the_answer_that_it_is_another_stream_is_read(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, go = asyncio.Event(), asyncio.Event()
    request = Client.request

    async def late(client: Client, subject: str, *args: Any, **kwargs: Any) -> Msg:
        answer = await request(client, subject, *args, **kwargs)
        if subject == f"$JS.API.STREAM.INFO.{LOG}":
            answered.set()
            await go.wait()
        return answer

    monkeypatch.setattr(log_reader, "BATCH_MESSAGES", 1)
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo/#")
        await mesh.publish("demo/a", *numbered(5))
        await until(lambda: len(edge.payloads(channel_id)) == 5)
        await client.jetstream().delete_stream(LOG)
        await mesh.create_log()
        monkeypatch.setattr(Client, "request", late)
        await mesh.publish("demo/a", b"100")
        await answered.wait()
        await mesh.publish("demo/a", b"101", b"102")
        go.set()
        await until(lambda: set(edge.payloads(channel_id)) >= set(numbered(3, 100)))


async def test_the_first_report_of_a_new_log_need_not_be_its_lowest(mesh: Mesh) -> None:
    """What failed at first is stored after what was behind it, and reported before that."""
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo/#")
        await mesh.publish("demo/a", b"the logs were listed")
        await until(lambda: edge.payloads(channel_id))
        await mesh.create_log("demo2")
        mesh.number = 1000
        await mesh.publish("demo2/a", b"m2", b"m3")  # nobody wants them yet: as if they were not reported
        await subscribed(edge, channel_id, "demo2/#")
        mesh.number = 2000
        await mesh.publish("demo2/a", b"m1")
        mesh.number = 1000
        await mesh.publish("demo2/a", b"m2", b"m3")  # the same message ids: reported with sequences 1 and 2
        await until(lambda: set(edge.payloads(channel_id)) >= {b"m1", b"m2", b"m3"})


@pytest.mark.parametrize("bad", ["demo", "demo2"])
async def test_a_stream_that_tells_nothing_holds_up_no_other(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    asked = asyncio.Event()
    request = Client.request

    async def late(client: Client, subject: str, *args: Any, **kwargs: Any) -> Msg:
        if subject == f"$JS.API.STREAM.INFO.{subjects.log_stream(INSTANCE, bad)}":
            asked.set()
            raise TimeoutError
        return await request(client, subject, *args, **kwargs)

    good = {"demo": "demo2", "demo2": "demo"}[bad]
    async with mesh.nats() as client:
        await client.jetstream().delete_stream(LOG)
        async with mesh.serving(), mesh.edge() as edge:
            channel_id = await connected(edge)
            await subscribed(edge, channel_id, "+/#")
            monkeypatch.setattr(Client, "request", late)
            await mesh.create_log("demo")
            await mesh.create_log("demo2")
            await mesh.publish(f"{bad}/a", b"bad")
            await asked.wait()
            await mesh.publish(f"{good}/a", b"good")
            await until(lambda: edge.payloads(channel_id) == [b"good"])


async def test_a_new_log_waits_for_no_other(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go = asyncio.Event(), asyncio.Event()
    read = LogReader.read

    async def late(reader: LogReader, stream: str, after: int) -> list[StoredMessage]:
        if stream == LOG:  # a long one
            reading.set()
            await go.wait()
        return await read(reader, stream, after)

    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo2/#")
        await subscribed(edge, channel_id, "demo/#")
        edge.disconnect(channel_id)
        await until(lambda: edge.is_confirmed)
    await mesh.publish("demo/a", b"1")
    monkeypatch.setattr(LogReader, "read", late)
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await reading.wait()
        await mesh.create_log("demo2")
        await mesh.publish("demo2/a", b"new")
        await until(lambda: edge.payloads(channel_id) == [b"new"])
        go.set()
        await until(lambda: edge.payloads(channel_id) == [b"new", b"1"])


async def test_receipts_of_a_new_log_that_is_read_before_its_messages_come_live(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = RouterLink._take

    def late(link: RouterLink, frame: router_pb2.LinkResponse) -> None:
        if frame.HasField("deliveries"):
            asyncio.get_running_loop().call_later(0.02, take, link, frame)
        else:
            take(link, frame)

    monkeypatch.setattr(RouterLink, "_take", late)
    async with mesh.serving(), mesh.edge() as edge:
        await connected(edge)
        await mesh.create_log("demo2")
        waiting: list[asyncio.Task[str]] = []
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                waiting.append(group.create_task(deliver(mesh, number, topic="demo2")))
                await asyncio.sleep(0.002)  # so that some come while the log is read, whenever that is
        assert {each.result() for each in waiting} == {"ACKNOWLEDGED"}


async def test_a_log_that_is_deleted_before_its_turn_is_read_when_it_is_made_again(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, request = LogReader.read, Client.request
    is_deleted = False
    listed = asyncio.Event()

    async def deleting(reader: LogReader, stream: str, after: int) -> list[StoredMessage]:
        nonlocal is_deleted
        if stream == LOG and not is_deleted:
            await client.jetstream().delete_stream(LOG)
            is_deleted = True
        return await read(reader, stream, after)

    async def noting(nats: Client, subject: str, *args: Any, **kwargs: Any) -> Msg:
        answer = await request(nats, subject, *args, **kwargs)
        if is_deleted and subject == "$JS.API.STREAM.LIST":
            listed.set()
        return answer

    monkeypatch.setattr(log_reader, "BATCH_S", 0.5)
    async with mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await subscribed(edge, channel_id, "demo/#")
        edge.disconnect(channel_id)
        await until(lambda: edge.is_confirmed)
    await mesh.publish("demo/a", b"deleted with its log")
    monkeypatch.setattr(LogReader, "read", deleting)
    monkeypatch.setattr(Client, "request", noting)
    async with mesh.nats() as client, mesh.serving(), mesh.edge() as edge:
        channel_id = await connected(edge)
        await listed.wait()  # it is not among those that are read now
        await mesh.create_log()
        await mesh.publish("demo/a", *numbered(3))
        await until(lambda: edge.payloads(channel_id) == numbered(3))
