"""Messages of backend applications: product.md section 3.4, from NATS to fake edges over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from nats.js.errors import NoStreamResponseError

from services.common import raw_nats
from services.common.sharding import router_of
from services.common.subjects import DEAD_STREAM, IN_STREAM, in_subject
from services.router import inbound
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer
from tests.support.router import FakeEdge, Mesh, connected, make_log, mesh, read_log, until
from weimq.auth.v1 import auth_pb2
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def auth(mesh: Mesh) -> AsyncGenerator[FakeAuth]:
    """An auth service with the instance `i`, the topics `p` (logged) and `q` (not), and the group `GID_x`."""
    fake = FakeAuth()  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
    fake.put_instance("i")
    fake.put_topic("i", "p")
    fake.put_topic("i", "q", logged=False)
    fake.put_group("i", "GID_x")
    address = f"{mesh.address}-auth"
    mesh._settings = dataclasses.replace(mesh._settings, auth=address)
    async with fake.serving(address):
        yield fake


class Backend:
    """A backend application; every publication waits for its JetStream acknowledgement."""

    def __init__(self, js: Any) -> None:
        self._js = js

    async def publish(
        self, payload: bytes, parent: str = "p", *, instance_id: str = "i", headers: dict[str, str] | None = None
    ) -> None:
        await self._js.publish(in_subject(instance_id, parent), payload, headers=headers)

    async def waiting(self) -> int:
        """Return how many messages wait in the stream."""
        return int((await self._js.stream_info(IN_STREAM)).state.messages)

    async def taken(self, but: int = 0) -> None:
        """Wait until every message but so many was acknowledged by the router."""
        async with asyncio.timeout(20):
            while await self.waiting() != but:  # noqa: ASYNC110 - NATS tells no event of it
                await asyncio.sleep(0.01)

    async def dead(self, count: int) -> list[Any]:
        """Return the messages that could not be routed, once there are `count`."""
        consumer = await self._js.subscribe("mq.dead.>", stream=DEAD_STREAM, ordered_consumer=True)
        return [await consumer.next_msg(timeout=10) for _ in range(count)]


@contextlib.asynccontextmanager
async def backend_of(server: NatsServer) -> AsyncGenerator[Backend]:
    async with connected(server.url) as client:
        js = client.jetstream()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(Exception):
                    await js.stream_info(IN_STREAM)
                    break
                await asyncio.sleep(0.01)
        yield Backend(js)


@contextlib.asynccontextmanager
async def running(mesh: Mesh, *filters: str) -> AsyncGenerator[FakeEdge]:
    async with mesh.router(), FakeEdge(mesh, "one").running() as edge:
        for number, topic_filter in enumerate(filters, 1):
            edge.subscribe(number, topic_filter)
        await edge.settled()
        await mesh.serving()
        yield edge


async def test_message_goes_to_subscribers_and_the_log(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, "p/#") as edge, backend_of(nats_server) as backend:
        await backend.publish(b"\x00payload", headers={"mqttSecondTopic": "/a/b", "clientId": "ignored"})
        await backend.taken()
        assert [(each.topic, each.payload, each.flags) for each in edge.deliveries] == [("p/a/b", b"\x00payload", 1)]
        (logged,) = await read_log(nats_server.url, "p")
        assert logged.subject == "mq.out.i.p.a.b"
        assert logged.data == b"\x00payload"
        assert logged.headers is not None
        assert logged.headers.pop("Nats-Msg-Id").startswith("in-")
        assert logged.headers == {
            "qoslevel": "1",
            "cleansessionflag": "true",
            "clientId": "",
            "mqttSecondTopic": "/a/b",
            "mqttOrigin": "backend",
        }


@pytest.mark.parametrize("parent", ["p", "q"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_qos_is_that_of_the_header(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, qos: int, parent: str
) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        for n in range(50):
            await backend.publish(b"%d" % n, parent, headers={"qoslevel": str(qos)})
        await backend.taken()
        await until(lambda: len(edge.deliveries) == 50)
        assert edge.payloads == [b"%d" % n for n in range(50)]
        assert {(each.topic, each.flags) for each in edge.deliveries} == {(parent, qos)}
        if qos == 2:
            assert len({each.origin for each in edge.deliveries}) == 50


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("parent", ["p", "q"])
async def test_clients_see_the_real_topic_instead(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, parent: str, qos: int
) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, f"{parent}/a") as edge, backend_of(nats_server) as backend:
        headers = {"mqttSecondTopic": "/a", "qoslevel": str(qos)}
        await backend.publish(b"1", parent, headers=headers)
        await backend.publish(b"2", parent, headers={**headers, "mqttRealTopic": "seen/by/clients"})
        await backend.publish(b"3", parent, headers=headers)
        await backend.taken()
        await until(lambda: len(edge.deliveries) == 3)
        assert [each.topic for each in edge.deliveries] == [f"{parent}/a", "seen/by/clients", f"{parent}/a"]
        if parent == "p":
            logged = await read_log(nats_server.url, "p")
            assert [(each.headers or {}).get("mqttRealTopic") for each in logged] == [None, "seen/by/clients", None]
            assert {each.subject for each in logged} == {"mq.out.i.p.a"}


async def test_p2p_message_goes_to_its_client(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        edge.connect_client(9, "GID_x@@@1")
        await edge.settled()
        await backend.publish(b"1", headers={"mqttSecondTopic": "/p2p/GID_x@@@1"})
        await backend.taken()
        assert [(each.topic, each.targets) for each in edge.deliveries] == [("p/p2p/GID_x@@@1", [9])]
        (logged,) = await read_log(nats_server.url, "p")
        assert (logged.headers or {})["cleansessionflag"] == "true"


@pytest.mark.parametrize("flag", ["true", "false", None])
async def test_p2p_message_is_kept_when_its_flag_says_so(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, flag: str | None
) -> None:
    mesh._settings = dataclasses.replace(mesh._settings, shard_count=1)
    await make_log(nats_server.url, "p")
    shard = FakeEdge(mesh, "session-0", shard=router_pb2.SessionShard(index=0, count=1))
    async with running(mesh, "#") as edge, shard.running(), backend_of(nats_server) as backend:
        edge.connect_client(9, "GID_x@@@1")
        await edge.settled()
        await shard.settled()
        headers = {"mqttSecondTopic": "/p2p/GID_x@@@1"} | ({} if flag is None else {"cleansessionflag": flag})
        await backend.publish(b"1", headers=headers)
        await backend.taken()
        # A kept one goes to the shard, which delivers it also to a client that is online.
        kept = [("p/p2p/GID_x@@@1", 1 | 8)] if flag == "false" else []
        assert [(each.topic, each.flags) for each in shard.deliveries] == kept
        assert len(edge.deliveries) == 1 - len(kept)
        (logged,) = await read_log(nats_server.url, "p")
        assert (logged.headers or {})["cleansessionflag"] == (flag or "true")


async def test_defaults_without_headers(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        await backend.publish(bytes(range(256)), "q")
        await backend.taken()
        assert [(each.topic, each.payload, each.flags) for each in edge.deliveries] == [("q", bytes(range(256)), 1)]


BAD = [
    ("nowhere", "p", b"", {}, "unknown instance"),
    ("i", "nothing", b"", {}, "unknown parent topic"),
    ("i", "p", b"", {"qoslevel": "3"}, "header qoslevel is not 0, 1 or 2"),
    ("i", "p", b"", {"cleansessionflag": "yes"}, "header cleansessionflag is neither true nor false"),
    ("i", "p", b"", {"mqttSecondTopic": "a"}, "header mqttSecondTopic does not begin with `/`"),
    ("i", "p", b"", {"mqttSecondTopic": "/+"}, "wildcard"),
    ("i", "p", b"", {"mqttSecondTopic": "/" + "x" * 63}, "the topic has 65 characters, 64 are allowed"),
    ("i", "p", b"", {"mqttRealTopic": "a/#"}, "header mqttRealTopic: "),
    ("i", "p", bytes(65_537), {}, "the payload has 65537 bytes, 65536 are allowed"),
]


async def test_bad_messages_go_to_the_dead_letters_and_block_nothing(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        for n, (instance_id, parent, payload, headers, _) in enumerate(BAD):
            await backend.publish(
                payload, parent, instance_id=instance_id, headers={**headers, "mine": "yes", "Nats-Msg-Id": f"id{n}"}
            )
        await backend.publish(b"good")
        await backend.taken()
        assert edge.payloads == [b"good"]
        dead = await backend.dead(len(BAD))
        # Each topic has its own lane to the dead letters.
        found = {message.headers["deadMessageId"]: message for message in dead}
        for n, (instance_id, parent, payload, headers, reason) in enumerate(BAD):
            message = found[f"id{n}"]
            assert reason in message.headers["deadReason"]
            assert message.subject == f"mq.dead.{instance_id}.{parent}"
            assert message.data == payload
            assert message.headers["mine"] == "yes"
            assert {name: message.headers[name] for name in headers} == headers


async def test_subject_of_no_topic_is_refused_by_nats(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    async with running(mesh), backend_of(nats_server), connected(nats_server.url) as client:
        for subject in ("mq.in.i", "mq.in.i.p.q"):
            with pytest.raises(NoStreamResponseError):
                await client.jetstream().publish(subject, b"")


async def test_wrongly_escaped_subject_is_a_dead_letter(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    async with running(mesh), backend_of(nats_server) as backend, connected(nats_server.url) as client:
        await client.jetstream().publish("mq.in.i.=zz", b"")
        (dead,) = await backend.dead(1)
        assert "escaped" in dead.headers["deadReason"]


async def test_repeated_message_id_is_forwarded_once(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        for _ in range(3):
            await backend.publish(b"once", headers={"Nats-Msg-Id": "same"})
        await backend.publish(b"last")
        await backend.taken()
        assert edge.payloads == [b"once", b"last"]


async def test_acknowledged_only_when_the_edges_confirmed_and_logged_once_after_a_crash(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    await make_log(nats_server.url, "p")
    count = 100
    async with contextlib.AsyncExitStack() as stack:
        async with running(mesh, "#") as edge:
            backend = await stack.enter_async_context(backend_of(nats_server))
            edge.is_confirming = False
            for n in range(count):
                await backend.publish(b"%d" % n, headers={"qoslevel": "2", "mqttSecondTopic": "/a"})
            await until(lambda: len(edge.deliveries) == count)
            assert await backend.waiting() == count
        # The router is killed; the next one gets all of them again, at once and in order.
        async with running(mesh, "#") as edge:
            await backend.publish(b"new", headers={"mqttSecondTopic": "/a"})
            await backend.taken()
            payloads = [b"%d" % n for n in range(count)]
            assert edge.payloads == [*payloads, b"new"]
            assert [each.data for each in await read_log(nats_server.url, "p")] == [*payloads, b"new"]


async def test_nats_restart_neither_loses_nor_repeats(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_log(nats_server.url, "p")
    async with running(mesh, "#") as edge:
        edge.is_confirming = False
        async with backend_of(nats_server) as backend:
            for n in range(50):
                await backend.publish(b"%d" % n)
        await until(lambda: len(edge.deliveries) == 50)
        await asyncio.to_thread(nats_server.restart)
        async with backend_of(nats_server) as backend:
            await backend.publish(b"50")
            await until(lambda: len(edge.deliveries) == 51)
            assert await backend.waiting() == 51
            edge.confirm()
            await backend.taken()
        assert edge.payloads == [b"%d" % n for n in range(51)]


async def test_lost_acknowledgement_repeats_nothing(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        lost: list[object] = []
        with monkeypatch.context() as patched:
            patched.setattr(inbound.Inbound, "_acknowledge", lambda _self, reply: lost.append(reply))
            await backend.publish(b"1", "q")
            await until(lambda: bool(lost))
        await asyncio.to_thread(nats_server.restart)
        async with backend_of(nats_server) as again:
            await again.taken()
        assert edge.payloads == [b"1"]


async def test_waits_for_auth_and_knows_topics_made_at_run_time(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer
) -> None:
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        await backend.publish(b"early", "new")
        await backend.taken()
        auth.put_topic("i", "new", logged=False)
        auth.put_instance("plain", profile=auth_pb2.PROFILE_STANDARD, max_topic_characters=0)
        edge.subscribe(7, "any/x", instance_id="plain")
        await edge.settled()
        await backend.publish(b"late", "new")
        await backend.publish(b"any", "any", instance_id="plain", headers={"mqttSecondTopic": "/x"})
        await backend.taken()
        assert edge.payloads == [b"late", b"any"]


async def test_flood_is_bounded_while_an_edge_is_slow(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound, "WINDOW_MESSAGES", 128)
    monkeypatch.setattr(inbound, "BATCH_MESSAGES", 64)
    async with running(mesh, "#") as edge, backend_of(nats_server) as backend:
        edge.is_confirming = False
        for n in range(1_000):
            await backend.publish(b"%d" % n, "q")
        await until(lambda: len(edge.deliveries) >= 64)
        assert len(edge.deliveries) <= 128
        edge.confirm()
        await backend.taken()
        assert edge.payloads == [b"%d" % n for n in range(1_000)]


async def test_each_router_takes_its_own_topics(mesh: Mesh, auth: FakeAuth, nats_server: NatsServer) -> None:
    other = copy.copy(mesh)
    other.address = f"{mesh.address}-1"
    mesh._settings = dataclasses.replace(mesh._settings, count=2)
    other._settings = dataclasses.replace(mesh._settings, index=1, grpc_listen=(other.address,))
    topics = [f"t{n}" for n in range(20)]
    for topic in topics:
        auth.put_topic("i", topic, logged=False)
    async with running(mesh, "#") as first, running(other, "#") as second, backend_of(nats_server) as backend:
        for topic in topics:
            await backend.publish(b"", topic)
        await backend.taken()
        for edge, index in ((first, 0), (second, 1)):
            own = [topic for topic in topics if router_of("i", topic, 2) == index]
            assert sorted(each.topic for each in edge.deliveries) == sorted(own)
            assert own


async def test_consumer_that_is_gone_is_not_asked_all_the_time(
    mesh: Mesh, auth: FakeAuth, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulls: list[float] = []

    def write(client: Any, parts: Any) -> None:
        if b"MSG.NEXT" in parts[0]:
            pulls.append(time.monotonic())
        raw_nats.write(client, parts)

    async with running(mesh), backend_of(nats_server) as backend:
        await backend.publish(b"taken", "q")
        await backend.taken()
        monkeypatch.setattr(inbound, "write", write)
        await backend._js.delete_consumer(IN_STREAM, "router-0")  # as a router of another count does
        await until(lambda: len(pulls) >= 4)
    assert pulls[3] - pulls[0] >= 2 * inbound.RETRY_S
