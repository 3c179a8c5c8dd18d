"""`LogWriter` against a real NATS server, through its failures."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, StreamConfig
from nats.js.errors import BadRequestError

from services.common import jetstream
from services.common.log_lanes import MAX_CONTROL_LINE
from services.common.log_tail import LogTails
from services.common.log_wire import header_lines
from services.common.log_writer import LogWriter
from services.common.readiness import Readiness
from services.common.runtime import background, first_of
from services.common.settings import Secret
from tests.support.nats import NatsServer, unique
from tests.support.nats_cluster import NatsCluster


async def until(condition: Callable[[], bool], deadline_s: float = 50) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


NO_PEERS = 10005
"""JetStream's answer while a server of the cluster is late on a busy machine."""


def connected(url: str) -> AbstractAsyncContextManager[Client]:
    return jetstream.connected(Secret(url), name="test", readiness=Readiness("nats"))


async def add_stream(client: Client, name: str, **options: object) -> None:
    options = {"duplicate_window": 120, "allow_direct": True, **options}
    config = StreamConfig(name=name, subjects=[f"t.{name}", f"t.{name}.>"], **options)  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        while True:
            try:
                await client.jetstream().add_stream(config)
            except BadRequestError as error:
                if error.err_code != NO_PEERS:
                    raise
                await asyncio.sleep(0.1)
            else:
                return


async def read(client: Client, name: str, count: int) -> list[str]:
    """Return the payloads of a stream, in order."""
    js = client.jetstream()
    state = (await js.stream_info(name)).state
    assert state.messages == count
    if not count:
        return []
    consumer = await js.subscribe(f"t.{name}.>", stream=name, ordered_consumer=True)
    texts = [(await consumer.next_msg(timeout=10)).data.decode() for _ in range(count)]
    await consumer.unsubscribe()
    return texts


class Reports:
    """What a writer told, and how it is made.

    Args:
        is_ours: whether nobody else writes to the streams, so that messages go in groups.
        finds: whether repeats are looked for in them, so that JetStream does not know their ids.
    """

    def __init__(self, *, is_ours: bool, finds: bool = False) -> None:
        self.is_ours = is_ours
        self.finds = finds
        self.stored: list[tuple[object, int, bool]] = []
        self.failed: list[tuple[object, str]] = []
        self.order: list[object] = []

    def on_stored(self, token: object, sequence: int, is_duplicate: bool) -> None:
        self.stored.append((token, sequence, is_duplicate))
        self.order.append(token)

    def on_failed(self, token: object, reason: str) -> None:
        self.failed.append((token, reason))
        self.order.append(token)

    def writer(self, client: Client, **options: object) -> LogWriter:
        tails = LogTails(client, lambda lane: lane.removeprefix("t.")) if self.finds else None
        options = {"stream_tokens": 2, "is_ours": lambda _lane: self.is_ours, "tails": tails, **options}
        return LogWriter(client, stored=self.on_stored, failed=self.on_failed, **options)  # type: ignore[arg-type]


@pytest.fixture(params=["one by one", "groups", "found"])
def reports(request: pytest.FixtureRequest) -> Reports:
    return Reports(is_ours=request.param != "one by one", finds=request.param == "found")


@pytest.fixture(params=[False, True], ids=["indexed", "found"])
def ours(request: pytest.FixtureRequest) -> Reports:
    return Reports(is_ours=True, finds=request.param)


def put(writer: LogWriter, stream: str, number: int, *, may_repeat: bool = False) -> None:
    writer.write_lines(
        f"t.{stream}.{number % 7}",
        b"%d" % number,
        f"{stream}-{number}",
        header_lines({"clientId": "c"}),
        (stream, number),
        may_repeat,
        True,
    )


@pytest.mark.asyncio
async def test_messages_are_stored_and_reported_in_the_order_of_writing(nats_url: str, reports: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client, window_messages=100)
        async with background(writer.run()):
            for number in range(3000):
                put(writer, name, number)
            assert writer.backlog_messages == 3000
            assert writer.backlog_bytes > 3000 * 50
            await until(lambda: not writer.backlog_messages)
        assert reports.stored == [((name, number), number + 1, False) for number in range(3000)]
        assert await read(client, name, 3000) == [str(number) for number in range(3000)]
        assert writer.backlog_bytes == 0
        assert writer.failures == 0


@pytest.mark.asyncio
async def test_stream_that_is_made_while_its_messages_wait_has_them_in_order(nats_url: str, reports: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        writer = reports.writer(client)
        async with background(writer.run()):
            writer.probe(f"t.{name}.0")
            put(writer, name, 0)
            put(writer, name, 1)
            await until(lambda: writer.failures > 0)  # no such stream
            await add_stream(client, name)
            for number in range(2, 2000):
                put(writer, name, number)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            await until(lambda: not writer.backlog_messages)
        assert reports.stored == [((name, number), number + 1, False) for number in range(2000)]


@pytest.mark.asyncio
async def test_server_killed_in_the_middle_everything_is_stored_once_and_in_order(
    nats_server: NatsServer, reports: Reports
) -> None:
    names = ["one", "two"]
    total = 20_000
    async with connected(nats_server.url) as client:
        for name in names:
            await add_stream(client, name)
        writer = reports.writer(client)

        async def produce() -> None:
            for number in range(total):
                put(writer, names[number % 2], number)
                if number % 100 == 99:
                    await asyncio.sleep(0)

        async with background(writer.run(), produce()):
            for part in (1, 2, 3):
                await until(lambda part=part: len(reports.stored) > part * total // 5)  # type: ignore[misc]
                await asyncio.to_thread(nats_server.restart)
            await until(lambda: len(reports.stored) == total)
        assert writer.failures
        for index, name in enumerate(names):
            expected = list(range(index, total, 2))
            told = [entry for entry in reports.stored if entry[0][0] == name]  # type: ignore[index]
            assert [entry[0] for entry in told] == [(name, number) for number in expected]
            assert [entry[1] for entry in told] == list(range(1, len(expected) + 1))
            assert await read(client, name, len(expected)) == [str(number) for number in expected]


@pytest.mark.asyncio
async def test_silent_server_is_written_to_again(nats_server: NatsServer, reports: Reports) -> None:
    async with connected(nats_server.url) as client:
        await add_stream(client, "one")
        writer = reports.writer(client, ack_timeout_s=0.2)
        async with background(writer.run()):
            put(writer, "one", 0)
            await until(lambda: len(reports.stored) == 1)
            nats_server.pause()
            for number in range(1, 500):
                put(writer, "one", number)
            await until(lambda: writer.failures >= 2)
            nats_server.resume()
            await until(lambda: len(reports.stored) == 500)
        assert [entry[:2] for entry in reports.stored] == [(("one", number), number + 1) for number in range(500)]
        assert await read(client, "one", 500) == [str(number) for number in range(500)]


@pytest.mark.asyncio
async def test_missing_stream_holds_up_only_its_own_messages(nats_url: str, reports: Reports) -> None:
    present, missing = unique("s"), unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, present)
        writer = reports.writer(client)
        async with background(writer.run()):
            for number in range(1000):
                put(writer, missing, number)
            await until(lambda: writer.failures >= 2)
            put(writer, present, 0)
            await until(lambda: len(reports.stored) == 1)
            await add_stream(client, missing)
            await until(lambda: len(reports.stored) == 1001)
        assert reports.order == [(present, 0), *((missing, number) for number in range(1000))]
        assert await read(client, missing, 1000) == [str(number) for number in range(1000)]


@pytest.mark.asyncio
async def test_message_that_cannot_be_stored_is_refused_in_its_turn(nats_url: str, reports: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name, max_msg_size=1000)
        writer = reports.writer(client)
        async with background(writer.run()):
            put(writer, name, 0)
            writer.write(f"t.{name}.a", bytes(client.max_payload), {}, "larger than the server takes")
            writer.write(f"t.{name}.a", bytes(2000), {}, "larger than the stream takes")
            writer.write(f"t.{name}.{'a' * MAX_CONTROL_LINE}", b"", {}, "subject too long")
            writer.write(f"t.{name}.a", b"", {"clientId": "c" * 70_000}, "header too long")
            put(writer, name, 1)
            await until(lambda: not writer.backlog_messages)
        assert reports.order == [
            (name, 0),
            "larger than the server takes",
            "larger than the stream takes",
            "subject too long",
            "header too long",
            (name, 1),
        ]
        assert [entry[1] for entry in reports.stored] == [1, 2]
        assert len(reports.failed) == 4


@pytest.mark.asyncio
async def test_repeated_message_id_is_reported_as_duplicate(nats_url: str, reports: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client)
        async with background(writer.run()):
            put(writer, name, 7)
            put(writer, name, 7, may_repeat=True)
            await until(lambda: not writer.backlog_messages)
    assert reports.stored == [((name, 7), 1, False), ((name, 7), 1, True)]


@pytest.mark.asyncio
async def test_header_value_cannot_end_its_line(nats_url: str, reports: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client)
        async with background(writer.run()):
            headers = {"clientId": "a\r\nqoslevel: 2\r\n\r\nPUB x 0\r\n\x00é", "qoslevel": "1"}
            writer.write(f"t.{name}.a", b"payload", headers, 1)
            await until(lambda: not writer.backlog_messages)
        consumer = await client.jetstream().subscribe(f"t.{name}.>", stream=name, ordered_consumer=True)
        message = await consumer.next_msg(timeout=10)
    assert message.data == b"payload"
    assert message.headers == {"clientId": "a%0D%0Aqoslevel: 2%0D%0A%0D%0APUB x 0%0D%0A%00é", "qoslevel": "1"}


@pytest.mark.asyncio
async def test_message_without_token_is_stored_and_not_reported(nats_url: str, reports: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client)
        async with background(writer.run()):
            writer.write(f"t.{name}.a", b"0", {}, None)
            await until(lambda: not writer.backlog_messages)
        assert await read(client, name, 1) == ["0"]
    assert not reports.order


@pytest.mark.asyncio
async def test_error_of_the_callback_ends_the_pump(nats_url: str) -> None:
    name = unique("s")

    def stored(_token: object, _sequence: int, _is_duplicate: bool) -> None:
        raise RuntimeError("a bug")

    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = LogWriter(client, stored=stored, stream_tokens=2)
        put(writer, name, 0)
        async with asyncio.timeout(30):
            with pytest.raises(RuntimeError, match="a bug"):
                await writer.run()


@pytest.mark.asyncio
async def test_closed_client_ends_the_pump(nats_url: str, reports: Reports) -> None:
    client = await nats.connect(nats_url)
    writer = reports.writer(client)

    async def close() -> None:
        await client.close()
        put(writer, unique("s"), 0)
        await asyncio.Event().wait()

    async with asyncio.timeout(30):
        with pytest.raises(nats.errors.ConnectionClosedError):
            await first_of(writer.run(), close())


async def put_all(writer: LogWriter, name: str, total: int) -> None:
    """Write messages 0 to `total`, a few at a time."""
    for number in range(total):
        put(writer, name, number)
        if number % 50 == 49:
            await asyncio.sleep(0)


async def fill_and_drain(
    client: Client,
    name: str,
    reports: Reports,
    writer: LogWriter,
    total: int,
    *,
    replicas: int = 1,
    produce: Callable[[LogWriter, str, int], Coroutine[object, object, None]] = put_all,
) -> None:
    """Write while the stream takes some messages, is full for a moment, and takes some again."""
    js = client.jetstream()
    config = StreamConfig(
        name=name,
        subjects=[f"t.{name}.>"],
        duplicate_window=120,
        allow_direct=True,
        discard=DiscardPolicy.NEW,
        num_replicas=replicas,
    )

    async def toggle() -> None:
        limit = 0
        while len(reports.stored) < total:
            limit = max(limit, len(reports.stored)) + 97
            for max_msgs in (limit, limit + 53):
                await js.update_stream(dataclasses.replace(config, max_msgs=max_msgs))

    async with background(writer.run(), produce(writer, name, total), toggle()):
        await until(lambda: len(reports.stored) == total)


@pytest.mark.asyncio
async def test_ordered_lane_keeps_the_order_when_messages_fail_and_later_ones_do_not(
    nats_url: str, reports: Reports
) -> None:
    name = unique("s")
    total = 3_000
    async with connected(nats_url) as client:
        await add_stream(client, name, discard=DiscardPolicy.NEW, max_msgs=10)
        writer = reports.writer(client, is_ordered=lambda lane: lane == f"t.{name}")
        await fill_and_drain(client, name, reports, writer, total)
        assert writer.failures
        assert reports.order == [(name, number) for number in range(total)]
        assert await read(client, name, total) == [str(number) for number in range(total)]


@pytest.mark.asyncio
async def test_ordered_lane_survives_restarts_and_gives_each_message_once(
    nats_server: NatsServer, reports: Reports
) -> None:
    total = 20_000
    async with connected(nats_server.url) as client:
        await add_stream(client, "s")
        writer = reports.writer(client, is_ordered=lambda _lane: True)

        async def produce() -> None:
            for number in range(total):
                put(writer, "s", number)
                if number % 100 == 99:
                    await asyncio.sleep(0)

        async with background(writer.run(), produce()):
            for part in (1, 2, 3):
                await until(lambda part=part: len(reports.stored) > part * total // 5)  # type: ignore[misc]
                await asyncio.to_thread(nats_server.restart)
            await until(lambda: len(reports.stored) == total)
        assert writer.failures
        assert await read(client, "s", total) == [str(number) for number in range(total)]


@pytest.mark.timeout(180)
@pytest.mark.asyncio
async def test_ordered_lane_keeps_the_order_in_a_cluster_whose_leaders_change(
    nats_cluster: NatsCluster, reports: Reports
) -> None:
    """A refusal that a single server answers and forgets must not end a stream with replicas either."""
    total = 3_000
    async with connected(nats_cluster.url) as client:
        await add_stream(client, "s", num_replicas=3)
        writer = reports.writer(client, is_ordered=lambda _lane: True, ack_timeout_s=2)

        async def produce() -> None:
            for number in range(total):
                put(writer, "s", number)
                if number % 100 == 99:
                    await asyncio.sleep(0)

        async with background(writer.run(), produce()):
            for part in (1, 2):
                await until(lambda part=part: len(reports.stored) > part * total // 4, 60)  # type: ignore[misc]
                await nats_cluster.step_down("s")
            await until(lambda: len(reports.stored) == total, 60)
        assert reports.order == [("s", number) for number in range(total)]
        await nats_cluster.wait_current("s")
        assert await read(client, "s", total) == [str(number) for number in range(total)]


@pytest.mark.timeout(180)
@pytest.mark.asyncio
async def test_ordered_lane_keeps_the_order_in_a_cluster_that_refuses_messages(
    nats_cluster: NatsCluster, reports: Reports
) -> None:
    total = 1_000
    async with connected(nats_cluster.url) as client:
        await add_stream(client, "s", discard=DiscardPolicy.NEW, max_msgs=10, num_replicas=3)
        writer = reports.writer(client, is_ordered=lambda _lane: True)
        await fill_and_drain(client, "s", reports, writer, total, replicas=3)
        assert reports.order == [("s", number) for number in range(total)]
        assert await read(client, "s", total) == [str(number) for number in range(total)]


@pytest.mark.asyncio
async def test_messages_of_a_stream_that_is_gone_are_reported_as_failed(nats_url: str, reports: Reports) -> None:
    gone, other = unique("gone"), unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, other)
        writer = reports.writer(client, is_gone=lambda lane: lane == f"t.{gone}")
        async with background(writer.run()):
            for number in range(100):
                put(writer, gone, number)
                put(writer, other, number)
            await until(lambda: not writer.backlog_messages)
        assert [token for token, _, _ in reports.stored] == [(other, number) for number in range(100)]
        assert reports.failed == [((gone, number), "no responders") for number in range(100)]
        assert not writer.backlog_bytes


async def positions(client: Client, name: str) -> list[tuple[int, int]]:
    """Return the number that each message of a stream has as its payload, with its sequence there."""
    js = client.jetstream()
    last = (await js.stream_info(name)).state.messages
    consumer = await js.subscribe(f"t.{name}.>", stream=name, ordered_consumer=True)
    messages = [await consumer.next_msg(timeout=10) for _ in range(last)]
    await consumer.unsubscribe()
    return [(int(message.data), message.metadata.sequence.stream) for message in messages]


@pytest.mark.asyncio
async def test_messages_that_are_sent_together_have_one_acknowledgement(nats_url: str) -> None:
    name = unique("s")
    reports = Reports(is_ours=True)
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = reports.writer(client)
        async with background(writer.run()):
            before = client.stats["in_msgs"]
            for number in range(3000):
                put(writer, name, number)
            await until(lambda: not writer.backlog_messages)
            assert client.stats["in_msgs"] - before < 50
            put(writer, name, 3000)  # to a lane that was forgotten meanwhile
            put(writer, name, 3001)
            await until(lambda: not writer.backlog_messages)
        assert not writer.failures
        assert await positions(client, name) == [(token[1], sequence) for token, sequence, _ in reports.stored]  # type: ignore[index]


@pytest.mark.asyncio
async def test_messages_of_a_group_that_were_stored_before_are_reported_where_they_are(nats_url: str) -> None:
    name = unique("s")
    reports = Reports(is_ours=True)
    async with connected(nats_url) as client:
        await add_stream(client, name)
        for number in (20, 3, 50):
            await client.jetstream().publish(f"t.{name}.0", b"%d" % number, headers={"Nats-Msg-Id": f"{name}-{number}"})
        writer = reports.writer(client)
        async with background(writer.run()):
            for number in range(200):
                put(writer, name, number)
            await until(lambda: not writer.backlog_messages)
        places = dict(await positions(client, name))
        assert [entry[:2] for entry in reports.stored] == [((name, number), places[number]) for number in range(200)]
        assert len(places) == 200


@pytest.mark.asyncio
async def test_sequences_are_right_when_others_write_all_the_same(nats_url: str, ours: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client, connected(nats_url) as other:
        await add_stream(client, name)
        writer = ours.writer(client, window_messages=200)

        async def disturb() -> None:
            for number in range(10_000, 10_100):
                await other.jetstream().publish(f"t.{name}.x", b"%d" % number)

        async with background(writer.run()):
            for number in range(3000):
                put(writer, name, number)
            await disturb()
            await until(lambda: not writer.backlog_messages)
        places = dict(await positions(client, name))
        assert [entry[:2] for entry in ours.stored] == [((name, number), places[number]) for number in range(3000)]
        assert len(places) == 3100


@pytest.mark.asyncio
async def test_late_message_of_the_process_before_does_not_make_up_for_a_repeat(nats_url: str, ours: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client, connected(nats_url) as other:
        await add_stream(client, name)
        writer = ours.writer(client)
        async with background(writer.run()):
            put(writer, name, 0)
            await until(lambda: not writer.backlog_messages)
            await other.jetstream().publish(f"t.{name}.x", b"2", headers={"Nats-Msg-Id": f"{name}-2"})
            for number in range(1, 50):  # the second one was on its way in the process before
                put(writer, name, number, may_repeat=number == 2)
            await until(lambda: not writer.backlog_messages)
        places = dict(await positions(client, name))
        assert [entry[:2] for entry in ours.stored] == [((name, number), places[number]) for number in range(50)]
        assert len(places) == 50


@pytest.mark.asyncio
async def test_repeats_between_new_messages_stop_no_groups(nats_url: str, ours: Reports) -> None:
    name = unique("s")
    async with connected(nats_url) as client:
        await add_stream(client, name)
        writer = ours.writer(client)
        async with background(writer.run()):
            put(writer, name, 0)
            put(writer, name, 1)
            await until(lambda: not writer.backlog_messages)
            for number in range(2, 500):
                put(writer, name, 1 if number == 100 else number, may_repeat=number == 100)
            await until(lambda: not writer.backlog_messages)
        assert not writer.failures
        places = dict(await positions(client, name))
        assert [entry[1] for entry in ours.stored] == [places[entry[0][1]] for entry in ours.stored]  # type: ignore[index]


@pytest.mark.asyncio
async def test_nothing_is_reported_that_a_stream_failed_in_the_middle_of_a_group(nats_url: str, ours: Reports) -> None:
    name = unique("s")
    total = 2_000
    async with connected(nats_url) as client:
        await add_stream(client, name, discard=DiscardPolicy.NEW, max_msgs=10)
        writer = ours.writer(client)
        await fill_and_drain(client, name, ours, writer, total)
        assert writer.failures
        places = dict(await positions(client, name))
        assert [entry[:2] for entry in ours.stored] == [((name, number), places[number]) for number in range(total)]
        assert len(places) == total
