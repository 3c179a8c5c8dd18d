"""`weimq.auth.v1.ResourceService`: checks requests and hands them to `Administration`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpc import aio
from typing_extensions import override

from services.auth.administration import Administration
from services.auth.auth_servicer import PROFILES
from services.auth.domain import names
from services.auth.domain.records import (
    DEFAULT_ACCOUNT,
    DEFAULT_RETENTION_S,
    AccessKey,
    Group,
    Instance,
    Profile,
    Topic,
)
from services.auth.domain.resources import Resources
from services.auth.gate import Gate
from services.common.errors import InvalidFieldError
from weimq.auth.v1 import auth_pb2, resource_pb2, resource_pb2_grpc

MAX_RETENTION_S = 10 * 366 * 86_400
"""Ten years; JetStream counts in nanoseconds and would overflow at some 292."""

Context = aio.ServicerContext[Any, Any]

_PROFILES = {
    auth_pb2.PROFILE_UNSPECIFIED: Profile.LMQ,
    **{number: profile for profile, number in PROFILES.items()},
}


class ResourceServicer(resource_pb2_grpc.ResourceServiceServicer):
    """Answers operators and the command line."""

    def __init__(self, *, resources: Resources, gate: Gate) -> None:
        self._resources = resources
        self._gate = gate
        self.administration: Administration | None = None
        """Set before the gate opens: it needs NATS, which connects after the server has started."""

    @property
    def _administration(self) -> Administration:
        self._gate.check()
        if self.administration is None:
            raise AssertionError("the gate opened before there was an administration")
        return self.administration

    @override
    async def CreateInstance(
        self, request: resource_pb2.CreateInstanceRequest, context: Context
    ) -> resource_pb2.CreateInstanceResponse:
        self._gate.check()
        wanted = request.instance
        _check("instance.instance_id", wanted.instance_id, names.instance_id_fault)
        if wanted.profile not in _PROFILES:
            raise InvalidFieldError("instance.profile is unknown", field="instance.profile")
        profile = _PROFILES[wanted.profile]
        if wanted.anonymous and profile is not Profile.STANDARD:
            raise InvalidFieldError(
                "instance.anonymous is allowed in PROFILE_STANDARD only", field="instance.anonymous"
            )
        instance = await self._administration.create_instance(wanted.instance_id, profile, anonymous=wanted.anonymous)
        return resource_pb2.CreateInstanceResponse(instance=_instance(instance))

    @override
    async def ListInstances(
        self, request: resource_pb2.ListInstancesRequest, context: Context
    ) -> resource_pb2.ListInstancesResponse:
        self._gate.check()
        return resource_pb2.ListInstancesResponse(instances=map(_instance, self._resources.instances()))

    @override
    async def DeleteInstance(
        self, request: resource_pb2.DeleteInstanceRequest, context: Context
    ) -> resource_pb2.DeleteInstanceResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        await self._administration.delete_instance(request.instance_id, force=request.force)
        return resource_pb2.DeleteInstanceResponse()

    @override
    async def CreateAccessKey(
        self, request: resource_pb2.CreateAccessKeyRequest, context: Context
    ) -> resource_pb2.CreateAccessKeyResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        account_id = request.account_id or DEFAULT_ACCOUNT
        _check("account_id", account_id, names.account_id_fault)
        if request.access_key_id:
            _check("access_key_id", request.access_key_id, names.access_key_id_fault)
        key = await self._administration.create_access_key(request.instance_id, request.access_key_id, account_id)
        return resource_pb2.CreateAccessKeyResponse(access_key=_access_key(key), secret=key.secret or "")

    @override
    async def ListAccessKeys(
        self, request: resource_pb2.ListAccessKeysRequest, context: Context
    ) -> resource_pb2.ListAccessKeysResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        keys = self._resources.access_keys(request.instance_id)
        return resource_pb2.ListAccessKeysResponse(access_keys=map(_access_key, keys))

    @override
    async def DeleteAccessKey(
        self, request: resource_pb2.DeleteAccessKeyRequest, context: Context
    ) -> resource_pb2.DeleteAccessKeyResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        _check("access_key_id", request.access_key_id, names.access_key_id_fault)
        await self._administration.delete_access_key(request.instance_id, request.access_key_id)
        return resource_pb2.DeleteAccessKeyResponse()

    @override
    async def CreateGroup(
        self, request: resource_pb2.CreateGroupRequest, context: Context
    ) -> resource_pb2.CreateGroupResponse:
        self._gate.check()
        wanted = request.group
        _check("group.instance_id", wanted.instance_id, names.instance_id_fault)
        _check("group.group_id", wanted.group_id, names.group_id_fault)
        account_id = wanted.account_id or DEFAULT_ACCOUNT
        _check("group.account_id", account_id, names.account_id_fault)
        group = await self._administration.create_group(wanted.instance_id, wanted.group_id, account_id)
        return resource_pb2.CreateGroupResponse(group=_group(group))

    @override
    async def ListGroups(
        self, request: resource_pb2.ListGroupsRequest, context: Context
    ) -> resource_pb2.ListGroupsResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        return resource_pb2.ListGroupsResponse(groups=map(_group, self._resources.groups(request.instance_id)))

    @override
    async def DeleteGroup(
        self, request: resource_pb2.DeleteGroupRequest, context: Context
    ) -> resource_pb2.DeleteGroupResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        _check("group_id", request.group_id, names.group_id_fault)
        await self._administration.delete_group(request.instance_id, request.group_id)
        return resource_pb2.DeleteGroupResponse()

    @override
    async def CreateTopic(
        self, request: resource_pb2.CreateTopicRequest, context: Context
    ) -> resource_pb2.CreateTopicResponse:
        self._gate.check()
        wanted = request.topic
        _check("topic.instance_id", wanted.instance_id, names.instance_id_fault)
        _check("topic.topic", wanted.topic, names.topic_fault)
        account_id = wanted.account_id or DEFAULT_ACCOUNT
        _check("topic.account_id", account_id, names.account_id_fault)
        if not 0 <= wanted.retention_s <= MAX_RETENTION_S:
            raise InvalidFieldError(
                f"topic.retention_s must be 0 (3 days) or up to {MAX_RETENTION_S}", field="topic.retention_s"
            )
        topic = Topic(
            instance_id=wanted.instance_id,
            topic=wanted.topic,
            account_id=account_id,
            logged=wanted.logged,
            ordered=wanted.ordered,
            retention_s=(wanted.retention_s or DEFAULT_RETENTION_S) if wanted.logged else 0,
        )
        return resource_pb2.CreateTopicResponse(topic=_topic(await self._administration.create_topic(topic)))

    @override
    async def ListTopics(
        self, request: resource_pb2.ListTopicsRequest, context: Context
    ) -> resource_pb2.ListTopicsResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        return resource_pb2.ListTopicsResponse(topics=map(_topic, self._resources.topics(request.instance_id)))

    @override
    async def DeleteTopic(
        self, request: resource_pb2.DeleteTopicRequest, context: Context
    ) -> resource_pb2.DeleteTopicResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        _check("topic", request.topic, names.topic_fault)
        await self._administration.delete_topic(request.instance_id, request.topic)
        return resource_pb2.DeleteTopicResponse()


def _check(field: str, name: str, fault_of: Callable[[str], str | None]) -> None:
    if fault := fault_of(name):
        raise InvalidFieldError(f"{field} {fault}", field=field)


def _instance(instance: Instance) -> resource_pb2.Instance:
    return resource_pb2.Instance(
        instance_id=instance.instance_id,
        profile=PROFILES[instance.profile],
        anonymous=instance.anonymous,
        create_time_ms=instance.create_time_ms,
    )


def _access_key(key: AccessKey) -> resource_pb2.AccessKey:
    return resource_pb2.AccessKey(
        access_key_id=key.access_key_id,
        account_id=key.account_id,
        instance_id=key.instance_id,
        create_time_ms=key.create_time_ms,
    )


def _group(group: Group) -> resource_pb2.Group:
    return resource_pb2.Group(
        group_id=group.group_id,
        instance_id=group.instance_id,
        account_id=group.account_id,
        create_time_ms=group.create_time_ms,
    )


def _topic(topic: Topic) -> resource_pb2.Topic:
    return resource_pb2.Topic(
        topic=topic.topic,
        instance_id=topic.instance_id,
        account_id=topic.account_id,
        logged=topic.logged,
        ordered=topic.ordered,
        retention_s=topic.retention_s,
        create_time_ms=topic.create_time_ms,
    )
