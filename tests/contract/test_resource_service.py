"""`weimq.auth.v1.ResourceService`: every call, every status, over real gRPC and real NATS."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import nats.js.errors
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode, aio
from nats.js import JetStreamContext, api

from services.auth import bucket
from services.auth.domain import limits, records
from services.auth.domain.records import Topic
from services.auth.store import BUCKET
from services.common import errors, grpc_client, subjects
from services.common.settings import Secret
from services.common.signature import sign
from tests.support.auth import TOKEN, AuthService, health_is, in_time, refused, running_auth
from tests.support.nats import NatsServer, running_server, unique
from weimq.auth.v1 import auth_pb2, resource_pb2, resource_pb2_grpc

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


@pytest_asyncio.fixture
async def js(nats_of_module: str) -> AsyncGenerator[JetStreamContext]:
    client = await nats.connect(nats_of_module)
    yield client.jetstream()
    await client.close()


@pytest_asyncio.fixture
async def instance(service: AuthService) -> str:
    name = unique("inst-")
    await service.create_instance(name)
    return name


def invalid(field: str) -> contextlib.AbstractContextManager[None]:
    return refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field=field)


def missing(resource: str) -> contextlib.AbstractContextManager[None]:
    return refused(StatusCode.NOT_FOUND, errors.NotFoundError, resource=resource)


def exists(resource: str) -> contextlib.AbstractContextManager[None]:
    return refused(StatusCode.ALREADY_EXISTS, errors.AlreadyExistsError, resource=resource)


async def stream_config(js: JetStreamContext, name: str) -> api.StreamConfig:
    return (await js.stream_info(name)).config


async def has_stream(js: JetStreamContext, name: str) -> bool:
    try:
        await js.stream_info(name)
    except nats.js.errors.NotFoundError:
        return False
    return True


# Instances


async def test_an_instance_is_created_with_its_stream_of_events(service: AuthService, js: JetStreamContext) -> None:
    name = unique("inst_")
    created = await service.create_instance(name)
    assert (created.instance_id, created.profile, created.max_subscriptions) == (name, auth_pb2.PROFILE_LMQ, 30)
    assert created.create_time_ms > 1_600_000_000_000
    listed = (await service.resources.ListInstances(resource_pb2.ListInstancesRequest())).instances
    assert created in listed
    assert [i.instance_id for i in listed] == sorted(i.instance_id for i in listed)
    config = await stream_config(js, subjects.event_stream(name))
    assert config.subjects == [subjects.event_filter(name)]
    assert (config.storage, config.max_age, config.duplicate_window) == (api.StorageType.FILE, 259_200, 600)


async def test_the_profile_defaults_to_lmq_and_standard_may_be_anonymous(service: AuthService) -> None:
    first = await service.create_instance(unique("inst-"), auth_pb2.PROFILE_UNSPECIFIED)
    assert first.profile == auth_pb2.PROFILE_LMQ
    second = await service.create_instance(unique("inst-"), auth_pb2.PROFILE_STANDARD, anonymous=True)
    assert (second.profile, second.anonymous) == (auth_pb2.PROFILE_STANDARD, True)


async def test_an_instance_is_created_once(service: AuthService, instance: str) -> None:
    with exists(f"instance/{instance}"):
        await service.create_instance(instance)


@pytest.mark.parametrize("name", ["", "ab", "a.b", "a b", "x" * 65, "ünïcode", "a>b"])
async def test_an_instance_id_is_checked(service: AuthService, name: str) -> None:
    with invalid("instance.instance_id"):
        await service.create_instance(name)


async def test_anonymous_needs_the_standard_profile(service: AuthService) -> None:
    with invalid("instance.anonymous"):
        await service.create_instance(unique("inst-"), anonymous=True)


async def test_an_unknown_profile_is_refused(service: AuthService) -> None:
    with invalid("instance.profile"):
        await service.create_instance(unique("inst-"), 99)  # type: ignore[arg-type]  # of a later version


async def update(service: AuthService, instance_id: str, **changes: Any) -> resource_pb2.Instance:
    wanted = resource_pb2.Instance(instance_id=instance_id, **changes)
    request = resource_pb2.UpdateInstanceRequest(instance=wanted, update_mask=FieldMask(paths=list(changes)))
    return (await service.resources.UpdateInstance(request)).instance


async def test_every_limit_is_settable_and_told_to_edges(service: AuthService, nats_of_module: str) -> None:
    name = unique("inst-")
    await service.create_instance(name, auth_pb2.PROFILE_STANDARD)
    changes: dict[str, Any] = {limit: low + 1 for limit, (low, _) in limits.RANGES.items()}
    changes |= {"anonymous": True, "takeover": False, "refuse_filters": False, "strict_order": False}
    assert changes.keys() == limits.SETTABLE
    assert {field.name for field in resource_pb2.Instance.DESCRIPTOR.fields} == limits.SETTABLE | {
        "instance_id",
        "profile",
        "create_time_ms",
    }
    updated = await update(service, name, **changes)
    assert {limit: getattr(updated, limit) for limit in changes} == changes
    assert updated.profile == auth_pb2.PROFILE_STANDARD
    async with running_auth(nats_of_module) as other:
        watch = other.auth.WatchResources(auth_pb2.WatchResourcesRequest())
        policies: dict[str, auth_pb2.InstancePolicy] = {}
        async for message in watch:
            policies |= {policy.instance_id: policy for policy in message.instances}
            if message.snapshot_complete:
                break
        watch.cancel()
    policy = policies[name]
    told = {field.name for field in auth_pb2.InstancePolicy.DESCRIPTOR.fields} - {"instance_id", "profile"}
    assert told == limits.SETTABLE - {"anonymous"}
    assert {limit: getattr(policy, limit) for limit in told} == {limit: changes[limit] for limit in told}


async def test_an_update_changes_what_the_mask_names_only(service: AuthService, instance: str) -> None:
    before = await update(service, instance, max_subscriptions=7)
    after = await update(service, instance, max_publish_rate=5)
    assert (after.max_subscriptions, after.max_publish_rate) == (7, 5)
    before.max_publish_rate = 5
    assert after == before


@pytest.mark.parametrize("limit", sorted(limits.RANGES))
async def test_a_limit_out_of_its_range_is_refused(service: AuthService, instance: str, limit: str) -> None:
    low, high = limits.RANGES[limit]
    for value in (low - 1, high + 1):
        if value <= (1 << 31) - 1 or limit in {"offline_retention_ms", "session_expiry_ms", "max_offline_messages"}:
            with invalid(f"instance.{limit}"):
                await update(service, instance, **{limit: value})


@pytest.mark.parametrize("paths", [[], ["instance_id"], ["profile"], ["create_time_ms"], ["max_subscriptions", "odd"]])
async def test_a_mask_that_names_nothing_settable_is_refused(
    service: AuthService, instance: str, paths: list[str]
) -> None:
    request = resource_pb2.UpdateInstanceRequest(
        instance=resource_pb2.Instance(instance_id=instance, max_subscriptions=9), update_mask=FieldMask(paths=paths)
    )
    with invalid("update_mask"):
        await service.resources.UpdateInstance(request)


async def test_an_lmq_instance_stays_closed_and_an_unknown_one_unknown(service: AuthService, instance: str) -> None:
    with invalid("instance.anonymous"):
        await update(service, instance, anonymous=True)
    with missing("instance/nowhere"):
        await update(service, "nowhere", takeover=True)


async def test_replicas_do_not_overwrite_each_others_changes(
    service: AuthService, instance: str, nats_of_module: str
) -> None:
    async with running_auth(nats_of_module) as other, asyncio.TaskGroup() as group:
        group.create_task(update(service, instance, max_subscriptions=7))
        group.create_task(update(other, instance, max_publish_rate=5))

    async def both() -> bool:
        listed = (await service.resources.ListInstances(resource_pb2.ListInstancesRequest())).instances
        return [(i.max_subscriptions, i.max_publish_rate) for i in listed if i.instance_id == instance] == [(7, 5)]

    await in_time(both, "both changes are there")


async def test_an_instance_that_owns_something_is_deleted_by_force_only(
    service: AuthService, instance: str, js: JetStreamContext
) -> None:
    await service.create_topic(instance, "demo")
    await service.create_group(instance, "GID_demo")
    await service.create_key(instance)
    with refused(StatusCode.FAILED_PRECONDITION, errors.InUseError, resource=f"instance/{instance}"):
        await service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=instance))
    assert await has_stream(js, subjects.log_stream(instance, "demo"))
    for router in range(2):  # made by routers
        name = subjects.kept_stream(instance, router)
        await js.add_stream(api.StreamConfig(name=name, subjects=[subjects.kept_subject(instance, router)]))
    await service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=instance, force=True))
    assert not await has_stream(js, subjects.log_stream(instance, "demo"))
    assert not await has_stream(js, subjects.kept_stream(instance, 0))
    assert not await has_stream(js, subjects.kept_stream(instance, 1))
    assert not await has_stream(js, subjects.event_stream(instance))
    with missing(f"instance/{instance}"):
        await service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=instance))
    # A new instance with the same id owns nothing of the old one.
    await service.create_instance(instance)
    await service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=instance))


# AccessKeys


async def test_an_access_key_shows_its_secret_once(service: AuthService, instance: str) -> None:
    request = resource_pb2.CreateAccessKeyRequest(instance_id=instance, access_key_id="AKmine", account_id="acc")
    created = await service.resources.CreateAccessKey(request)
    assert (created.access_key.access_key_id, created.access_key.account_id) == ("AKmine", "acc")
    assert len(created.secret) >= 24
    listed = await service.resources.ListAccessKeys(resource_pb2.ListAccessKeysRequest(instance_id=instance))
    assert list(listed.access_keys) == [created.access_key]
    with exists("accesskey/AKmine"):
        await service.resources.CreateAccessKey(request)


async def test_ids_and_secrets_are_random_and_the_account_is_default(service: AuthService, instance: str) -> None:
    pairs = [await service.create_key(instance) for _ in range(3)]
    assert len({key for key, _ in pairs}) == len({secret for _, secret in pairs}) == 3
    listed = await service.resources.ListAccessKeys(resource_pb2.ListAccessKeysRequest(instance_id=instance))
    assert {key.account_id for key in listed.access_keys} == {"default"}
    assert [key.access_key_id for key in listed.access_keys] == sorted(key for key, _ in pairs)


async def test_secrets_are_not_readable_in_nats(service: AuthService, instance: str, js: JetStreamContext) -> None:
    access_key_id, secret = await service.create_key(instance)
    entry = await (await js.key_value(BUCKET)).get(f"accesskey.{instance}.{access_key_id}")
    assert secret not in (entry.value or b"").decode()
    assert json.loads(entry.value or b"")["access_key_id"] == access_key_id


async def test_access_key_statuses(service: AuthService, instance: str) -> None:
    resources = service.resources
    with missing("instance/nowhere"):
        await service.create_key("nowhere")
    with invalid("instance_id"):
        await service.create_key("a b")
    with invalid("account_id"):
        await service.create_key(instance, "a b")
    with invalid("access_key_id"):
        await resources.CreateAccessKey(resource_pb2.CreateAccessKeyRequest(instance_id=instance, access_key_id="a|b"))
    with missing("accesskey/AKnone"):
        await resources.DeleteAccessKey(
            resource_pb2.DeleteAccessKeyRequest(instance_id=instance, access_key_id="AKnone")
        )
    with invalid("access_key_id"):
        await resources.DeleteAccessKey(resource_pb2.DeleteAccessKeyRequest(instance_id=instance))
    with invalid("instance_id"):
        await resources.ListAccessKeys(resource_pb2.ListAccessKeysRequest())


async def test_a_deleted_access_key_can_be_made_again_with_another_secret(service: AuthService, instance: str) -> None:
    request = resource_pb2.CreateAccessKeyRequest(instance_id=instance, access_key_id="AKagain")
    first = await service.resources.CreateAccessKey(request)
    await service.resources.DeleteAccessKey(
        resource_pb2.DeleteAccessKeyRequest(instance_id=instance, access_key_id="AKagain")
    )
    listed = await service.resources.ListAccessKeys(resource_pb2.ListAccessKeysRequest(instance_id=instance))
    assert not listed.access_keys
    assert (await service.resources.CreateAccessKey(request)).secret != first.secret


ALL, PUBLISH, SUBSCRIBE = (
    resource_pb2.ACCESS_KEY_PERMISSION_ALL,
    resource_pb2.ACCESS_KEY_PERMISSION_PUBLISH,
    resource_pb2.ACCESS_KEY_PERMISSION_SUBSCRIBE,
)


async def test_permissions_of_a_key_are_created_and_replaced_as_a_whole(service: AuthService, instance: str) -> None:
    made = await service.resources.CreateAccessKey(
        resource_pb2.CreateAccessKeyRequest(
            instance_id=instance, access_key_id="AKone", permission=PUBLISH, topic_filters=["demo/+"]
        )
    )
    assert (made.access_key.permission, list(made.access_key.topic_filters)) == (PUBLISH, ["demo/+"])
    watch = service.auth.WatchResources(auth_pb2.WatchResourcesRequest())
    policies: list[tuple[bool, bool, list[str]]] = []

    async def next_policy() -> tuple[bool, bool, list[str]]:
        while not policies:
            message = await watch.read()
            assert isinstance(message, auth_pb2.WatchResourcesResponse)
            policies.extend(
                (key.publish, key.subscribe, list(key.topic_filters))
                for key in message.access_keys
                if key.instance_id == instance
            )
        return policies.pop()

    assert await next_policy() == (True, False, ["demo/+"])
    for permission, filters, policy in (
        (SUBSCRIBE, ["a/#", "b"], (False, True, ["a/#", "b"])),
        (resource_pb2.ACCESS_KEY_PERMISSION_UNSPECIFIED, [], (True, True, [])),
    ):
        request = resource_pb2.UpdateAccessKeyRequest(
            instance_id=instance, access_key_id="AKone", permission=permission, topic_filters=filters
        )
        updated = (await service.resources.UpdateAccessKey(request)).access_key
        assert (updated.permission, list(updated.topic_filters)) == (permission or ALL, filters)
        assert await next_policy() == policy
    watch.cancel()
    # The secret is the same as before.
    text = "x=y"
    asked = auth_pb2.AuthorizeQueryRequest(
        instance_id=instance,
        access_key_id="AKone",
        client_id="GID_none@@@1",
        signed_text=text,
        signature=sign(made.secret, text),
    )
    assert (await service.auth.AuthorizeQuery(asked)).outcome == auth_pb2.QUERY_OUTCOME_GROUP_NOT_OWNED


@pytest.mark.parametrize(
    ("field", "permission", "filters"),
    [("permission", 9, []), ("topic_filters", ALL, ["a/#/b"]), ("topic_filters", ALL, ["a"] * 101)],
)
async def test_permissions_are_checked(
    service: AuthService,
    instance: str,
    field: str,
    permission: resource_pb2.AccessKeyPermission.ValueType,
    filters: list[str],
) -> None:
    with invalid(field):
        await service.resources.CreateAccessKey(
            resource_pb2.CreateAccessKeyRequest(instance_id=instance, permission=permission, topic_filters=filters)
        )
    with invalid(field):
        await service.resources.UpdateAccessKey(
            resource_pb2.UpdateAccessKeyRequest(
                instance_id=instance, access_key_id="AKone", permission=permission, topic_filters=filters
            )
        )


async def test_an_unknown_key_has_no_permissions(service: AuthService, instance: str) -> None:
    with missing("accesskey/AKnone"):
        await service.resources.UpdateAccessKey(
            resource_pb2.UpdateAccessKeyRequest(instance_id=instance, access_key_id="AKnone")
        )


# Groups


async def test_groups_are_created_listed_and_deleted(service: AuthService, instance: str) -> None:
    created = [await service.create_group(instance, name, "acc") for name in ("GID_two", "GID-one")]
    listed = await service.resources.ListGroups(resource_pb2.ListGroupsRequest(instance_id=instance))
    assert list(listed.groups) == [created[1], created[0]]
    assert created[0].account_id == "acc"
    await service.resources.DeleteGroup(resource_pb2.DeleteGroupRequest(instance_id=instance, group_id="GID-one"))
    listed = await service.resources.ListGroups(resource_pb2.ListGroupsRequest(instance_id=instance))
    assert list(listed.groups) == [created[0]]


async def test_group_statuses(service: AuthService, instance: str) -> None:
    await service.create_group(instance, "GID_demo")
    with exists("group/GID_demo"):
        await service.create_group(instance, "GID_demo")
    with missing("instance/nowhere"):
        await service.create_group("nowhere", "GID_demo")
    with missing("group/GID_none"):
        await service.resources.DeleteGroup(resource_pb2.DeleteGroupRequest(instance_id=instance, group_id="GID_none"))
    for field, group in {
        "group.instance_id": resource_pb2.Group(group_id="GID_demo"),
        "group.group_id": resource_pb2.Group(instance_id=instance, group_id="demo123"),
        "group.account_id": resource_pb2.Group(instance_id=instance, group_id="GID_new", account_id="a b"),
    }.items():
        with invalid(field):
            await service.resources.CreateGroup(resource_pb2.CreateGroupRequest(group=group))
    with invalid("group_id"):
        await service.resources.DeleteGroup(resource_pb2.DeleteGroupRequest(instance_id=instance))
    with invalid("instance_id"):
        await service.resources.ListGroups(resource_pb2.ListGroupsRequest())


# Topics


async def test_a_logged_topic_has_its_stream(service: AuthService, instance: str, js: JetStreamContext) -> None:
    created = await service.create_topic(instance, "demo", ordered=True, retention_s=7_200)
    assert (created.logged, created.ordered, created.retention_s, created.account_id) == (True, True, 7_200, "default")
    config = await stream_config(js, subjects.log_stream(instance, "demo"))
    assert config.subjects == subjects.log_filter(instance, "demo")
    assert (config.storage, config.max_age, config.duplicate_window) == (api.StorageType.FILE, 7_200, 600)
    assert (config.allow_direct, config.retention, config.discard) == (
        True,
        api.RetentionPolicy.LIMITS,
        api.DiscardPolicy.OLD,
    )


async def test_retention_defaults_to_three_days_and_may_be_shorter_than_the_duplicate_window(
    service: AuthService, instance: str, js: JetStreamContext
) -> None:
    assert (await service.create_topic(instance, "long")).retention_s == 259_200
    await service.create_topic(instance, "short", retention_s=10)
    config = await stream_config(js, subjects.log_stream(instance, "short"))
    assert (config.max_age, config.duplicate_window) == (10, 10)


async def test_a_topic_without_log_has_no_stream(service: AuthService, instance: str, js: JetStreamContext) -> None:
    created = await service.create_topic(instance, "fast", logged=False, retention_s=5)
    assert (created.logged, created.retention_s) == (False, 0)
    assert not await has_stream(js, subjects.log_stream(instance, "fast"))
    await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id=instance, topic="fast"))


async def test_deleting_a_topic_deletes_its_messages(service: AuthService, instance: str, js: JetStreamContext) -> None:
    await service.create_topic(instance, "demo")
    await js.publish(subjects.log_subject(instance, "demo/sub"), b"old")
    await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id=instance, topic="demo"))
    assert not await has_stream(js, subjects.log_stream(instance, "demo"))
    listed = await service.resources.ListTopics(resource_pb2.ListTopicsRequest(instance_id=instance))
    assert not listed.topics
    await service.create_topic(instance, "demo")
    assert (await js.stream_info(subjects.log_stream(instance, "demo"))).state.messages == 0


async def test_topic_statuses(service: AuthService, instance: str) -> None:
    await service.create_topic(instance, "demo")
    with exists("topic/demo"):
        await service.create_topic(instance, "demo")
    with missing("instance/nowhere"):
        await service.create_topic("nowhere", "demo")
    with missing("topic/none"):
        await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id=instance, topic="none"))
    for field, topic in {
        "topic.instance_id": resource_pb2.Topic(topic="demo"),
        "topic.topic": resource_pb2.Topic(instance_id=instance, topic="a/b"),
        "topic.account_id": resource_pb2.Topic(instance_id=instance, topic="new", account_id="a b"),
        "topic.retention_s": resource_pb2.Topic(instance_id=instance, topic="new", retention_s=-1),
    }.items():
        with invalid(field):
            await service.resources.CreateTopic(resource_pb2.CreateTopicRequest(topic=topic))
    with invalid("topic.retention_s"):
        await service.create_topic(instance, "new", retention_s=1 << 60)
    with invalid("topic"):
        await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id=instance, topic="$SYS"))
    with invalid("instance_id"):
        await service.resources.ListTopics(resource_pb2.ListTopicsRequest())


async def test_a_topic_whose_name_looks_like_another_keeps_its_own_stream(
    service: AuthService, js: JetStreamContext
) -> None:
    tail = unique("")
    await service.create_instance(f"one{tail}")
    await service.create_instance(f"one{tail}_two")
    await service.create_topic(f"one{tail}", "two_three")
    await service.create_topic(f"one{tail}_two", "three")
    await js.publish(subjects.log_subject(f"one{tail}", "two_three"), b"first")
    assert (await js.stream_info(subjects.log_stream(f"one{tail}_two", "three"))).state.messages == 0


# Replicas, crashes, outages


async def topics_of(service: AuthService, instance_id: str) -> list[str]:
    listed = await service.resources.ListTopics(resource_pb2.ListTopicsRequest(instance_id=instance_id))
    return [topic.topic for topic in listed.topics]


async def test_a_replica_sees_what_another_changed(service: AuthService, nats_of_module: str) -> None:
    name = unique("inst-")
    async with running_auth(nats_of_module) as other:
        await service.create_instance(name)
        await service.create_topic(name, "demo")

        async def created() -> bool:
            return await topics_of(other, name) == ["demo"]

        async def deleted() -> bool:
            return await topics_of(other, name) == []

        await in_time(created, "the other replica lists the topic")
        await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id=name, topic="demo"))
        await in_time(deleted, "the other replica forgets the topic")


async def test_of_two_replicas_that_create_the_same_one_succeeds(
    service: AuthService, instance: str, nats_of_module: str
) -> None:
    async with running_auth(nats_of_module) as other:

        async def try_create(at: AuthService) -> StatusCode:
            try:
                await at.create_group(instance, "GID_race")
            except aio.AioRpcError as error:
                return error.code()
            return StatusCode.OK

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(try_create(at)) for at in (service, other)]
        assert {task.result() for task in tasks} == {StatusCode.OK, StatusCode.ALREADY_EXISTS}


async def test_everything_is_there_after_a_restart_and_streams_are_made_again(
    nats_of_module: str, js: JetStreamContext
) -> None:
    name = unique("inst-")
    async with running_auth(nats_of_module) as service:
        await service.create_instance(name)
        await service.create_topic(name, "demo")
    await js.delete_stream(subjects.log_stream(name, "demo"))
    await js.delete_stream(subjects.event_stream(name))
    async with running_auth(nats_of_module) as service:
        assert await topics_of(service, name) == ["demo"]
        assert await has_stream(js, subjects.log_stream(name, "demo"))
        assert await has_stream(js, subjects.event_stream(name))


async def test_a_restart_finishes_a_deletion_that_a_crash_cut_short(nats_of_module: str, js: JetStreamContext) -> None:
    name = unique("inst-")
    async with running_auth(nats_of_module) as service:
        await service.create_instance(name)
        await service.create_topic(name, "demo")
    kv = await js.key_value(BUCKET)
    key = f"topic.{name}.demo"
    stored = records.decode(key, (await kv.get(key)).value or b"")
    assert isinstance(stored, Topic)
    await kv.put(key, records.encode(dataclasses.replace(stored, deleting=True)))
    async with running_auth(nats_of_module) as service:
        assert await topics_of(service, name) == []
        assert not await has_stream(js, subjects.log_stream(name, "demo"))
        with pytest.raises(nats.js.errors.KeyNotFoundError):
            await kv.get(key)


async def test_a_deletion_that_was_cut_short_is_finished_by_creating_anew(
    service: AuthService, instance: str, js: JetStreamContext
) -> None:
    await service.create_topic(instance, "demo")
    await js.publish(subjects.log_subject(instance, "demo"), b"old")
    kv = await js.key_value(BUCKET)
    key = f"topic.{instance}.demo"
    stored = records.decode(key, (await kv.get(key)).value or b"")
    assert isinstance(stored, Topic)
    await kv.put(key, records.encode(dataclasses.replace(stored, deleting=True)))

    async def hidden() -> bool:
        return await topics_of(service, instance) == []

    await in_time(hidden, "the mark is seen")
    await service.create_topic(instance, "demo")
    assert (await js.stream_info(subjects.log_stream(instance, "demo"))).state.messages == 0


async def test_a_record_that_can_not_be_read_harms_no_other(
    nats_of_module: str, js: JetStreamContext, service: AuthService, instance: str
) -> None:
    kv = await js.key_value(BUCKET)
    key = f"group.{instance}.GID_broken"
    await kv.put(key, b"not a record")
    await service.create_group(instance, "GID_whole")
    async with running_auth(nats_of_module) as other:
        listed = await other.resources.ListGroups(resource_pb2.ListGroupsRequest(instance_id=instance))
        assert [group.group_id for group in listed.groups] == ["GID_whole"]
    await kv.purge(key)


BOOTSTRAP = {
    "instance": "mqtt-demo",
    "access_key": "AKdemo",
    "secret": "bootstrap-secret",
    "group": "GID_demo",
    "topic": "demo",
}


async def test_the_first_start_makes_what_the_bootstrap_file_names(nats_server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(BOOTSTRAP))
    async with running_auth(nats_server.url, bootstrap_file=path) as service:
        attempt = auth_pb2.ConnectAttempt(
            client_id="GID_demo@@@1",
            user_name="Signature|AKdemo|mqtt-demo",
            password=sign("bootstrap-secret", "GID_demo@@@1").encode(),
        )
        results = (await service.auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=[attempt]))).results
        assert results[0].outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED
        topics = await service.resources.ListTopics(resource_pb2.ListTopicsRequest(instance_id="mqtt-demo"))
        assert [(t.topic, t.logged, t.retention_s) for t in topics.topics] == [("demo", True, 259_200)]
        await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id="mqtt-demo", topic="demo"))
    # Never again: not what was deleted, and not what a changed file names.
    path.write_text(json.dumps(BOOTSTRAP | {"instance": "mqtt-other", "secret": "changed"}))
    async with running_auth(nats_server.url, bootstrap_file=path) as service:
        assert await topics_of(service, "mqtt-demo") == []
        listed = await service.resources.ListInstances(resource_pb2.ListInstancesRequest())
        assert [i.instance_id for i in listed.instances] == ["mqtt-demo"]
        results = (await service.auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=[attempt]))).results
        assert results[0].outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED


async def test_a_first_start_that_was_cut_short_is_finished(nats_server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(BOOTSTRAP))
    async with running_auth(nats_server.url, bootstrap_file=path):
        pass
    client = await nats.connect(nats_server.url)
    kv = await client.jetstream().key_value(BUCKET)
    for key in ("instance.mqtt-demo", "topic.mqtt-demo.demo"):
        await kv.purge(key)
    await client.close()
    async with running_auth(nats_server.url, bootstrap_file=path) as service:
        assert await topics_of(service, "mqtt-demo") == ["demo"]


async def test_another_master_key_lets_nobody_in_and_harms_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(BOOTSTRAP))
    wrong = Secret("A" * 43 + "=")
    async with running_auth(nats_server.url, bootstrap_file=path):
        pass
    async with running_auth(nats_server.url, master_key=wrong) as service:
        attempt = auth_pb2.ConnectAttempt(
            client_id="GID_demo@@@1", user_name="Signature|AKdemo|mqtt-demo", password=b"x"
        )
        results = (await service.auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=[attempt]))).results
        assert results[0].outcome == auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS
        assert "decrypted" in results[0].reason


async def test_while_nats_is_away_nothing_is_changed_and_afterwards_all_is_as_before(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        await service.create_topic("one", "kept")
        await asyncio.to_thread(nats_server.kill)

        await health_is(service.address, serving=False)
        calls: list[Awaitable[object]] = [
            service.create_instance("two"),
            service.create_topic("one", "new"),
            service.create_group("one", "GID_new"),
            service.create_key("one"),
            service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id="one", topic="kept")),
            service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id="one", force=True)),
        ]
        for call in calls:
            with refused(StatusCode.UNAVAILABLE, errors.UnavailableError, dependency="nats"):
                await call
        assert await topics_of(service, "one") == ["kept"]
        readyz = await _get(service, "/readyz")
        assert (readyz.status_code, readyz.json()) == (503, {"ready": False, "missing": ["nats"]})
        await asyncio.to_thread(nats_server.start)
        await health_is(service.address, serving=True)
        assert await topics_of(service, "one") == ["kept"]
        await service.create_topic("one", "new")
        assert await topics_of(service, "one") == ["kept", "new"]
        await service.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id="one", topic="kept"))
        assert await topics_of(service, "one") == ["new"]


async def test_what_another_replica_changed_around_a_crash_of_nats_is_not_missed(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as first, running_auth(nats_server.url) as second:
        await first.create_instance("one")
        for name in ("deleted-before", "deleted-after", "kept"):
            await first.create_topic("one", name)
        await first.resources.DeleteTopic(resource_pb2.DeleteTopicRequest(instance_id="one", topic="deleted-before"))
        await asyncio.to_thread(nats_server.restart)

        async def changed() -> bool:
            try:
                await first.resources.DeleteTopic(
                    resource_pb2.DeleteTopicRequest(instance_id="one", topic="deleted-after")
                )
                await first.create_topic("one", "created-after")
            except aio.AioRpcError as error:
                return error.code() in {StatusCode.NOT_FOUND, StatusCode.ALREADY_EXISTS}
            return True

        async def seen() -> bool:
            return await topics_of(second, "one") == ["created-after", "kept"]

        await in_time(changed, "the first replica can change resources again")
        if "created-after" not in await topics_of(first, "one"):
            await first.create_topic("one", "created-after")
        await in_time(seen, "the second replica has caught up")


async def test_a_watch_that_was_cut_off_behind_our_back_is_noticed(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "POLL_S", 0.01)
    client = await nats.connect(nats_server.url)
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        await service.create_group("one", "GID_gone")
        js = client.jetstream()
        for consumer in await js.consumers_info(f"KV_{BUCKET}"):
            await js.delete_consumer(f"KV_{BUCKET}", consumer.name)
        await (await js.key_value(BUCKET)).purge("group.one.GID_gone")

        async def seen() -> bool:
            listed = await service.resources.ListGroups(resource_pb2.ListGroupsRequest(instance_id="one"))
            return not listed.groups

        await in_time(seen, "the deletion is seen without a watch")
        await service.create_group("one", "GID_next")
    await client.close()


async def test_a_bucket_that_was_deleted_is_made_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "POLL_S", 0.01)
    client = await nats.connect(nats_server.url)
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        await client.jetstream().delete_key_value(BUCKET)

        async def seen() -> bool:
            return not (await service.resources.ListInstances(resource_pb2.ListInstancesRequest())).instances

        await in_time(seen, "the loss is seen")
        await service.create_instance("one")
    await client.close()


async def test_calls_end_when_nats_hangs(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        nats_server.pause()
        try:
            with refused(StatusCode.UNAVAILABLE, errors.UnavailableError, dependency="nats"):
                await service.create_group("one", "GID_demo")
        finally:
            nats_server.resume()

        async def created() -> bool:
            try:
                await service.create_group("one", "GID_demo")
            except aio.AioRpcError as error:
                return error.code() is StatusCode.ALREADY_EXISTS
            return True

        await in_time(created, "the call can be repeated")


async def test_a_stream_that_nats_refuses_keeps_nobody_away(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        for name in ("first", "second"):
            await service.create_topic("one", name)
    client = await nats.connect(nats_server.url)
    js = client.jetstream()
    for name in ("first", "second"):
        await js.delete_stream(subjects.log_stream("one", name))
    await js.add_stream(name="somebody", subjects=subjects.log_filter("one", "first"))
    async with running_auth(nats_server.url) as service:
        assert await topics_of(service, "one") == ["first", "second"]
        assert await has_stream(js, subjects.log_stream("one", "second"))
        assert not await has_stream(js, subjects.log_stream("one", "first"))
    await client.close()


# The listeners


async def _get(service: AuthService, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{service.http_port}{path}")


async def test_health_and_metrics_over_http(service: AuthService) -> None:
    assert (await _get(service, "/healthz")).status_code == 200
    assert (await _get(service, "/readyz")).json() == {"ready": True, "missing": []}
    metrics = await _get(service, "/metrics")
    assert metrics.status_code == 200
    assert "weimq_auth_resources" in metrics.text
    assert (await _get(service, "/token/other")).status_code == 404


async def test_calls_need_the_cluster_token(service: AuthService) -> None:
    async with grpc_client.channel(service.address, Secret("not-the-cluster-token")) as channel:
        stub = resource_pb2_grpc.ResourceServiceStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ListInstances(resource_pb2.ListInstancesRequest())
        assert caught.value.code() is StatusCode.UNAUTHENTICATED
    async with grpc_client.channel(service.address, TOKEN) as channel:
        await resource_pb2_grpc.ResourceServiceStub(channel).ListInstances(resource_pb2.ListInstancesRequest())
