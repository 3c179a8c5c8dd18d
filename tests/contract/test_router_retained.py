"""Retained messages, MQTT 3.1.1 section 3.3.1.3, as `RouterService` keeps them for fake edges."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from typing_extensions import override

from services.common import subjects
from services.common.grpc_client import channel
from services.router import queries, retained_stream
from tests.support.nats import NatsServer
from tests.support.router import (
    CLEAN_SESSION,
    LOGGED,
    P2P,
    RETAIN,
    TOKEN,
    Delivery,
    FakeEdge,
    Mesh,
    connected,
    has_violated,
    make_log,
    mesh,
    raw_call,
    read_log,
    until,
)
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio


class AskingEdge(FakeEdge):
    """An edge that asks for retained messages."""

    def __init__(self, mesh: Mesh, edge_id: str, incarnation: str = "inc") -> None:
        super().__init__(mesh, edge_id, incarnation)
        self.answers: dict[int, int] = {}  # query id to the deliveries had when it was answered
        self._query_id = 1_000

    def ask(self, topic_filter: str, instance_id: str = "i") -> int:
        self._query_id += 1
        self.ask_under(self._query_id, topic_filter, instance_id)
        return self._query_id

    def ask_under(self, query_id: int, topic_filter: str, instance_id: str = "i") -> None:
        query = router_pb2.RetainedQuery(query_id=query_id, instance_id=instance_id, topic_filter=topic_filter)
        self.send(router_pb2.LinkRequest(retained_queries=[query]))

    async def retained(self, topic_filter: str, instance_id: str = "i") -> list[tuple[str, bytes, int]]:
        """Return topic, payload and QoS of all retained messages that a filter selects, in topic order."""
        query_id = self.ask(topic_filter, instance_id)
        await until(lambda: query_id in self.answers)
        return sorted((each.topic, each.payload, each.flags & 3) for each in self.of(query_id))

    def of(self, query_id: int) -> list[Delivery]:
        """Return the deliveries of a query; all have the retain flag, and came before its end."""
        found = [delivery for delivery in self.deliveries if query_id in delivery.targets]
        assert all(delivery.flags & RETAIN and delivery.targets == [query_id] for delivery in found)
        if query_id in self.answers:
            assert found == [each for each in self.deliveries[: self.answers[query_id]] if query_id in each.targets]
        return found

    async def retain(self, topic: str, payload: bytes, *, qos: int = 1, topic_flags: int = 0) -> None:
        """Publish a message to be retained and wait for its acknowledgement."""
        assert qos
        sequence = self.publish(topic, payload, qos=qos, flags=RETAIN, topic_flags=topic_flags)
        await until(lambda: sequence in self.acknowledged)

    @override
    def _take(self, response: router_pb2.LinkResponse) -> None:
        super()._take(response)
        for query_id in response.answered_query_ids:
            assert query_id not in self.answers
            self.answers[query_id] = len(self.deliveries)


@contextlib.asynccontextmanager
async def edge_of(mesh: Mesh, edge_id: str = "one") -> AsyncGenerator[AskingEdge]:
    edge = AskingEdge(mesh, edge_id)
    async with edge.running():
        yield edge


async def stored(url: str, instance_id: str = "i") -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return what the stream of an instance holds, by topic."""
    found: dict[str, tuple[bytes, dict[str, str]]] = {}
    async with connected(url) as client:
        js = client.jetstream()
        name = subjects.retained_stream(instance_id)
        state = (await js.stream_info(name, subjects_filter=">")).state
        for subject in state.subjects or {}:
            message = await js.get_msg(name, subject=subject, direct=True)
            found[subjects.retained_topic(subject)[1]] = (message.data or b"", dict(message.headers or {}))
        assert state.messages == len(found)
    return found


async def stored_count(url: str) -> int:
    async with connected(url) as client:
        info = await client.jetstream().stream_info(subjects.retained_stream("i"))
        return info.state.messages


def with_settings(mesh: Mesh, **changes: Any) -> None:
    mesh._settings = dataclasses.replace(mesh._settings, **changes)


@pytest.mark.parametrize("topic_flags", [0, LOGGED])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_retained_message_is_delivered_stored_and_found(
    mesh: Mesh, nats_server: NatsServer, qos: int, topic_flags: int
) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), edge_of(mesh) as one:
        one.subscribe(1, "p/#")
        await one.settled()
        one.publish("p/a", b"payload", qos=qos, flags=RETAIN | CLEAN_SESSION, topic_flags=topic_flags, client_id="x")
        await until(lambda: len(one.deliveries) == 1)
        assert (one.deliveries[0].targets, one.deliveries[0].flags) == ([1], qos)  # live: no retain flag
        await one.all_acknowledged()
        assert await one.retained("p/a") == [("p/a", b"payload", qos)]
        assert await one.retained("p/a", instance_id="other") == []
        if not qos:
            await one.retain("p/other", b"is stored after the other", topic_flags=topic_flags)
        kept, headers = (await stored(nats_server.url))["p/a"]
        assert (kept, headers["qoslevel"], headers["clientId"]) == (b"payload", str(qos), "x")
        assert bool(await read_log(nats_server.url, "p")) == bool(topic_flags)


async def test_message_without_the_flag_is_not_retained(mesh: Mesh) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"kept")
        one.publish("a", b"not kept")
        one.publish("b", b"not kept")
        one.publish("a", b"")
        await one.all_acknowledged()
        assert await one.retained("#") == [("a", b"kept", 1)]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_retained_message_is_replaced(mesh: Mesh, nats_server: NatsServer, qos: int) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"1", qos=2)
        one.publish("a", b"2", qos=qos, flags=RETAIN)
        await until(lambda: not one._outgoing)
        assert await one.retained("a") == [("a", b"2", qos)]
        await one.retain("b", b"is stored after the other")
        await one.all_acknowledged()
    async with mesh.router(), edge_of(mesh) as one:
        assert await one.retained("a") == [("a", b"2", qos)]
        assert (await stored(nats_server.url))["a"][0] == b"2"


@pytest.mark.parametrize("qos", [0, 1])
async def test_empty_payload_deletes_and_goes_out_as_a_message(mesh: Mesh, nats_server: NatsServer, qos: int) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        one.subscribe(1, "a")
        await one.retain("a", b"1")
        one.publish("a", b"", qos=qos, flags=RETAIN)
        await until(lambda: len(one.deliveries) == 2)
        assert [(each.payload, each.flags) for each in one.deliveries] == [(b"1", 1), (b"", qos)]
        assert await one.retained("#") == []
        await one.retain("b", b"is stored after the deletion")
        await one.all_acknowledged()
        payload, headers = (await stored(nats_server.url))["a"]
        assert (payload, headers["Nats-TTL"]) == (b"", "60s")  # JetStream forgets it by itself
    async with mesh.router(), edge_of(mesh) as one:
        assert await one.retained("#") == [("b", b"is stored after the deletion", 1)]


async def test_deletions_go_away_by_themselves(
    mesh: Mesh, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.retained.DELETION_TTL", "1s")
    async with mesh.router(), edge_of(mesh) as one:
        for number in range(20):
            one.publish(f"a/{number}", b"1", flags=RETAIN)
            one.publish(f"a/{number}", b"", flags=RETAIN)
        one.publish("a/0", b"2", flags=RETAIN)  # written after a deletion: stays
        await one.all_acknowledged()
        async with asyncio.timeout(15):
            while await stored_count(nats_server.url) != 1:  # noqa: ASYNC110 - JetStream tells nobody
                await asyncio.sleep(0.1)
        assert (await stored(nats_server.url))["a/0"][0] == b"2"
    async with mesh.router(), edge_of(mesh) as one:
        assert await one.retained("#") == [("a/0", b"2", 1)]


async def test_deletion_of_what_is_not_retained_writes_nothing(mesh: Mesh, nats_server: NatsServer) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"")
        async with connected(nats_server.url) as client:
            names = [info.config.name for info in await client.jetstream().streams_info()]
        assert subjects.retained_stream("i") not in names
        await one.retain("b", b"1")
        await one.retain("a", b"")
        assert set(await stored(nats_server.url)) == {"b"}


async def test_query_selects_by_wildcards_and_keeps_server_topics_from_them(mesh: Mesh) -> None:
    topics = ["a", "a/b", "a/b/c", "a/", "/a", "x.y z", "$SYS/a"]
    async with mesh.router(), edge_of(mesh) as one:
        for topic in topics:
            await one.retain(topic, topic.encode())
        for topic_filter, selected in {
            "#": ["/a", "a", "a/", "a/b", "a/b/c", "x.y z"],
            "+": ["a", "x.y z"],
            "a/#": ["a", "a/", "a/b", "a/b/c"],
            "+/+": ["/a", "a/", "a/b"],
            "a/+/c": ["a/b/c"],
            "$SYS/#": ["$SYS/a"],
            "b": [],
        }.items():
            assert await one.retained(topic_filter) == [(topic, topic.encode(), 1) for topic in selected]


async def test_p2p_message_is_never_retained(mesh: Mesh) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        one.connect_client(1, "GID_x@@@1")
        await one.retain("p/p2p/GID_x@@@1", b"1", topic_flags=P2P)
        assert one.payloads == [b"1"]
        assert await one.retained("#") == []


@pytest.mark.parametrize("batch", [1, 7, 1_024])
async def test_retained_messages_survive_the_router(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(retained_stream, "MAX_FETCH_MESSAGES", batch)
    count = 200
    async with mesh.router(), edge_of(mesh) as one:
        for number in range(count):
            one.publish(f"é/{number}", b"%d" % number, qos=1 + number % 2, flags=RETAIN)
        await one.all_acknowledged()
    async with mesh.router(), edge_of(mesh) as one:
        found = await one.retained("é/#")
        assert found == sorted((f"é/{number}", b"%d" % number, 1 + number % 2) for number in range(count))
        await one.retain("é/0", b"new")  # the stream is known
        assert await one.retained("é/0") == [("é/0", b"new", 1)]


async def test_acknowledged_only_when_stored(mesh: Mesh, nats_server: NatsServer) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        one.subscribe(1, "a")
        await one.retain("b", b"")
        await mesh.serving()
        await asyncio.to_thread(nats_server.kill)
        retained = one.publish("a", b"1", flags=RETAIN)
        unretained = one.publish("a", b"2")
        await until(lambda: unretained in one.acknowledged)
        assert one.payloads == [b"1", b"2"]
        assert retained not in one.acknowledged
        assert await one.retained("a") == [("a", b"1", 1)]  # as subscribers saw it
        await asyncio.to_thread(nats_server.start)
        await until(lambda: retained in one.acknowledged)
        assert (await stored(nats_server.url))["a"][0] == b"1"


async def test_stream_that_was_deleted_is_made_again(mesh: Mesh, nats_server: NatsServer) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"1")
        async with connected(nats_server.url) as client:
            await client.jetstream().delete_stream(subjects.retained_stream("i"))
        await one.retain("a", b"2")
        assert set(await stored(nats_server.url)) == {"a"}


async def test_stored_state_is_that_of_the_message_that_was_routed_last(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with mesh.router(), edge_of(mesh) as one:
        one.subscribe(1, "p/a")
        for number in range(300):  # those of QoS 0 overtake those that wait for the log
            payload = b"" if number % 7 == 6 else b"%d" % number
            one.publish("p/a", payload, qos=number % 3, flags=RETAIN, topic_flags=LOGGED)
        await one.all_acknowledged()
        # Between QoS 0 and the others a busy link changes the order that they were routed in.
        last = {delivery.flags & 3 > 0: delivery.payload for delivery in one.deliveries}
        found = [each[1] for each in await one.retained("p/a")] or [b""]
        assert found[0] in last.values()
        await one.retain("p/a/end", b"is stored after the others")
        payload, _ = (await stored(nats_server.url))["p/a"]
        assert payload == found[0]


async def test_query_after_the_acknowledgement_finds_the_message(mesh: Mesh) -> None:
    async with mesh.router(), edge_of(mesh) as one, edge_of(mesh, "two") as two:
        for number in range(50):
            await one.retain("a", b"%d" % number)
            assert await two.retained("a") == [("a", b"%d" % number, 1)]


async def test_new_subscription_misses_nothing_and_ends_with_the_newest(mesh: Mesh) -> None:
    async with mesh.router(), edge_of(mesh) as one, edge_of(mesh, "two") as two:
        last = 2000
        for number in range(1, last + 1):
            one.publish("a", b"%d" % number, flags=RETAIN)
            if number % 20 == 0:
                await asyncio.sleep(0)
            if number == last // 2:
                two.targets[1] = router_pb2.Target(target_id=1, instance_id="i", topic_filter="a")
                query = router_pb2.RetainedQuery(query_id=2, instance_id="i", topic_filter="a")
                two.send(router_pb2.LinkRequest(added_targets=[two.targets[1]], retained_queries=[query]))
        await one.all_acknowledged()
        await until(lambda: 2 in two.answers)
        numbers = list(map(int, two.payloads))
        assert numbers[-1] == last
        assert numbers == sorted(numbers)  # never an older one after a newer one
        assert len(set(numbers)) >= last - numbers[0]  # and none left out


async def test_query_before_the_router_is_settled_is_answered_then(mesh: Mesh) -> None:
    one, two = AskingEdge(mesh, "one"), AskingEdge(mesh, "two")
    async with mesh.router(), one.running(), two.running():
        await one.retain("a", b"1")
        await mesh.serving()
    one = AskingEdge(mesh, "one", "next")
    async with mesh.router(), one.running():
        query_id = one.ask("a")
        await until(lambda: not one._outgoing)
        assert not await mesh.is_serving()
        assert not one.answers
        async with two.running():
            await until(lambda: query_id in one.answers)
            assert [each.payload for each in one.of(query_id)] == [b"1"]


async def test_router_without_nats_answers_when_it_has_read_the_messages(mesh: Mesh, nats_server: NatsServer) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"1")
    await asyncio.to_thread(nats_server.kill)
    async with mesh.router(), edge_of(mesh) as one:
        query_id = one.ask("#")
        await asyncio.to_thread(nats_server.start)
        await until(lambda: query_id in one.answers)
        assert [each.payload for each in one.of(query_id)] == [b"1"]


async def test_large_answer_comes_in_bounded_frames_as_the_edge_confirms(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_WORK", 50)
    monkeypatch.setattr(queries, "STEP_MESSAGES", 20)
    count, size = 300, 20_000
    async with mesh.router(), edge_of(mesh) as one, edge_of(mesh, "two") as two:
        for number in range(count):
            one.publish(f"a/{number}", bytes(size), flags=RETAIN)
        await one.all_acknowledged()
        two.is_confirming = False
        all_of_it, a_part, nothing = two.ask("a/#"), two.ask("a/7"), two.ask("b")
        await until(lambda: bool(two.deliveries))
        await one.retain("a/0", b"later")  # the router goes on
        assert not two.answers
        two.is_confirming = True
        two.link.confirm(two.link.received_through)
        await until(lambda: {all_of_it, a_part, nothing} <= two.answers.keys())
        assert sorted(each.topic for each in two.of(all_of_it)) == sorted(f"a/{number}" for number in range(count))
        assert [each.topic for each in two.of(a_part)] == ["a/7"]
        assert not two.of(nothing)
        assert two.link.received_through > 5


async def test_answers_of_qos_2_are_no_repeats_of_each_other_or_of_the_live_message(mesh: Mesh) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        one.subscribe(1, "a")
        await one.retain("a", b"1", qos=2)
        await one.retained("a")
        await one.retained("a")
        assert [each.flags for each in one.deliveries] == [2, 2 | RETAIN, 2 | RETAIN]
        assert len({each.origin for each in one.deliveries}) == 3


async def test_query_of_a_link_that_started_anew_is_answered_once_it_is_asked_again(mesh: Mesh) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"1")
        one.is_confirming = False
        one.ask_under(7, "a")
        await until(lambda: 7 in one.answers)
        one.answers.clear()
        one.is_confirming = True
        one.router_incarnation = "another router"  # so that the link starts anew
        one.cut()
        await until(lambda: one.links == 2)
        one.publish("other", b"")
        await one.all_acknowledged()
        await one.settled()
        assert not one.answers
        one.ask_under(7, "a")
        await until(lambda: 7 in one.answers)


async def test_quota_of_messages_refuses_new_topics_only(mesh: Mesh) -> None:
    with_settings(mesh, max_retained_messages=2)
    async with mesh.router(), edge_of(mesh) as one:
        one.subscribe(1, "#")
        for topic in ("a", "b", "c"):
            await one.retain(topic, b"1")  # the third is acknowledged as well
        assert len(one.deliveries) == 3
        assert await one.retained("#") == [("a", b"1", 1), ("b", b"1", 1)]
        await one.retain("a", b"2")
        await one.retain("b", b"")
        await one.retain("c", b"2")
        one.publish("d", b"1", flags=RETAIN)
        await one.all_acknowledged()
        assert await one.retained("#") == [("a", b"2", 1), ("c", b"2", 1)]
        assert await one.retained("#", instance_id="other") == []


async def test_quota_of_bytes_refuses_new_topics_only(mesh: Mesh) -> None:
    with_settings(mesh, max_retained_bytes=10_000)
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", bytes(5_000))
        await one.retain("b", bytes(5_000))
        assert [topic for topic, _, _ in await one.retained("#")] == ["a"]
        await one.retain("a", b"")
        await one.retain("b", bytes(5_000))
        assert [topic for topic, _, _ in await one.retained("#")] == ["b"]


async def test_lowered_quota_keeps_what_is_stored(mesh: Mesh) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"1")
        await one.retain("b", b"1")
    with_settings(mesh, max_retained_messages=1)
    async with mesh.router(), edge_of(mesh) as one:
        assert [topic for topic, _, _ in await one.retained("#")] == ["a", "b"]
        await one.retain("c", b"1")
        await one.retain("a", b"")
        assert [topic for topic, _, _ in await one.retained("#")] == ["b"]


async def test_message_that_can_not_be_stored_is_acknowledged_and_not_retained(
    mesh: Mesh, nats_server: NatsServer
) -> None:
    async with mesh.router(), edge_of(mesh) as one:
        await one.retain("a", b"1")
        await one.retain("a", bytes(2 << 20))  # more than the server takes
        assert await one.retained("#") == []
        assert {topic: payload for topic, (payload, _) in (await stored(nats_server.url)).items()} == {"a": b""}


async def test_topics_too_long_for_a_subject_have_retained_messages_too(mesh: Mesh) -> None:
    topics = ["/" * 5_000, "a/" * 5_000, "a/" * 5_000 + "b"]
    async with mesh.router(), edge_of(mesh) as one:
        for topic in topics:
            await one.retain(topic, topic.encode())
    async with mesh.router(), edge_of(mesh) as one:
        assert await one.retained("#") == [(topic, topic.encode(), 1) for topic in topics]
        await one.retain(topics[1], b"")
    async with mesh.router(), edge_of(mesh) as one:
        assert [topic for topic, _, _ in await one.retained("#")] == [topics[0], topics[2]]


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(router_pb2.RetainedQuery(instance_id="i", topic_filter="a"), id="query id 0"),
        pytest.param(router_pb2.RetainedQuery(query_id=1, instance_id="i", topic_filter="a/#/b"), id="wrong filter"),
        pytest.param(router_pb2.RetainedQuery(query_id=1, instance_id="i"), id="empty filter"),
        pytest.param(router_pb2.RetainedQuery(query_id=9, instance_id="i", topic_filter="a"), id="id of a target"),
    ],
)
async def test_wrong_query_is_an_invalid_argument(mesh: Mesh, query: router_pb2.RetainedQuery) -> None:
    async with mesh.router(), channel(mesh.address, TOKEN) as opened:
        await mesh.serving()
        call = await raw_call(opened)
        target = router_pb2.Target(target_id=9, instance_id="i", topic_filter="a")
        await call.write(router_pb2.LinkRequest(frame=1, added_targets=[target], retained_queries=[query]))
        await has_violated(call)
