"""Looking for messages at the end of logs, alone and for the log writer, against a real NATS server."""

from __future__ import annotations

import asyncio
import random

import pytest
from nats.aio.client import Client

from services.common import log_tail
from services.common.log_tail import LogTails, Look
from services.common.runtime import background
from tests.support.nats import NatsServer, unique
from tests.unit.common.test_log_runs import RunReports, put_one, put_run
from tests.unit.common.test_log_writer import add_stream, connected, positions, until


async def fill(client: Client, name: str, total: int) -> None:
    """Store messages 0 to `total`, half of them known to JetStream."""
    for number in range(total):
        header = "Nats-Msg-Id" if number % 2 else "mqttMsgId"
        await client.publish(f"t.{name}.a", b"%d" % number, headers={header: f"x-{number}"})
    await client.flush()
    async with asyncio.timeout(30):
        while (await client.jetstream().stream_info(name)).state.messages < total:  # noqa: ASYNC110 - NATS is asked
            await asyncio.sleep(0.01)


async def find(tails: LogTails, last: int, *numbers: int, sent: int = 0, before: int = -1) -> dict[str, int] | None:
    answers: list[dict[str, int] | None] = []
    ids = {f"x-{number}" for number in numbers}
    tails.find(Look("s", last, ids, sent, before, answers.append))
    await until(lambda: len(answers) == 1)
    return answers[0]


@pytest.mark.asyncio
async def test_messages_are_found_where_they_may_be(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tail, "STEP_MESSAGES", 8)
    monkeypatch.setattr(log_tail, "MOST_MESSAGES", 64)
    monkeypatch.setattr(log_tail, "NEAR", 0)
    async with connected(nats_server.url) as client:
        await add_stream(client, "s")
        await fill(client, "s", 200)
        tails = LogTails(client, lambda lane: lane)
        async with background(tails.run()):
            assert await find(tails, 200, 199, 198, 190, 777, sent=8) == {"x-199": 200, "x-198": 199}
            assert await find(tails, 100, 99, 150, sent=50) == {"x-99": 100}  # what is behind is not looked at
            assert await find(tails, 3, *range(5), sent=10) == {f"x-{number}": number + 1 for number in range(3)}
            assert await find(tails, 0, 1, sent=3, before=0) == {}
            assert await find(tails, 200, 99, 37, 35, 199, sent=2, before=100) == {
                "x-99": 100,
                "x-37": 38,
                "x-199": 200,
            }
            assert await find(tails, 200, 98, before=100) == {"x-98": 99}  # remembered
            assert await find(tails, 200, 8, before=10) == {"x-8": 9}  # the log was made anew


@pytest.mark.asyncio
async def test_messages_of_the_process_before_are_looked_for_as_long_as_it_may_have_waited(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "STEP_MESSAGES", 8)
    monkeypatch.setattr(log_tail, "MOST_MS", -1)
    monkeypatch.setattr(log_tail, "NEAR", 0)
    async with connected(nats_server.url) as client:
        await add_stream(client, "s")
        await fill(client, "s", 100)
        tails = LogTails(client, lambda lane: lane)
        async with background(tails.run()):
            assert await find(tails, 100, 99, 80, before=100) == {"x-99": 100}


@pytest.mark.asyncio
async def test_a_stream_that_cannot_be_read_is_told(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.log_reader.BATCH_S", 0.3)
    async with connected(nats_url) as client:
        tails = LogTails(client, lambda lane: lane)
        async with background(tails.run()):
            assert await find(tails, 5, 1, sent=5) is None
            assert await find(tails, 5, 1, before=5) is None


@pytest.mark.asyncio
async def test_what_the_process_before_stored_is_not_stored_again(nats_server: NatsServer) -> None:
    """Nothing is lost and nothing comes twice, wherever the process before ended, and whatever fails on the way."""
    name, total = "s", 4_000
    chosen = random.Random(7)
    async with connected(nats_server.url) as client:
        await add_stream(client, name)
        for end in range(500, total + 1, 500):  # each process gets again what the one before has not reported
            before = RunReports(finds=True)
            writer = before.writer(client)
            start = end - 500
            async with background(writer.run()):
                for first in range(start, end, 10):
                    put_run(writer, name, first, 10)
                    if chosen.random() < 0.2:
                        await asyncio.sleep(0)
                await until(lambda before=before: len(before.stored) > 100)  # type: ignore[misc]
            await client.flush()  # NATS has what it sent
            after = RunReports(finds=True)
            async with connected(nats_server.url) as other:
                writer = after.writer(other)
                repeats = range(start + len(before.stored), end)
                async with background(writer.run()):
                    for number in repeats:
                        put_one(writer, name, number, may_repeat=True)
                    if end % 1_000 == 0:
                        await asyncio.to_thread(nats_server.restart)
                    await until(lambda writer=writer: not writer.backlog_messages)  # type: ignore[misc]
            assert after.order == [(name, number) for number in repeats]
            places = dict(await positions(client, name))
            assert [entry[1] for entry in after.stored] == [places[number] for number in repeats]
        found = await positions(client, name)
    assert [number for number, _ in found] == list(range(total))


@pytest.mark.asyncio
async def test_a_stream_that_is_deleted_while_repeats_are_looked_for_is_given_up(nats_url: str) -> None:
    name = unique("s")
    reports = RunReports(finds=True)
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client, is_gone=lambda _lane: True)
        async with background(writer.run()):
            put_one(writer, name, 0)
            await until(lambda: not writer.backlog_messages)
            await client.jetstream().delete_stream(name)
            for number in range(5):
                put_one(writer, name, number, may_repeat=True)
            await until(lambda: not writer.backlog_messages)
    assert [token for token, _ in reports.failed] == [(name, number) for number in range(5)]


@pytest.mark.asyncio
async def test_a_silent_server_is_asked_again_where_a_stream_ends(nats_server: NatsServer) -> None:
    reports = RunReports(finds=True)
    async with connected(nats_server.url) as client:
        await add_stream(client, "s")
        writer = reports.writer(client, ack_timeout_s=0.2)
        async with background(writer.run()):
            put_run(writer, "s", 0, 3)
            await until(lambda: not writer.backlog_messages)
            nats_server.pause()
            put_one(writer, "s", 2, may_repeat=True)
            put_one(writer, "s", 3, may_repeat=True)
            await until(lambda: writer.failures >= 2)
            nats_server.resume()
            await until(lambda: not writer.backlog_messages)
        assert [number for number, _ in await positions(client, "s")] == [0, 1, 2, 3]


@pytest.mark.asyncio
async def test_repeats_that_come_late_are_found_where_the_process_before_ended(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "NEAR", 8)
    name = unique("s")
    reports = RunReports(finds=True)
    async with connected(nats_url) as client:
        await add_stream(client, name)
        before = RunReports(finds=True).writer(client)
        async with background(before.run()):
            put_run(before, name, 0, 20)
            await until(lambda: not before.backlog_messages)
        writer = reports.writer(client)
        async with background(writer.run()):
            put_run(writer, name, 100, 100)  # one edge was faster
            await until(lambda: not writer.backlog_messages)
            for number in (15, 18, 19, 20):
                put_one(writer, name, number, may_repeat=True)
            await until(lambda: not writer.backlog_messages)
        assert [number for number, _ in await positions(client, name)] == [*range(20), *range(100, 200), 20]
    assert [sequence for _, sequence, _ in reports.stored[100:]] == [16, 19, 20, 121]


@pytest.mark.asyncio
@pytest.mark.parametrize("waits", [False, True], ids=["while others are looked for", "one after the other"])
async def test_repeats_come_in_parts(nats_url: str, waits: bool) -> None:
    """The oldest first, as edges send them."""
    name = unique("s")
    reports = RunReports(finds=True)
    async with connected(nats_url) as client:
        await add_stream(client, name)
        before = RunReports(finds=True).writer(client)
        async with background(before.run()):
            put_run(before, name, 0, 3_000)
            await until(lambda: not before.backlog_messages)
        writer = reports.writer(client)
        async with background(writer.run()):
            for number in range(3_010):
                put_one(writer, name, number, may_repeat=True)
                if number % 500 == 0 and waits:
                    await until(lambda: not writer.backlog_messages)
                elif number % 50 == 0:
                    await asyncio.sleep(0.002)
            await until(lambda: not writer.backlog_messages)
        assert [number for number, _ in await positions(client, name)] == list(range(3_010))
    assert [sequence for _, sequence, _ in reports.stored] == list(range(1, 3_011))


@pytest.mark.asyncio
async def test_two_copies_of_a_message_wait(nats_server: NatsServer) -> None:
    reports = RunReports(finds=True)
    async with connected(nats_server.url) as client:
        await add_stream(client, "s")
        writer = reports.writer(client, ack_timeout_s=0.2, window_messages=3)
        async with background(writer.run()):
            put_run(writer, "s", 0, 3)
            await until(lambda: not writer.backlog_messages)
            nats_server.pause()
            put_run(writer, "s", 3, 3)
            await until(lambda: writer.failures >= 1)
            put_run(writer, "s", 6, 10)
            for number in (*range(3, 16), *range(4, 16)):
                put_one(writer, "s", number, may_repeat=True)
            nats_server.resume()
            await until(lambda: not writer.backlog_messages)
        assert [number for number, _ in await positions(client, "s")] == list(range(16))
