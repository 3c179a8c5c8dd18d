"""`weimq group|topic create|list|show|delete`, over auth's resource API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from google.protobuf.message import Message

from services.cli.options import (
    DEFAULT_DATA,
    AccountOption,
    AuthOption,
    DataOption,
    InstanceOption,
    JsonOption,
    parse_duration,
)
from services.cli.output import print_created, print_deleted, print_list, print_one, record
from services.cli.rpc import Target, instance_or_bootstrap
from weimq.auth.v1 import resource_pb2 as pb
from weimq.auth.v1.resource_pb2_grpc import ResourceServiceStub

group_app = typer.Typer(name="group", help="Group IDs: sets of like devices.", no_args_is_help=True)
topic_app = typer.Typer(name="topic", help="Parent topics: first levels of topic names.", no_args_is_help=True)


# --- groups


@group_app.command("create")
def create_group(
    group: Annotated[str, typer.Argument(metavar="GROUP_ID")],
    account: AccountOption = "default",
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create a Group ID: `GID_` or `GID-` and more."""
    wanted = pb.Group(group_id=group, instance_id=instance_or_bootstrap(instance, data), account_id=account)
    answer = Target("auth", auth, data).request(ResourceServiceStub, "CreateGroup", pb.CreateGroupRequest(group=wanted))
    print_created("Group", group, record(answer.group), as_json=as_json)


def _groups(target: Target, instance: str) -> Sequence[Message]:
    found: Sequence[Message] = target.request(
        ResourceServiceStub, "ListGroups", pb.ListGroupsRequest(instance_id=instance)
    ).groups
    return found


@group_app.command("list")
def list_groups(
    instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False
) -> None:
    """List the groups of an instance."""
    found = _groups(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    print_list(found, as_json=as_json, nothing="There are no groups.")


@group_app.command("show")
def show_group(
    group: Annotated[str, typer.Argument(metavar="GROUP_ID")],
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a group."""
    found = _groups(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    print_one(found, "group_id", group, as_json=as_json, kind="Group")


@group_app.command("delete")
def delete_group(
    group: Annotated[str, typer.Argument(metavar="GROUP_ID")],
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Delete a group; its devices can't connect any more."""
    request = pb.DeleteGroupRequest(instance_id=instance_or_bootstrap(instance, data), group_id=group)
    Target("auth", auth, data).request(ResourceServiceStub, "DeleteGroup", request)
    print_deleted("Group", group, as_json=as_json)


# --- parent topics


@topic_app.command("create")
def create_topic(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    no_log: Annotated[
        bool, typer.Option("--no-log", help="Keep no message log: faster, but backend applications see nothing.")
    ] = False,
    ordered: Annotated[bool, typer.Option("--ordered", help="Message type `ordered`.")] = False,
    retention: Annotated[
        str, typer.Option(metavar="TIME", help="How long the log keeps messages, such as 3d or 12h.")
    ] = "3d",
    account: AccountOption = "default",
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create a parent topic, and its message log in JetStream."""
    wanted = pb.Topic(
        topic=topic,
        instance_id=instance_or_bootstrap(instance, data),
        account_id=account,
        logged=not no_log,
        ordered=ordered,
        retention_s=parse_duration(retention),
    )
    answer = Target("auth", auth, data).request(ResourceServiceStub, "CreateTopic", pb.CreateTopicRequest(topic=wanted))
    print_created("Topic", topic, record(answer.topic), as_json=as_json)


def _topics(target: Target, instance: str) -> Sequence[Message]:
    found: Sequence[Message] = target.request(
        ResourceServiceStub, "ListTopics", pb.ListTopicsRequest(instance_id=instance)
    ).topics
    return found


@topic_app.command("list")
def list_topics(
    instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False
) -> None:
    """List the parent topics of an instance."""
    found = _topics(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    print_list(found, as_json=as_json, nothing="There are no topics.")


@topic_app.command("show")
def show_topic(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a parent topic."""
    found = _topics(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    print_one(found, "topic", topic, as_json=as_json, kind="Topic")


@topic_app.command("delete")
def delete_topic(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Delete a parent topic and every message in its log."""
    request = pb.DeleteTopicRequest(instance_id=instance_or_bootstrap(instance, data), topic=topic)
    Target("auth", auth, data).request(ResourceServiceStub, "DeleteTopic", request)
    print_deleted("Topic", topic, as_json=as_json)
