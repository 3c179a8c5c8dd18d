"""The promises of `RouterService.Publish`: messages that come from no edge."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from grpc import aio

from services.common import grpc_errors
from services.common.errors import InvalidFieldError, NotServingError, UnavailableError
from services.common.grpc_client import channel
from services.router import publisher
from tests.contract.test_router_inbound import auth
from tests.support.fake_auth import FakeAuth
from tests.support.nats import NatsServer
from tests.support.router import TOKEN, FakeEdge, Mesh, make_log, mesh, read_log, until, until_not_serving
from weimq.auth.v1 import auth_pb2
from weimq.router.v1 import router_pb2, router_pb2_grpc

__all__ = ["auth", "mesh"]  # fixtures

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def topics(auth: FakeAuth) -> None:
    """Let there be the topic `log`, which is logged, and others, which are not."""
    auth.put_topic("i", "log")
    for topic in ("p", "other", "nobody"):
        auth.put_topic("i", topic, logged=False)


def message(**changes: Any) -> router_pb2.PublishedMessage:
    fields: dict[str, Any] = {"instance_id": "i", "topic": "p/a", "payload": b"1", "qos": 1, "message_id": "m-1"}
    return router_pb2.PublishedMessage(**{**fields, **changes})


class Caller:
    """Calls `Publish`; failures are the domain errors that the status stands for."""

    def __init__(self, opened: aio.Channel) -> None:
        self._stub = router_pb2_grpc.RouterServiceStub(opened)

    async def publish(self, *messages: router_pb2.PublishedMessage, timeout_s: float | None = 10) -> None:
        try:
            await self._stub.Publish(router_pb2.PublishRequest(messages=messages), timeout=timeout_s)
        except aio.AioRpcError as error:
            raise (grpc_errors.from_rpc_error(error) or error) from error

    async def knows(self) -> None:
        """Wait until the router knows what exists."""
        async with asyncio.timeout(20):
            while True:
                try:
                    await self.publish(message(instance_id="nowhere"))
                except InvalidFieldError:
                    return
                except (NotServingError, UnavailableError):
                    await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def caller_of(mesh: Mesh) -> AsyncGenerator[Caller]:
    async with channel(mesh.address, TOKEN) as opened:
        yield Caller(opened)


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_message_goes_to_every_edge_and_its_log(
    mesh: Mesh, nats_server: NatsServer, qos: int, *, logged: bool
) -> None:
    await make_log(nats_server.url, "log")
    topic = "log/a" if logged else "p/a"
    async with (
        mesh.router(),
        FakeEdge(mesh, "one").running() as one,
        FakeEdge(mesh, "two").running() as two,
        caller_of(mesh) as caller,
    ):
        one.subscribe(1, topic.replace("a", "+"))
        two.subscribe(2, "#")
        two.subscribe(3, topic, instance_id="other")
        await one.settled()
        await two.settled()
        await mesh.serving()
        await caller.knows()
        await caller.publish(
            message(qos=qos, topic=topic, client_id="GID_x@@@1", clean_session=True),
            message(qos=qos, topic=topic, message_id="m-2", payload=b"2"),
        )
        await until(lambda: len(one.deliveries) == len(two.deliveries) == 2)
        for edge, target in ((one, 1), (two, 2)):
            assert [(each.topic, each.payload) for each in edge.deliveries] == [(topic, b"1"), (topic, b"2")]
            assert all((each.targets, each.flags) == ([target], qos) for each in edge.deliveries)
            if qos == 2:
                assert len({each.origin for each in edge.deliveries}) == 2
        log = await read_log(nats_server.url, "log")
        assert [each.data for each in log] == ([b"1", b"2"] if logged else [])
        if logged:
            assert log[0].headers == {
                "Nats-Msg-Id": "m-1",
                "qoslevel": str(qos),
                "cleansessionflag": "true",
                "clientId": "GID_x@@@1",
                "mqttSecondTopic": "/a",
            }
            assert log[1].headers is not None
            assert (log[1].headers["clientId"], log[1].headers["cleansessionflag"]) == ("", "false")


async def test_repeated_call_is_logged_once(mesh: Mesh, nats_server: NatsServer) -> None:
    await make_log(nats_server.url, "log")
    async with caller_of(mesh) as caller:
        for _ in range(2):  # also by the next process
            async with mesh.router(), FakeEdge(mesh, "one").running() as one:
                one.subscribe(1, "log/a")
                await one.settled()
                await mesh.serving()
                await caller.knows()
                await caller.publish(message(topic="log/a", qos=2))
                await caller.publish(message(topic="log/a", qos=2))
                assert one.payloads == [b"1", b"1"]
        assert [each.data for each in await read_log(nats_server.url, "log")] == [b"1"]


async def test_p2p_message_goes_to_its_client(mesh: Mesh) -> None:
    async with (
        mesh.router(),
        FakeEdge(mesh, "one").running() as one,
        FakeEdge(mesh, "two").running() as two,
        caller_of(mesh) as caller,
    ):
        one.subscribe(1, "#")
        two.connect_client(9, "GID_x@@@1")
        await one.settled()
        await two.settled()
        await mesh.serving()
        await caller.knows()
        await caller.publish(message(topic="p/p2p/GID_x@@@1"))
        assert [(each.topic, each.targets) for each in two.deliveries] == [("p/p2p/GID_x@@@1", [9])]
        assert not one.deliveries


async def test_answered_only_when_every_target_edge_confirmed(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, caller_of(mesh) as caller:
        one.subscribe(1, "p/a")
        await one.settled()
        await mesh.serving()
        await caller.knows()
        one.is_confirming = False
        async with asyncio.TaskGroup() as group:
            call = group.create_task(caller.publish(message(), message(topic="nobody", message_id="m-2")))
            await until(lambda: bool(one.deliveries))
            await caller.publish(message(topic="other", message_id="m-3"))
            assert not call.done()
            one.confirm()


async def test_edge_that_does_not_confirm_ends_the_call_before_its_deadline(mesh: Mesh) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, caller_of(mesh) as caller:
        one.subscribe(1, "p/a")
        await one.settled()
        await mesh.serving()
        await caller.knows()
        one.is_confirming = False
        with pytest.raises(UnavailableError) as error:
            await caller.publish(message(), timeout_s=2)
        assert error.value.metadata == {"dependency": "edges"}
        one.confirm()
        await caller.publish(message())


async def test_call_without_a_deadline_ends(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "DEFAULT_WAIT_S", 0.3)
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, caller_of(mesh) as caller:
        one.subscribe(1, "p/a")
        await one.settled()
        await mesh.serving()
        await caller.knows()
        one.is_confirming = False
        with pytest.raises(UnavailableError):
            await caller.publish(message(), timeout_s=None)


@pytest.mark.parametrize("instance_id", ["i", "a_b.c d/*>"])
async def test_retained_message_is_stored_and_found(mesh: Mesh, auth: FakeAuth, instance_id: str) -> None:
    for each in (instance_id, "other"):
        auth.put_instance(each)
        auth.put_topic(each, "p", logged=False)
    async with caller_of(mesh) as caller:
        async with mesh.router():
            await mesh.serving()
            await caller.knows()
            await caller.publish(
                message(retain=True, instance_id=instance_id),
                message(retain=True, instance_id=instance_id, topic="p/b", message_id="m-2"),
                message(retain=True, instance_id="other", topic="p/c", message_id="m-3"),
            )
            await caller.publish(message(retain=True, instance_id=instance_id, payload=b"", message_id="m-4"))
        async with mesh.router(), FakeEdge(mesh, "one").running() as one:
            query = router_pb2.RetainedQuery(query_id=7, instance_id=instance_id, topic_filter="#")
            one.send(router_pb2.LinkRequest(retained_queries=[query]))
            await until(lambda: bool(one.deliveries))
            assert [(each.topic, each.flags) for each in one.deliveries] == [("p/b", 5)]


@pytest.mark.parametrize("changes", [{"topic": "log/a"}, {"retain": True}])
async def test_nats_down_is_unavailable(mesh: Mesh, nats_server: NatsServer, changes: dict[str, Any]) -> None:
    await make_log(nats_server.url, "log")
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, caller_of(mesh) as caller:
        one.subscribe(1, "#")
        await one.settled()
        await mesh.serving()
        await caller.knows()
        await asyncio.to_thread(nats_server.kill)
        await until_not_serving(mesh)
        began = time.monotonic()
        with pytest.raises(UnavailableError) as error:
            await caller.publish(message(**changes), timeout_s=4)
        assert time.monotonic() - began < 4
        assert error.value.metadata == {"dependency": "nats"}
        await caller.publish(message())  # needs no NATS
        assert one.payloads == [b"1"]
        await asyncio.to_thread(nats_server.start)
        await mesh.serving()
        await caller.knows()
        await caller.publish(message(**changes))


async def test_nats_that_does_not_answer_is_unavailable_within_the_deadline(
    mesh: Mesh, nats_server: NatsServer
) -> None:
    await make_log(nats_server.url, "log")
    async with mesh.router(), caller_of(mesh) as caller:
        await mesh.serving()
        await caller.knows()
        nats_server.pause()
        try:
            with pytest.raises(UnavailableError):
                await caller.publish(message(topic="log/a"), timeout_s=2)
        finally:
            nats_server.resume()
        await caller.publish(message(topic="log/a"))
        assert len(await read_log(nats_server.url, "log")) == 1


async def test_router_that_waits_for_its_edges_is_not_serving(mesh: Mesh, nats_server: NatsServer) -> None:
    await asyncio.to_thread(nats_server.kill)
    async with mesh.router(), caller_of(mesh) as caller, FakeEdge(mesh, "one").running():
        with pytest.raises(NotServingError):
            await caller.publish(message(qos=0))
        with pytest.raises(InvalidFieldError):
            await caller.publish()
        await asyncio.to_thread(nats_server.start)
        await mesh.serving()
        await caller.knows()
        await caller.publish(message())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"instance_id": ""}, "instance_id"),
        ({"instance_id": "i" * 129}, "instance_id"),
        ({"topic": ""}, "topic"),
        ({"topic": "a/+"}, "topic"),
        ({"topic": "a\0"}, "topic"),
        ({"topic": "a" * 65_536}, "topic"),
        ({"qos": 3}, "qos"),
        ({"qos": -1}, "qos"),
        ({"client_id": "c" * 65_536}, "client_id"),
        ({"message_id": ""}, "message_id"),
        ({"message_id": "m" * 129}, "message_id"),
        ({"message_id": "é"}, "message_id"),
        ({"message_id": "a\r\nqoslevel: 0"}, "message_id"),
        ({"message_id": "m-1"}, "message_id"),
    ],
)
async def test_invalid_field_is_named_and_nothing_is_routed(mesh: Mesh, changes: dict[str, Any], field: str) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, caller_of(mesh) as caller:
        one.subscribe(1, "#")
        await one.settled()
        await mesh.serving()
        await caller.knows()
        with pytest.raises(InvalidFieldError) as error:
            await caller.publish(message(), message(**{"message_id": "m-2", **changes}))
        assert error.value.metadata == {"field": f"messages[1].{field}"}
        await caller.publish(message(payload=b"valid"))
        assert one.payloads == [b"valid"]


@pytest.mark.parametrize("count", [0, 1001])
async def test_number_of_messages_is_bounded(mesh: Mesh, count: int) -> None:
    async with mesh.router(), caller_of(mesh) as caller:
        await mesh.serving()
        await caller.knows()
        with pytest.raises(InvalidFieldError) as error:
            await caller.publish(*(message(message_id=f"m-{number}") for number in range(count)))
        assert error.value.metadata == {"field": "messages"}
        await caller.publish(*(message(message_id=f"m-{number}") for number in range(1000)))


async def test_call_without_the_cluster_token_is_refused(mesh: Mesh) -> None:
    async with mesh.router(), aio.insecure_channel(mesh.address) as opened:
        await mesh.serving()
        with pytest.raises(aio.AioRpcError) as error:
            await router_pb2_grpc.RouterServiceStub(opened).Publish(router_pb2.PublishRequest(messages=[message()]))
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def will(number: int, **identity: Any) -> router_pb2.PublishedMessage:
    """Return a will on `own/a` of a client of the account `acc`, with an AccessKey and two tokens."""
    who: dict[str, Any] = {"account_id": "acc", "access_key_id": "key", "token_ids": ["t-1", "t-2"], **identity}
    return message(
        topic="own/a",
        payload=b"%d" % number,
        message_id=f"will-{number}",
        client_id="GID_own@@@1",
        publisher=router_pb2.PublisherIdentity(**who),
    )


def give(auth: FakeAuth) -> None:
    """Give the account `acc` what its client needs to publish its will."""
    topic = auth_pb2.TopicPolicy(instance_id="i", topic="own", account_id="acc")
    auth.tell(topics=[topic], revoked_token_ids=["t-1"])
    auth.put_group("i", "GID_own", "acc")
    auth.put_key("i", "key", "acc", topic_filters=["own/+"])


KEY = auth_pb2.AccessKeyPolicy(instance_id="i", access_key_id="key", account_id="acc", publish=True)
LOSSES: dict[str, dict[str, Any]] = {
    "key removed": {"removed_access_keys": [KEY]},
    "key of another account": {
        "access_keys": [auth_pb2.AccessKeyPolicy(instance_id="i", access_key_id="key", account_id="b", publish=True)]
    },
    "key may not publish": {
        "access_keys": [auth_pb2.AccessKeyPolicy(instance_id="i", access_key_id="key", account_id="acc")]
    },
    "key narrowed": {
        "access_keys": [
            auth_pb2.AccessKeyPolicy(
                instance_id="i", access_key_id="key", account_id="acc", publish=True, topic_filters=["own/b"]
            )
        ]
    },
    "group removed": {"removed_groups": [auth_pb2.GroupPolicy(instance_id="i", group_id="GID_own")]},
    "tokens revoked": {"revoked_token_ids": ["t-2"]},
    "topic removed": {"removed_topics": [auth_pb2.TopicPolicy(instance_id="i", topic="own")]},
    "topic of another account": {"topics": [auth_pb2.TopicPolicy(instance_id="i", topic="own", account_id="b")]},
    "instance removed": {"removed_instance_ids": ["i"]},
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
async def test_message_of_a_client_is_judged_when_it_is_sent(mesh: Mesh, auth: FakeAuth, loss: dict[str, Any]) -> None:
    give(auth)
    auth.put_instance("second")
    auth.put_topic("second", "p", logged=False)
    async with mesh.router(), FakeEdge(mesh, "one").running() as edge, caller_of(mesh) as caller:
        edge.subscribe(1, "#")
        edge.subscribe(2, "#", instance_id="second")
        await edge.settled()
        await mesh.serving()
        async with asyncio.timeout(30):
            while True:  # until the router knows what exists
                with contextlib.suppress(NotServingError, UnavailableError):
                    await caller.publish(will(0))
                    break
                await asyncio.sleep(0.01)
        assert edge.payloads == [b"0"]
        auth.tell(**loss)
        number = 0
        async with asyncio.timeout(30):
            while len(edge.payloads) == number + 1:  # until it has heard of it
                number += 1
                await caller.publish(will(number))  # answered, so that it is not repeated
        # One without a publisher is another system's, and what is allowed in the same call goes its way.
        await caller.publish(will(1000), message(instance_id="second", message_id="m-other", payload=b"other"))
        assert edge.payloads == [*(b"%d" % n for n in range(number)), b"other"]


async def test_messages_wait_until_the_router_knows_what_exists(mesh: Mesh) -> None:
    mesh._settings = dataclasses.replace(mesh._settings, auth="unix:/nowhere")
    async with mesh.router(), FakeEdge(mesh, "one").running() as edge, caller_of(mesh) as caller:
        edge.subscribe(1, "#")
        await edge.settled()
        await mesh.serving()
        for each in (will(0), message()):
            with pytest.raises((NotServingError, UnavailableError)):
                await caller.publish(each)
        assert not edge.deliveries


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instance_id": "nowhere"}, "unknown instance"),
        ({"topic": "nothing/a"}, "unknown parent topic"),
        ({"topic": "p/" + "x" * 63}, "the topic has 65 characters, 64 are allowed"),
        ({"payload": bytes(65_537)}, "the payload has 65537 bytes, 65536 are allowed"),
    ],
)
async def test_rules_of_the_instance_hold_and_nothing_is_routed(
    mesh: Mesh, changes: dict[str, Any], reason: str
) -> None:
    async with mesh.router(), FakeEdge(mesh, "one").running() as one, caller_of(mesh) as caller:
        one.subscribe(1, "#")
        await one.settled()
        await mesh.serving()
        await caller.knows()
        with pytest.raises(InvalidFieldError, match=reason) as error:
            await caller.publish(message(), message(**{"message_id": "m-2", **changes}))
        assert error.value.metadata == {"field": "messages[1]"}
        assert not one.deliveries


@pytest.mark.parametrize("clean_session", [True, False])
async def test_p2p_message_is_kept_by_the_shard_when_the_flag_says_so(mesh: Mesh, *, clean_session: bool) -> None:
    mesh._settings = dataclasses.replace(mesh._settings, shard_count=1)
    shard = FakeEdge(mesh, "session-0", shard=router_pb2.SessionShard(index=0, count=1))
    async with mesh.router(), FakeEdge(mesh, "one").running(), shard.running(), caller_of(mesh) as caller:
        await shard.settled()
        await mesh.serving()
        await caller.knows()
        for n, client in enumerate(("GID_x@@@1", "GID_none@@@1")):
            topic = f"p/p2p/{client}"
            await caller.publish(message(topic=topic, clean_session=clean_session, message_id=f"m-{n}"))
        kept = [] if clean_session else [("p/p2p/GID_x@@@1", 1 | 8)]
        await until(lambda: [(each.topic, each.flags) for each in shard.deliveries] == kept)
