"""`weimq.auth.v1.AuthService`: every call, every status, over real gRPC and real NATS."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from grpc import StatusCode, aio

from services.auth import app, watchers
from services.auth.domain import tokens
from services.common import errors, grpc_client, grpc_errors
from services.common.healthcheck import is_serving
from services.common.runtime import background
from services.common.settings import Secret
from services.common.signature import sign
from tests.support.auth import TOKEN, AuthService, health_is, in_time, running_auth, settings
from tests.support.nats import NatsServer, running_server, unique
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc, resource_pb2, resource_pb2_grpc

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def nats_of_module() -> Iterator[str]:
    """Give this module its own server: the bucket of resources has one name only."""
    with running_server() as server:
        yield server.url


@pytest_asyncio.fixture
async def service(nats_of_module: str) -> AsyncGenerator[AuthService]:
    async with running_auth(nats_of_module) as running:
        yield running


@contextlib.contextmanager
def refused(code: StatusCode, error_type: type[errors.DomainError]) -> Generator[None]:
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    assert type(grpc_errors.from_rpc_error(caught.value)) is error_type


def signed(client_id: str, access_key_id: str, secret: str, instance_id: str) -> auth_pb2.ConnectAttempt:
    return auth_pb2.ConnectAttempt(
        client_id=client_id,
        user_name=f"Signature|{access_key_id}|{instance_id}",
        password=sign(secret, client_id).encode(),
        address="127.0.0.1:1",
    )


async def authenticate(service: AuthService, *attempts: auth_pb2.ConnectAttempt) -> list[auth_pb2.ConnectResult]:
    return list((await service.auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=attempts))).results)


# Authenticate


async def test_attempts_are_answered_in_order(service: AuthService) -> None:
    name, standard = unique("inst-"), unique("std-")
    await service.create_instance(name)
    await service.create_instance(standard, auth_pb2.PROFILE_STANDARD, anonymous=True)
    await service.create_group(name, "GID_mine", "mine")
    await service.create_group(name, "GID_yours", "yours")
    access_key_id, secret = await service.create_key(name, "mine")
    results = await authenticate(
        service,
        signed("GID_mine@@@1", access_key_id, secret, name),
        signed("GID_yours@@@1", access_key_id, secret, name),
        signed("device", access_key_id, secret, name),
        signed("GID_mine@@@1", access_key_id, "guess", name),
        signed("GID_mine@@@1", "AKguess", secret, name),
        signed("GID_mine@@@1", access_key_id, secret, "nowhere"),
        auth_pb2.ConnectAttempt(client_id="", default_instance_id=standard),
        auth_pb2.ConnectAttempt(client_id="x", user_name="bob", password=b"pw", default_instance_id=standard),
        auth_pb2.ConnectAttempt(client_id="GID_mine@@@1", user_name=f"Token|{access_key_id}|{name}", password=b"R|t"),
        auth_pb2.ConnectAttempt(client_id="GID_mine@@@1", user_name=f"Token|{access_key_id}|{name}"),
    )
    assert [result.outcome for result in results] == [
        auth_pb2.CONNECT_OUTCOME_ACCEPTED,
        auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED,
        auth_pb2.CONNECT_OUTCOME_IDENTIFIER_REJECTED,
        auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS,
        auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS,
        auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS,
        auth_pb2.CONNECT_OUTCOME_ACCEPTED,
        auth_pb2.CONNECT_OUTCOME_ACCEPTED,
        auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS,
        auth_pb2.CONNECT_OUTCOME_ACCEPTED,
    ]
    assert [(result.access_key_id, result.token_mode) for result in (results[0], results[6], results[9])] == [
        (access_key_id, False),
        ("", False),
        (access_key_id, True),
    ]
    assert (results[0].instance_id, results[0].account_id, results[0].reason) == (name, "mine", "")
    assert (results[6].instance_id, results[6].account_id) == (standard, "")
    for result in results:
        if result.outcome != auth_pb2.CONNECT_OUTCOME_ACCEPTED:
            assert result.reason
            assert secret not in result.reason
            assert (result.instance_id, result.account_id) == ("", "")


async def test_a_deleted_key_or_group_lets_nobody_in_any_more(service: AuthService) -> None:
    name = unique("inst-")
    await service.create_instance(name)
    await service.create_group(name, "GID_demo")
    access_key_id, secret = await service.create_key(name)
    attempt = signed("GID_demo@@@1", access_key_id, secret, name)
    assert (await authenticate(service, attempt))[0].outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED
    await service.resources.DeleteGroup(resource_pb2.DeleteGroupRequest(instance_id=name, group_id="GID_demo"))
    assert (await authenticate(service, attempt))[0].outcome == auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED
    await service.resources.DeleteAccessKey(
        resource_pb2.DeleteAccessKeyRequest(instance_id=name, access_key_id=access_key_id)
    )
    assert (await authenticate(service, attempt))[0].outcome == auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS


async def test_the_number_of_attempts_is_bounded(service: AuthService) -> None:
    attempt = auth_pb2.ConnectAttempt(client_id="x")
    assert len(await authenticate(service, *[attempt] * 1_000)) == 1_000
    for wrong in (0, 1_001):
        with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError):
            await authenticate(service, *[attempt] * wrong)


async def test_a_stream_answers_request_after_request(service: AuthService) -> None:
    name = unique("inst-")
    await service.create_instance(name)
    await service.create_group(name, "GID_mine", "mine")
    access_key_id, secret = await service.create_key(name, "mine")
    good = signed("GID_mine@@@1", access_key_id, secret, name)
    bad = signed("GID_mine@@@1", access_key_id, "guess", name)
    call = service.auth.AuthenticateStream(metadata=grpc_client.call_metadata(TOKEN))
    for attempts in ([good, bad], [bad], [good]):
        await call.write(auth_pb2.AuthenticateStreamRequest(attempts=attempts))
    answers = [await call.read() for _ in range(3)]
    assert [
        [result.outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED for result in answer.results]
        for answer in answers
        if isinstance(answer, auth_pb2.AuthenticateStreamResponse)
    ] == [[True, False], [False], [True]]
    await call.write(auth_pb2.AuthenticateStreamRequest())
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError):
        await call.read()


async def test_a_stream_merges_equal_results_for_those_who_ask_for_that(service: AuthService) -> None:
    name = unique("inst-")
    await service.create_instance(name)
    attempts, expected = [], []
    for account in ("mine", "yours"):
        await service.create_group(name, f"GID_{account}", account)
        key = await service.create_key(name, account)
        for number in range(3):
            attempts.append(signed(f"GID_{account}@@@{number}", *key, name))
            expected.append((auth_pb2.CONNECT_OUTCOME_ACCEPTED, name, account, key[0]))
        attempts.append(signed(f"GID_{account}@@@x", key[0], "guess", name))
        expected.append((auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS, "", "", ""))
    order = [7, 2, 4, 1, 6, 0, 3, 5]
    call = service.auth.AuthenticateStream(metadata=grpc_client.call_metadata(TOKEN))
    asked = [attempts[index] for index in order]
    await call.write(auth_pb2.AuthenticateStreamRequest(attempts=asked, merges_results=True))
    answer = await call.read()
    assert isinstance(answer, auth_pb2.AuthenticateStreamResponse)
    found = [answer.results[index] for index in answer.result_indexes]
    assert [(each.outcome, each.instance_id, each.account_id, each.access_key_id) for each in found] == [
        expected[index] for index in order
    ]
    assert len(answer.results) == 4  # two AccessKeys, and two refusals


async def test_before_the_resources_are_loaded_every_call_is_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.kill()
    address = f"unix:{tmp_path}/auth.sock"
    stop = asyncio.Event()
    async with background(app.serve(settings(nats_server.url, listen=address), stop)):
        async with grpc_client.channel(address, TOKEN) as channel:
            auth = auth_pb2_grpc.AuthServiceStub(channel)
            resources = resource_pb2_grpc.ResourceServiceStub(channel)
            attempts = [auth_pb2.ConnectAttempt(client_id="x")]
            with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
                await auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=attempts), wait_for_ready=True)
            with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
                await auth.AuthorizeQuery(auth_pb2.AuthorizeQueryRequest())
            with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
                await auth.WatchResources(auth_pb2.WatchResourcesRequest()).read()
            with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
                await resources.ListInstances(resource_pb2.ListInstancesRequest())
            with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
                await resources.CreateGroup(resource_pb2.CreateGroupRequest())
            assert not await is_serving(address)
            await asyncio.to_thread(nats_server.start)
            await health_is(address, serving=True)
            await auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=attempts))
        stop.set()


async def test_clients_are_still_checked_while_nats_is_away(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        await service.create_group("one", "GID_demo")
        access_key_id, secret = await service.create_key("one")
        await asyncio.to_thread(nats_server.kill)
        await health_is(service.address, serving=False)
        attempt = signed("GID_demo@@@1", access_key_id, secret, "one")
        assert (await authenticate(service, attempt))[0].outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED


# AuthorizeQuery


async def test_queries(service: AuthService) -> None:
    name = unique("inst-")
    await service.create_instance(name)
    await service.create_group(name, "GID_mine", "mine")
    await service.create_group(name, "GID_yours", "yours")
    access_key_id, secret = await service.create_key(name, "mine")
    text = f"accessKey={access_key_id}&instanceId={name}&resource=GID_mine@@@1&timestamp=1555329600000"
    good = auth_pb2.AuthorizeQueryRequest(
        instance_id=name,
        access_key_id=access_key_id,
        client_id="GID_mine@@@1",
        signed_text=text,
        signature=sign(secret, text),
    )
    for change, outcome in {
        "": auth_pb2.QUERY_OUTCOME_ALLOWED,
        "signed_text": auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE,
        "signature": auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE,
        "access_key_id": auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE,
        "instance_id": auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE,
    }.items():
        request = auth_pb2.AuthorizeQueryRequest()
        request.CopyFrom(good)
        if change:
            setattr(request, change, "other")
        assert (await service.auth.AuthorizeQuery(request)).outcome == outcome, change
    for client_id in ("GID_yours@@@1", "GID_none@@@1", "device", ""):
        good.client_id = client_id
        answer = await service.auth.AuthorizeQuery(good)
        assert answer.outcome == auth_pb2.QUERY_OUTCOME_GROUP_NOT_OWNED, client_id


async def test_who_guesses_is_not_checked_for_a_while(nats_of_module: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running_auth(nats_of_module, free_failures=2) as service:
        name = unique("inst-")
        await service.create_instance(name)
        await service.create_group(name, "GID_mine", "mine")
        access_key_id, secret = await service.create_key(name, "mine")

        def attempt(client_id: str, host: str, secret: str) -> auth_pb2.ConnectAttempt:
            made = signed(client_id, access_key_id, secret, name)
            made.address = f"{host}:1"
            return made

        accepted, bad = auth_pb2.CONNECT_OUTCOME_ACCEPTED, auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS
        guesses = [attempt("GID_mine@@@2", "10.0.0.1", "guess")] * 3
        results = await authenticate(
            service,
            attempt("GID_mine@@@1", "10.0.0.1", secret),
            *guesses,
            attempt("GID_mine@@@2", "10.0.0.1", secret),
            attempt("GID_mine@@@1", "10.0.0.1", secret),
            attempt("GID_mine@@@2", "10.0.0.2", secret),
        )
        assert [result.outcome for result in results] == [accepted, bad, bad, bad, bad, accepted, accepted]
        assert "not checked" in results[4].reason
        assert [record.message for record in caplog.records].count("too many failures: waiting") == 1

        async def admitted() -> bool:
            (result,) = await authenticate(service, attempt("GID_mine@@@2", "10.0.0.1", secret))
            return bool(result.outcome == accepted)

        await in_time(admitted, "the address is checked again")


async def test_expired_and_revoked_tokens_are_no_guesses(nats_of_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MIN_LIFETIME_MS", -10_000)
    async with running_auth(nats_of_module, free_failures=2) as service:
        name = unique("inst-")
        await service.create_instance(name)
        await service.create_group(name, "GID_mine")
        access_key_id, _ = await service.create_key(name)
        expired = (await service.apply_token(name, access_key_id, "demo", lifetime_s=-1)).token
        good = (await service.apply_token(name, access_key_id, "demo")).token
        attempts = [
            auth_pb2.ConnectAttempt(
                client_id="GID_mine@@@1",
                user_name=f"Token|{access_key_id}|{name}",
                password=f"RW|{token}".encode(),
                address="10.0.0.3:1",
            )
            for token in (expired, expired, expired, expired, good)
        ]
        results = await authenticate(service, *attempts)
        assert results[4].outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED
        assert {result.reason for result in results[:4]} == {"token RW: expired"}


async def test_who_guesses_signatures_of_queries_is_not_checked_for_a_while(nats_of_module: str) -> None:
    async with running_auth(nats_of_module, free_failures=2) as service:
        name = unique("inst-")
        await service.create_instance(name)
        access_key_id, secret = await service.create_key(name)

        async def outcome(host: str, secret: str) -> int:
            request = auth_pb2.AuthorizeQueryRequest(
                instance_id=name,
                access_key_id=access_key_id,
                client_id="GID_mine@@@1",
                signed_text="x",
                signature=sign(secret, "x"),
                address=f"{host}:1" if host else "",
            )
            return (await service.auth.AuthorizeQuery(request)).outcome

        bad, not_owned = auth_pb2.QUERY_OUTCOME_BAD_SIGNATURE, auth_pb2.QUERY_OUTCOME_GROUP_NOT_OWNED
        assert [await outcome("10.0.0.4", "guess") for _ in range(3)] == [bad] * 3
        assert await outcome("10.0.0.4", secret) == bad
        assert await outcome("10.0.0.5", secret) == not_owned
        assert [await outcome("", "guess") for _ in range(3)] == [bad] * 3
        assert await outcome("", secret) == not_owned


# CheckTokens


async def test_tokens_are_answered_in_order_by_code(service: AuthService) -> None:
    check = auth_pb2.TokenCheck(instance_id="i", access_key_id="k", type=auth_pb2.TOKEN_TYPE_READ, token="forged")
    unknown = auth_pb2.TokenCheck(instance_id="i", access_key_id="k", token="forged")
    results = (await service.auth.CheckTokens(auth_pb2.CheckTokensRequest(tokens=[check, unknown]))).results
    assert list(results) == [auth_pb2.TokenResult(code=1), auth_pb2.TokenResult(code=5)]


@pytest.mark.parametrize("count", [0, 1_001])
async def test_the_number_of_tokens_is_checked(service: AuthService, count: int) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError):
        await service.auth.CheckTokens(auth_pb2.CheckTokensRequest(tokens=[auth_pb2.TokenCheck()] * count))


# WatchResources


class Watch:
    """An edge's side of the stream: keeps a view as the proto says."""

    def __init__(self, service: AuthService) -> None:
        self._call = service.auth.WatchResources(auth_pb2.WatchResourcesRequest())
        self.instances: dict[str, auth_pb2.InstancePolicy] = {}
        self.topics: dict[tuple[str, str], auth_pb2.TopicPolicy] = {}
        self.messages: list[auth_pb2.WatchResourcesResponse] = []

    async def read(self) -> auth_pb2.WatchResourcesResponse:
        """Take one message over."""
        async with asyncio.timeout(20):
            message = await self._call.read()
        assert isinstance(message, auth_pb2.WatchResourcesResponse), "the stream ended"
        self.messages.append(message)
        for instance in message.instances:
            self.instances[instance.instance_id] = instance
        for instance_id in message.removed_instance_ids:
            del self.instances[instance_id]
            self.topics = {key: topic for key, topic in self.topics.items() if key[0] != instance_id}
        for topic in message.topics:
            assert topic.instance_id in self.instances, "a topic came before its instance"
            self.topics[topic.instance_id, topic.topic] = topic
        for topic in message.removed_topics:
            del self.topics[topic.instance_id, topic.topic]
        return message

    async def snapshot(self) -> None:
        """Read until the snapshot is complete."""
        while not (await self.read()).snapshot_complete:
            pass

    async def change(self) -> auth_pb2.WatchResourcesResponse:
        """Read until something changes; a beat says how old the view is, and on a busy machine that is not 0."""
        while True:
            message = await self.read()
            if {field.name for field, _ in message.ListFields()} - {"view_age_ms", "revision"}:
                return message

    def cancel(self) -> None:
        self._call.cancel()


async def test_a_watch_brings_everything_then_every_change(service: AuthService) -> None:
    name, standard = unique("inst-"), unique("std-")
    await service.create_instance(name)
    await service.create_topic(name, "demo")
    watch = Watch(service)
    await watch.snapshot()
    assert watch.instances[name] == auth_pb2.InstancePolicy(
        instance_id=name,
        profile=auth_pb2.PROFILE_LMQ,
        max_topic_characters=64,
        max_payload_bytes=65_536,
        max_subscriptions=30,
        offline_batch_messages=30,
        offline_batch_interval_ms=5_000,
        acknowledgement_timeout_ms=5_000,
        offline_retention_ms=259_200_000,
        max_offline_messages=1_000_000,
        session_expiry_ms=2_592_000_000,
    )
    assert watch.topics[name, "demo"] == auth_pb2.TopicPolicy(
        instance_id=name, topic="demo", account_id="default", logged=True
    )
    assert sum(message.snapshot_complete for message in watch.messages) == 1

    await service.create_topic(name, "fast", logged=False, ordered=True)
    assert list((await watch.change()).topics) == [
        auth_pb2.TopicPolicy(instance_id=name, topic="fast", account_id="default", ordered=True)
    ]
    await service.create_instance(standard, auth_pb2.PROFILE_STANDARD, anonymous=True)
    await watch.change()
    policy = watch.instances[standard]
    assert (policy.profile, policy.takeover, policy.refuse_filters) == (auth_pb2.PROFILE_STANDARD, True, True)
    assert (policy.max_topic_characters, policy.strict_order, policy.offline_batch_messages) == (0, True, 0)

    await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id=name, topic="demo"))
    assert list((await watch.change()).removed_topics) == [auth_pb2.TopicPolicy(instance_id=name, topic="demo")]
    await service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=name, force=True))
    assert list((await watch.change()).removed_instance_ids) == [name]
    assert not any(key[0] == name for key in watch.topics)
    watch.cancel()


async def test_a_watch_tells_of_groups_and_keys(service: AuthService) -> None:
    name = unique("inst-")
    await service.create_instance(name)
    await service.create_group(name, "GID_first", "mine")
    access_key_id, _ = await service.create_key(name, "mine")
    watch = Watch(service)
    await watch.snapshot()
    first = auth_pb2.GroupPolicy(instance_id=name, group_id="GID_first", account_id="mine")
    (made,) = (await service.resources.ListAccessKeys(resource_pb2.ListAccessKeysRequest(instance_id=name))).access_keys
    key = auth_pb2.AccessKeyPolicy(
        instance_id=name,
        access_key_id=access_key_id,
        account_id="mine",
        publish=True,
        subscribe=True,
        create_time_ms=made.create_time_ms,
    )
    assert made.create_time_ms
    assert first in [group for message in watch.messages for group in message.groups]
    assert key in [one for message in watch.messages for one in message.access_keys]

    second = await service.create_group(name, "GID_second")
    assert [group.group_id for group in (await watch.change()).groups] == [second.group_id]
    await service.resources.DeleteGroup(resource_pb2.DeleteGroupRequest(instance_id=name, group_id="GID_first"))
    removed = (await watch.change()).removed_groups
    assert list(removed) == [auth_pb2.GroupPolicy(instance_id=name, group_id="GID_first")]
    await service.resources.DeleteAccessKey(
        resource_pb2.DeleteAccessKeyRequest(instance_id=name, access_key_id=access_key_id)
    )
    removed_keys = (await watch.change()).removed_access_keys
    assert list(removed_keys) == [auth_pb2.AccessKeyPolicy(instance_id=name, access_key_id=access_key_id)]
    watch.cancel()


async def test_a_quiet_watch_beats_every_second(service: AuthService) -> None:
    watch = Watch(service)
    await watch.snapshot()
    begin = time.monotonic()
    for _ in range(3):
        message = await watch.read()
        assert {field.name for field, _ in message.ListFields()} <= {"view_age_ms", "revision"}
        assert message.view_age_ms < 5_000
    assert 1.2 < time.monotonic() - begin < 15
    watch.cancel()


async def test_a_snapshot_of_many_topics_comes_in_parts(service: AuthService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.auth.watch_messages.ITEMS_PER_MESSAGE", 2)
    name = unique("inst-")
    await service.create_instance(name)
    for number in range(5):
        await service.create_topic(name, f"topic{number}", logged=False)
    watch = Watch(service)
    await watch.snapshot()
    assert {topic for instance_id, topic in watch.topics if instance_id == name} == {f"topic{n}" for n in range(5)}
    assert all(len(message.topics) <= 2 for message in watch.messages)
    watch.cancel()


async def test_a_watcher_that_falls_behind_is_ended_with_unavailable(
    service: AuthService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "MAX_WAITING", 0)
    name = unique("inst-")
    watch = Watch(service)
    await watch.snapshot()
    await service.create_instance(name)
    with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
        await watch.change()


async def test_a_stopping_service_ends_its_watches_at_once(nats_of_module: str) -> None:
    stack = contextlib.AsyncExitStack()
    service = await stack.enter_async_context(running_auth(nats_of_module, drain_s=30))
    async with grpc_client.channel(service.address, TOKEN) as channel:
        call = auth_pb2_grpc.AuthServiceStub(channel).WatchResources(auth_pb2.WatchResourcesRequest())
        await call.read()
        begin = time.monotonic()
        await stack.aclose()
        assert time.monotonic() - begin < 15, "the open watch used up the grace of the other calls"
        with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
            while await call.read() is not aio.EOF:
                pass


async def test_a_stopping_service_ends_its_streams_at_once(nats_of_module: str) -> None:
    stack = contextlib.AsyncExitStack()
    service = await stack.enter_async_context(running_auth(nats_of_module, drain_s=30))
    async with grpc_client.channel(service.address, TOKEN) as channel:
        call = auth_pb2_grpc.AuthServiceStub(channel).AuthenticateStream(metadata=grpc_client.call_metadata(TOKEN))
        await call.write(auth_pb2.AuthenticateStreamRequest(attempts=[auth_pb2.ConnectAttempt(client_id="x")]))
        await call.read()
        begin = time.monotonic()
        await stack.aclose()
        assert time.monotonic() - begin < 15, "the open stream used up the grace of the other calls"
        with refused(StatusCode.UNAVAILABLE, errors.NotServingError):
            await call.read()


async def test_a_watch_survives_an_outage_of_nats_and_hears_what_changed(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service, running_auth(nats_server.url) as other:
        await service.create_instance("one")
        await service.create_topic("one", "gone")
        watch = Watch(other)
        await watch.snapshot()
        while ("one", "gone") not in watch.topics:
            await watch.read()
        await asyncio.to_thread(nats_server.restart)
        async with asyncio.timeout(20):
            while True:
                try:
                    await service.resources.DeleteTopic(
                        resource_pb2.DeleteTopicRequest(instance_id="one", topic="gone")
                    )
                except aio.AioRpcError as error:
                    if error.code() is StatusCode.NOT_FOUND:
                        break
                    await asyncio.sleep(0.02)
                else:
                    break
        while ("one", "gone") in watch.topics:
            await watch.read()
        assert "one" in watch.instances
        # Never torn down in between: edges would close every connection.
        assert not any(message.removed_instance_ids for message in watch.messages)
        watch.cancel()


async def test_a_watch_tells_how_old_its_view_is(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        watch = Watch(service)
        await watch.snapshot()
        revision = watch.messages[-1].revision
        assert revision > 0
        nats_server.kill()
        async with asyncio.timeout(20):
            while (await watch.read()).view_age_ms < 2_500:
                pass
        await asyncio.to_thread(nats_server.start)
        async with asyncio.timeout(20):
            while (message := await watch.read()).view_age_ms > 1_500:
                pass
        assert message.revision >= revision
        watch.cancel()


async def test_calls_need_the_cluster_token(service: AuthService) -> None:
    async with grpc_client.channel(service.address, Secret("not-the-cluster-token")) as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.AuthorizeQuery(auth_pb2.AuthorizeQueryRequest())
        assert caught.value.code() is StatusCode.UNAUTHENTICATED
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.WatchResources(auth_pb2.WatchResourcesRequest()).read()
        assert caught.value.code() is StatusCode.UNAUTHENTICATED
