"""`weimq.auth.v1.ResourceService`: checks requests and hands them to `Administration`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grpc import aio
from typing_extensions import override

from services.auth.administration import Administration
from services.auth.domain import limits, names
from services.auth.domain.records import DEFAULT_ACCOUNT, DEFAULT_RETENTION_S, Profile, Topic
from services.auth.domain.resources import Resources
from services.auth.gate import Gate
from services.auth.resource_messages import (
    PERMISSIONS_OF,
    PROFILES_OF,
    access_key_message,
    group_message,
    instance_message,
    topic_message,
)
from services.common import topics
from services.common.errors import InvalidFieldError
from services.common.topics import InvalidTopicError
from weimq.auth.v1 import resource_pb2, resource_pb2_grpc

MAX_TOPIC_FILTERS = 100
"""Of an AccessKey."""

Context = aio.ServicerContext[Any, Any]


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
        if wanted.profile not in PROFILES_OF:
            raise InvalidFieldError("instance.profile is unknown", field="instance.profile")
        profile = PROFILES_OF[wanted.profile]
        if wanted.anonymous and profile is not Profile.STANDARD:
            raise InvalidFieldError(
                "instance.anonymous is allowed in PROFILE_STANDARD only", field="instance.anonymous"
            )
        instance = await self._administration.create_instance(wanted.instance_id, profile, anonymous=wanted.anonymous)
        return resource_pb2.CreateInstanceResponse(instance=instance_message(instance))

    @override
    async def ListInstances(
        self, request: resource_pb2.ListInstancesRequest, context: Context
    ) -> resource_pb2.ListInstancesResponse:
        self._gate.check()
        return resource_pb2.ListInstancesResponse(instances=map(instance_message, self._resources.instances()))

    @override
    async def UpdateInstance(
        self, request: resource_pb2.UpdateInstanceRequest, context: Context
    ) -> resource_pb2.UpdateInstanceResponse:
        self._gate.check()
        wanted = request.instance
        _check("instance.instance_id", wanted.instance_id, names.instance_id_fault)
        paths = set(request.update_mask.paths)
        if not paths or not paths <= limits.SETTABLE:
            raise InvalidFieldError(
                f"update_mask must name some of {', '.join(sorted(limits.SETTABLE))}", field="update_mask"
            )
        instance = await self._administration.update_instance(
            wanted.instance_id, {name: getattr(wanted, name) for name in paths}
        )
        return resource_pb2.UpdateInstanceResponse(instance=instance_message(instance))

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
        publish, subscribe, topic_filters = _permissions(request.permission, request.topic_filters)
        key = await self._administration.create_access_key(
            request.instance_id,
            request.access_key_id,
            account_id,
            publish=publish,
            subscribe=subscribe,
            topic_filters=topic_filters,
        )
        return resource_pb2.CreateAccessKeyResponse(access_key=access_key_message(key), secret=key.secret or "")

    @override
    async def ListAccessKeys(
        self, request: resource_pb2.ListAccessKeysRequest, context: Context
    ) -> resource_pb2.ListAccessKeysResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        keys = self._resources.access_keys(request.instance_id)
        return resource_pb2.ListAccessKeysResponse(access_keys=map(access_key_message, keys))

    @override
    async def UpdateAccessKey(
        self, request: resource_pb2.UpdateAccessKeyRequest, context: Context
    ) -> resource_pb2.UpdateAccessKeyResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        _check("access_key_id", request.access_key_id, names.access_key_id_fault)
        publish, subscribe, topic_filters = _permissions(request.permission, request.topic_filters)
        key = await self._administration.update_access_key(
            request.instance_id,
            request.access_key_id,
            publish=publish,
            subscribe=subscribe,
            topic_filters=topic_filters,
        )
        return resource_pb2.UpdateAccessKeyResponse(access_key=access_key_message(key))

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
        return resource_pb2.CreateGroupResponse(group=group_message(group))

    @override
    async def ListGroups(
        self, request: resource_pb2.ListGroupsRequest, context: Context
    ) -> resource_pb2.ListGroupsResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        return resource_pb2.ListGroupsResponse(groups=map(group_message, self._resources.groups(request.instance_id)))

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
        if not 0 <= wanted.retention_s <= limits.TEN_YEARS_S:
            raise InvalidFieldError(
                f"topic.retention_s must be 0 (3 days) or up to {limits.TEN_YEARS_S}", field="topic.retention_s"
            )
        topic = Topic(
            instance_id=wanted.instance_id,
            topic=wanted.topic,
            account_id=account_id,
            logged=wanted.logged,
            ordered=wanted.ordered,
            retention_s=(wanted.retention_s or DEFAULT_RETENTION_S) if wanted.logged else 0,
        )
        return resource_pb2.CreateTopicResponse(topic=topic_message(await self._administration.create_topic(topic)))

    @override
    async def ListTopics(
        self, request: resource_pb2.ListTopicsRequest, context: Context
    ) -> resource_pb2.ListTopicsResponse:
        self._gate.check()
        _check("instance_id", request.instance_id, names.instance_id_fault)
        return resource_pb2.ListTopicsResponse(topics=map(topic_message, self._resources.topics(request.instance_id)))

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


def _permissions(
    permission: resource_pb2.AccessKeyPermission.ValueType, topic_filters: Sequence[str]
) -> tuple[bool, bool, tuple[str, ...]]:
    """Return whether a key may publish and subscribe, and on what."""
    if permission not in PERMISSIONS_OF:
        raise InvalidFieldError("permission is unknown", field="permission")
    if len(topic_filters) > MAX_TOPIC_FILTERS:
        raise InvalidFieldError(f"topic_filters must be at most {MAX_TOPIC_FILTERS}", field="topic_filters")
    for topic_filter in topic_filters:
        try:
            topics.validate_topic_filter(topic_filter)
        except InvalidTopicError as error:
            raise InvalidFieldError(f"topic_filters: {error.message}", field="topic_filters") from None
    return *PERMISSIONS_OF[permission], tuple(topic_filters)
