"""Records as messages of `weimq.auth.v1`, and back."""

from __future__ import annotations

from services.auth.domain import limits
from services.auth.domain.records import AccessKey, Group, Instance, Profile, Topic
from weimq.auth.v1 import auth_pb2, resource_pb2

PROFILES = {
    Profile.LMQ: auth_pb2.PROFILE_LMQ,
    Profile.STANDARD: auth_pb2.PROFILE_STANDARD,
}
PROFILES_OF = {
    auth_pb2.PROFILE_UNSPECIFIED: Profile.LMQ,
    **{number: profile for profile, number in PROFILES.items()},
}
PERMISSIONS_OF = {
    resource_pb2.ACCESS_KEY_PERMISSION_UNSPECIFIED: (True, True),
    resource_pb2.ACCESS_KEY_PERMISSION_ALL: (True, True),
    resource_pb2.ACCESS_KEY_PERMISSION_PUBLISH: (True, False),
    resource_pb2.ACCESS_KEY_PERMISSION_SUBSCRIBE: (False, True),
}
"""Whether a key may publish, and whether it may subscribe."""
_PERMISSIONS = {
    (True, True): resource_pb2.ACCESS_KEY_PERMISSION_ALL,
    (True, False): resource_pb2.ACCESS_KEY_PERMISSION_PUBLISH,
    (False, True): resource_pb2.ACCESS_KEY_PERMISSION_SUBSCRIBE,
    # Only by hand can a key be stored that may do nothing.
    (False, False): resource_pb2.ACCESS_KEY_PERMISSION_UNSPECIFIED,
}


def instance_message(instance: Instance) -> resource_pb2.Instance:
    """Return an instance as operators see it."""
    return resource_pb2.Instance(
        instance_id=instance.instance_id,
        profile=PROFILES[instance.profile],
        create_time_ms=instance.create_time_ms,
        **{name: getattr(instance, name) for name in limits.SETTABLE},
    )


def access_key_message(key: AccessKey) -> resource_pb2.AccessKey:
    """Return an AccessKey as operators see it, without its secret."""
    return resource_pb2.AccessKey(
        access_key_id=key.access_key_id,
        account_id=key.account_id,
        instance_id=key.instance_id,
        create_time_ms=key.create_time_ms,
        permission=_PERMISSIONS[key.publish, key.subscribe],
        topic_filters=key.topic_filters,
    )


def group_message(group: Group) -> resource_pb2.Group:
    """Return a group as operators see it."""
    return resource_pb2.Group(
        group_id=group.group_id,
        instance_id=group.instance_id,
        account_id=group.account_id,
        create_time_ms=group.create_time_ms,
    )


def topic_message(topic: Topic) -> resource_pb2.Topic:
    """Return a parent topic as operators see it."""
    return resource_pb2.Topic(
        topic=topic.topic,
        instance_id=topic.instance_id,
        account_id=topic.account_id,
        logged=topic.logged,
        ordered=topic.ordered,
        retention_s=topic.retention_s,
        create_time_ms=topic.create_time_ms,
    )
