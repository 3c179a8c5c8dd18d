"""Runs of messages that `LogWriter` writes: alone, and against a real NATS server through its failures."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js.api import DiscardPolicy
from typing_extensions import override

from services.common.log_lanes import DOUBTFUL_MESSAGES, REFUSED, Lane
from services.common.log_runs import Part, RunMessage
from services.common.log_wire import header_lines
from services.common.log_writer import LogWriter
from services.common.runtime import background, first_of
from tests.support.nats import NatsServer, unique
from tests.support.nats_cluster import NatsCluster
from tests.unit.common.test_log_writer import Reports, add_stream, connected, fill_and_drain, positions, until

LINES = header_lines({"clientId": "c"})
DIGITS = 6


class Run:
    """Token of a run."""

    def __init__(self, stream: str, first: int, count: int) -> None:
        self.stream = stream
        self.first = first
        self.count = count


class RunReports(Reports):
    """What a writer told of messages and runs, in messages."""

    def __init__(self, *, finds: bool) -> None:
        super().__init__(is_ours=True, finds=finds)
        self.whole = 0
        self.parts = 0

    @override
    def on_stored(self, token: object, sequence: int, is_duplicate: bool) -> None:
        for place, each in enumerate(self.messages(token)):
            super().on_stored(each, sequence + place, is_duplicate)

    @override
    def on_failed(self, token: object, reason: str) -> None:
        for each in self.messages(token):
            super().on_failed(each, reason)

    def messages(self, token: object) -> list[object]:
        if isinstance(token, Part):
            run = token.token
            assert isinstance(run, Run)
            self.parts += 1
            return [(run.stream, run.first + token.offset)]
        if isinstance(token, Run):
            self.whole += 1
            return [(token.stream, token.first + n) for n in range(token.count)]
        return [token]


@pytest.fixture(params=[False, True], ids=["indexed", "found"])
def reports(request: pytest.FixtureRequest) -> RunReports:
    return RunReports(finds=request.param)


def put_run(writer: LogWriter, stream: str, first: int, count: int, *, payload_bytes: int = DIGITS) -> None:
    """Write a run of messages that are their numbers."""
    packets = b"".join(b"head%b" % (b"%d" % n).rjust(payload_bytes, b"0") for n in range(first, first + count))
    token = Run(stream, first, count)
    writer.write_run(f"t.{stream}.a", packets, count, payload_bytes, f"{stream}-", first, LINES, token)


def put_one(writer: LogWriter, stream: str, number: int, *, may_repeat: bool = False) -> None:
    payload = b"%06d" % number
    writer.write_lines(f"t.{stream}.b", payload, f"{stream}-{number}", LINES, (stream, number), may_repeat, True)


async def put_mixed(writer: LogWriter, stream: str, total: int) -> None:
    """Write messages 0 to `total` in runs and alone, a few at a time."""
    chosen = random.Random(total)
    number = 0
    while number < total:
        count = min(chosen.choice((0, 1, 3, 16, 300)), total - number)
        if count:
            put_run(writer, stream, number, count)
        else:
            put_one(writer, stream, number)
        number += max(count, 1)
        if chosen.random() < 0.1:
            await asyncio.sleep(0)


async def check(client: Client, name: str, reports: RunReports, total: int) -> None:
    """Everything is in the log once, and was reported in the order of writing with its place."""
    places = dict(await positions(client, name))
    assert len(places) == total
    assert [entry[:2] for entry in reports.stored] == [((name, number), places[number]) for number in range(total)]
    assert not reports.failed


@given(
    first=st.integers(0, 1200),
    count=st.integers(1, 20),
    payload_bytes=st.integers(0, 5),
    is_ordered=st.booleans(),
    reply=st.sampled_from([b"", b"inbox.7 "]),
    follows=st.sampled_from(["", "before-1"]),
    is_indexed=st.booleans(),
)
def test_commands_of_a_run_are_those_of_its_messages(
    first: int, count: int, payload_bytes: int, is_ordered: bool, reply: bytes, follows: str, is_indexed: bool
) -> None:
    if not is_ordered:
        follows = ""
    lane = Lane("t.s", is_ordered=is_ordered, is_clustered=False, is_ours=True, end=1, stream="", begin=0)
    packets = b"".join(b"head%b" % bytes([n] * payload_bytes) for n in range(count))
    run = RunMessage(
        lane, 40 + count, "x\n-", first, b"HPUB t.s.a ", LINES, packets, count, payload_bytes, "token", is_indexed
    )
    found: list[bytes] = []
    run.add_commands(reply, follows, is_ordered, found)
    messages = run.split()
    expected: list[bytes] = []
    for message in messages:
        message.add_commands(reply if message is messages[-1] else b"", follows, is_ordered, expected)
        if is_ordered:
            follows = message.message_id
    assert b"".join(found) == b"".join(expected)
    assert [message.number for message in messages] == list(range(41, 41 + count))
    assert sum(message.size for message in messages) == run.size
    assert messages[-1].message_id == run.message_id == f"x\n-{first + count - 1}"
    assert [message.payload for message in messages] == [bytes([n] * payload_bytes) for n in range(count)]


def test_the_answer_to_a_run_is_that_to_its_last_message() -> None:
    lane = Lane("t.s", is_ordered=False, is_clustered=False, is_ours=True, end=1, stream="", begin=0)
    run = RunMessage(lane, 3, "x-", 1, b"HPUB t.s.a ", LINES, b"123", 3, 1, "token", True)
    run.sequence, run.failure = REFUSED, "too large"
    assert [(part.sequence, part.failure) for part in run.split()] == [(0, ""), (0, ""), (REFUSED, "too large")]
    run.sequence, run.is_duplicate = 9, True
    assert [(part.sequence, part.is_duplicate) for part in run.split()] == [(0, False), (0, False), (9, True)]


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.asyncio
async def test_runs_are_stored_and_reported_in_the_order_of_writing(
    nats_url: str, is_ordered: bool, reports: RunReports
) -> None:
    name = unique("s")
    total = 5_000
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client, window_messages=500, is_ordered=lambda _lane: is_ordered)
        async with background(writer.run()):
            put_one(writer, name, total)  # after which the end of the stream is known
            await until(lambda: not writer.backlog_messages)
            reports.stored.clear()
            before = client.stats["in_msgs"]
            await put_mixed(writer, name, total)
            await until(lambda: not writer.backlog_messages)
            assert client.stats["in_msgs"] - before < total / 10
        assert not writer.failures
        assert not reports.parts  # they went as one thing
        assert writer.stored_messages == total + 1
        assert writer.backlog_bytes == 0
        found = await positions(client, name)
        assert found == [(total, 1), *((number, number + 2) for number in range(total))]
        assert [entry[:2] for entry in reports.stored] == [((name, number), number + 2) for number in range(total)]


@pytest.mark.asyncio
async def test_every_message_of_a_run_has_its_own_id(nats_url: str, reports: RunReports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client)
        async with background(writer.run()):
            put_one(writer, name, 0)
            for first in (1, 8, 98):  # also over a power of ten
                put_run(writer, name, first, 7 if first == 1 else 5)
            await until(lambda: not writer.backlog_messages)
        consumer = await client.jetstream().subscribe(f"t.{name}.>", stream=name, ordered_consumer=True)
        messages = [await consumer.next_msg(timeout=10) for _ in range(18)]
    for message in messages:
        name_of_id = "mqttMsgId" if reports.finds else "Nats-Msg-Id"
        assert message.headers == {name_of_id: f"{name}-{int(message.data)}", "clientId": "c"}
    assert [int(message.data) for message in messages] == [*range(13), *range(98, 103)]


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.asyncio
async def test_runs_survive_a_server_that_is_killed_in_the_middle(
    nats_server: NatsServer, is_ordered: bool, reports: RunReports
) -> None:
    total = 20_000
    async with connected(nats_server.url) as client:
        await add_stream(client, "s")
        writer = reports.writer(client, is_ordered=lambda _lane: is_ordered)
        async with background(writer.run(), put_mixed(writer, "s", total)):
            for part in (1, 2, 3):
                await until(lambda part=part: len(reports.stored) > part * total // 5)  # type: ignore[misc]
                await asyncio.to_thread(nats_server.restart)
            await until(lambda: len(reports.stored) == total)
        assert writer.failures
        await check(client, "s", reports, total)
        if is_ordered:
            assert [number for number, _ in await positions(client, "s")] == list(range(total))


@pytest.mark.asyncio
async def test_runs_without_an_acknowledgement_are_written_again(nats_server: NatsServer, reports: RunReports) -> None:
    async with connected(nats_server.url) as client:
        await add_stream(client, "s")
        writer = reports.writer(client, ack_timeout_s=0.2)
        async with background(writer.run()):
            put_run(writer, "s", 0, 10)
            await until(lambda: len(reports.stored) == 10)
            nats_server.pause()
            for first in range(10, 500, 10):
                put_run(writer, "s", first, 10)
            await until(lambda: writer.failures >= 2)
            nats_server.resume()
            await until(lambda: len(reports.stored) == 500)
        assert reports.parts
        await check(client, "s", reports, 500)


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.asyncio
async def test_nothing_is_reported_that_a_stream_failed_in_the_middle_of_a_run(
    nats_url: str, is_ordered: bool, reports: RunReports
) -> None:
    name = unique("s")
    total = 2_000
    async with connected(nats_url) as client:
        await add_stream(client, name, discard=DiscardPolicy.NEW, max_msgs=10)
        writer = reports.writer(client, is_ordered=lambda _lane: is_ordered)
        await fill_and_drain(client, name, reports, writer, total, produce=put_mixed)
        assert writer.failures
        await check(client, name, reports, total)
        if is_ordered:
            assert [number for number, _ in await positions(client, name)] == list(range(total))


@pytest.mark.asyncio
async def test_messages_of_runs_that_were_stored_before_are_reported_where_they_are(nats_url: str) -> None:
    name = unique("s")
    reports = RunReports(finds=False)
    async with connected(nats_url) as client:
        await add_stream(client, name)
        for number in (20, 3, 50):
            headers = {"Nats-Msg-Id": f"{name}-{number}"}
            await client.jetstream().publish(f"t.{name}.0", b"%d" % number, headers=headers)
        writer = reports.writer(client)
        async with background(writer.run()):
            for first in range(0, 200, 20):
                put_run(writer, name, first, 20)
            await until(lambda: not writer.backlog_messages)
        assert reports.parts
        assert sum(is_duplicate for _, _, is_duplicate in reports.stored) >= 3
        await check(client, name, reports, 200)


@pytest.mark.asyncio
async def test_sequences_of_runs_are_right_when_others_write_all_the_same(nats_url: str, reports: RunReports) -> None:
    name = unique("s")
    total = 3_000
    async with connected(nats_url) as client, connected(nats_url) as other:
        await add_stream(client, name)
        writer = reports.writer(client, window_messages=200)

        async def disturb() -> None:
            for number in range(10_000, 10_100):
                await other.jetstream().publish(f"t.{name}.x", b"%d" % number)

        async with background(writer.run()):
            await put_mixed(writer, name, total)
            await disturb()
            await until(lambda: not writer.backlog_messages)
        places = dict(await positions(client, name))
        assert [entry[:2] for entry in reports.stored] == [((name, number), places[number]) for number in range(total)]
        assert len(places) == total + 100


@pytest.mark.asyncio
async def test_runs_go_together_again_after_a_failure(nats_url: str, reports: RunReports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        writer = reports.writer(client)
        async with background(writer.run()):
            put_run(writer, name, 0, 50)
            await until(lambda: writer.failures > 0)  # no such stream
            await add_stream(client, name)
            await until(lambda: not writer.backlog_messages)
            assert not reports.whole
            for first in range(50, 50 + 2 * DOUBTFUL_MESSAGES, 50):
                put_run(writer, name, first, 50)
            await until(lambda: not writer.backlog_messages)
        assert reports.whole
        await check(client, name, reports, len(reports.stored))


@pytest.mark.asyncio
async def test_messages_of_a_run_that_cannot_be_stored_are_refused_in_their_turn(
    nats_url: str, reports: RunReports
) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name, max_msg_size=1000)
        writer = reports.writer(client)
        async with background(writer.run()):
            put_one(writer, name, 0)
            put_run(writer, name, 1, 3, payload_bytes=client.max_payload)  # larger than the server takes
            put_run(writer, name, 4, 2)
            put_run(writer, name, 6, 3, payload_bytes=2000)  # larger than the stream takes
            put_run(writer, name, 9, 2)
            await until(lambda: not writer.backlog_messages)
        assert reports.order == [(name, number) for number in range(11)]
        assert [token for token, _ in reports.failed] == [(name, number) for number in (1, 2, 3, 6, 7, 8)]
        assert [sequence for _, sequence, _ in reports.stored] == [1, 2, 3, 4, 5]
        assert not writer.backlog_bytes


@pytest.mark.asyncio
async def test_run_of_messages_at_the_limit_is_stored_as_far_as_its_numbers_are_short(
    nats_url: str, reports: RunReports
) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client)
        async with background(writer.run()):
            put_one(writer, name, 0)
            name_of_id = "mqttMsgId" if reports.finds else "Nats-Msg-Id"
            headers = len(f"NATS/1.0\r\n{name_of_id}: {name}-9\r\n\r\n") + len(LINES)
            put_run(writer, name, 8, 4, payload_bytes=client.max_payload - headers)
            await until(lambda: not writer.backlog_messages)
        assert reports.order == [(name, number) for number in (0, 8, 9, 10, 11)]
        assert [token for token, _ in reports.failed] == [(name, 10), (name, 11)]


@pytest.mark.asyncio
async def test_runs_of_a_stream_that_is_gone_are_reported_as_failed(nats_url: str, reports: RunReports) -> None:
    gone, other = unique("gone"), unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, other)
        writer = reports.writer(client, is_gone=lambda lane: lane == f"t.{gone}")
        async with background(writer.run()):
            for first in range(0, 100, 10):
                put_run(writer, gone, first, 10)
                put_run(writer, other, first, 10)
            await until(lambda: not writer.backlog_messages)
        assert [token for token, _, _ in reports.stored] == [(other, number) for number in range(100)]
        assert reports.failed == [((gone, number), "no responders") for number in range(100)]
        assert not writer.backlog_bytes


@pytest.mark.timeout(180)
@pytest.mark.asyncio
async def test_ordered_runs_keep_the_order_in_a_cluster_that_refuses_messages(
    nats_cluster: NatsCluster, reports: RunReports
) -> None:
    total = 500
    async with connected(nats_cluster.url) as client:
        await add_stream(client, "s", discard=DiscardPolicy.NEW, max_msgs=10, num_replicas=3)
        writer = reports.writer(client, is_ordered=lambda _lane: True)
        await fill_and_drain(client, "s", reports, writer, total, replicas=3, produce=put_mixed)
        assert [number for number, _ in await positions(client, "s")] == list(range(total))
        assert reports.order == [("s", number) for number in range(total)]


@pytest.mark.asyncio
async def test_much_is_sent_while_more_is_written(nats_url: str, reports: RunReports) -> None:
    name = unique("s")
    async with connected(nats_url) as client, connected(nats_url) as other:
        await add_stream(client, name)
        writer = reports.writer(client)
        put_one(writer, name, 0)
        writer.push()
        async with background(writer.run()):
            await until(lambda: not writer.backlog_messages)
            for first in range(1, 1_001, 10):
                put_run(writer, name, first, 10)
                writer.push()
            assert writer._flight_messages > 500  # within one turn of the loop
            await until(lambda: not writer.backlog_messages)
        for number in range(1_001, 2_001):  # nobody takes answers any more
            put_one(writer, name, number)
            writer.push()
        assert (await other.jetstream().stream_info(name)).state.messages == 1_001
        await check(client, name, reports, 1_001)


@pytest.mark.asyncio
async def test_what_is_written_by_reports_may_be_pushed(nats_url: str) -> None:
    name = unique("s")
    total = 3_000
    seen: list[object] = []

    def stored(token: object, _sequence: int, _is_duplicate: bool) -> None:
        seen.append(token)
        if len(seen) <= total - 3_00:
            put_one(writer, name, 300 + len(seen) - 1)
            writer.push()

    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = LogWriter(client, stored=stored, stream_tokens=2, is_ours=lambda _lane: True)
        async with background(writer.run()):
            for number in range(300):
                put_one(writer, name, number)
                writer.push()
            await until(lambda: len(seen) == total)
        assert seen == [(name, number) for number in range(total)]
        assert [number for number, _ in await positions(client, name)] == list(range(total))


@pytest.mark.asyncio
async def test_error_of_a_callback_while_much_is_sent_ends_the_pump(nats_url: str) -> None:
    name = unique("s")

    def failed(_token: object, _reason: str) -> None:
        raise RuntimeError("a bug")

    def stored(_token: object, _sequence: int, _is_duplicate: bool) -> None:
        pass

    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = LogWriter(client, stored=stored, failed=failed, stream_tokens=2, is_ours=lambda _lane: True)

        async def write() -> None:
            put_one(writer, name, 0)
            await until(lambda: not writer.backlog_messages)
            put_run(writer, name, 1, 2, payload_bytes=client.max_payload)  # is refused at once
            for number in range(3, 500):
                put_one(writer, name, number)
                writer.push()
            await asyncio.Event().wait()

        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match="a bug"):
                await first_of(writer.run(), write())
