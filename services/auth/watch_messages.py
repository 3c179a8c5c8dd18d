"""Changes of resources as messages of `WatchResources`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from services.auth.domain.records import AccessKey, Group, Instance, Topic
from services.auth.domain.resources import ChangeSet
from services.auth.resource_messages import PROFILES
from weimq.auth.v1 import auth_pb2

ITEMS_PER_MESSAGE = 1_000
"""So many items at about 100 bytes stay far below the largest gRPC message."""

T = TypeVar("T")


def messages(changes: ChangeSet) -> Iterator[auth_pb2.WatchResourcesResponse]:
    """Spread a change set over messages; instances go first, since the rest belongs to them."""
    for instances in _batched(changes.instances.items()):
        yield auth_pb2.WatchResourcesResponse(
            instances=[_instance_policy(instance) for _, instance in instances if instance is not None],
            removed_instance_ids=[instance_id for instance_id, instance in instances if instance is None],
        )
    for topics in _batched(changes.topics.items()):
        yield auth_pb2.WatchResourcesResponse(
            topics=[_topic_policy(topic) for _, topic in topics if topic is not None],
            removed_topics=[
                auth_pb2.TopicPolicy(instance_id=instance_id, topic=name)
                for (instance_id, name), topic in topics
                if topic is None
            ],
        )
    for groups in _batched(changes.groups.items()):
        yield auth_pb2.WatchResourcesResponse(
            groups=[_group_policy(group) for _, group in groups if group is not None],
            removed_groups=[
                auth_pb2.GroupPolicy(instance_id=instance_id, group_id=name)
                for (instance_id, name), group in groups
                if group is None
            ],
        )
    for keys in _batched(changes.access_keys.items()):
        yield auth_pb2.WatchResourcesResponse(
            access_keys=[_access_key_policy(key) for _, key in keys if key is not None],
            removed_access_keys=[
                auth_pb2.AccessKeyPolicy(instance_id=instance_id, access_key_id=name)
                for (instance_id, name), key in keys
                if key is None
            ],
        )
    for token_ids in _batched(changes.revoked_token_ids):
        yield auth_pb2.WatchResourcesResponse(revoked_token_ids=token_ids)
    for device_ids in _batched(changes.removed_device_ids):
        yield auth_pb2.WatchResourcesResponse(removed_device_credential_ids=device_ids)


def _batched(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, ITEMS_PER_MESSAGE)):
        yield batch


def _instance_policy(instance: Instance) -> auth_pb2.InstancePolicy:
    return auth_pb2.InstancePolicy(
        instance_id=instance.instance_id,
        profile=PROFILES[instance.profile],
        max_topic_characters=instance.max_topic_characters,
        max_payload_bytes=instance.max_payload_bytes,
        max_subscriptions=instance.max_subscriptions,
        takeover=instance.takeover,
        refuse_filters=instance.refuse_filters,
        strict_order=instance.strict_order,
        offline_batch_messages=instance.offline_batch_messages,
        offline_batch_interval_ms=instance.offline_batch_interval_ms,
        acknowledgement_timeout_ms=instance.acknowledgement_timeout_ms,
        offline_retention_ms=instance.offline_retention_ms,
        max_offline_messages=instance.max_offline_messages,
        session_expiry_ms=instance.session_expiry_ms,
        max_topic_levels=instance.max_topic_levels,
        max_publish_rate=instance.max_publish_rate,
        max_publish_bytes_rate=instance.max_publish_bytes_rate,
    )


def _topic_policy(topic: Topic) -> auth_pb2.TopicPolicy:
    return auth_pb2.TopicPolicy(
        instance_id=topic.instance_id,
        topic=topic.topic,
        account_id=topic.account_id,
        logged=topic.logged,
        ordered=topic.ordered,
    )


def _group_policy(group: Group) -> auth_pb2.GroupPolicy:
    return auth_pb2.GroupPolicy(instance_id=group.instance_id, group_id=group.group_id, account_id=group.account_id)


def _access_key_policy(key: AccessKey) -> auth_pb2.AccessKeyPolicy:
    return auth_pb2.AccessKeyPolicy(
        instance_id=key.instance_id,
        access_key_id=key.access_key_id,
        account_id=key.account_id,
        publish=key.publish,
        subscribe=key.subscribe,
        topic_filters=key.topic_filters,
        create_time_ms=key.create_time_ms,
    )
