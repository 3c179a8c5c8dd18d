"""`weimq group|topic create|list|show|delete`, over auth's resource API."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import kinds
from services.cli.options import (
    DEFAULT_DATA,
    AccountOption,
    AuthOption,
    DataOption,
    InstanceOption,
    JsonOption,
    example,
    parse_duration,
)
from services.cli.output import print_created, record
from services.cli.rpc import Target, instance_or_bootstrap
from weimq.auth.v1 import resource_pb2 as pb
from weimq.auth.v1.resource_pb2_grpc import ResourceServiceStub

group_app = typer.Typer(name="group", help="Group IDs: sets of like devices.", no_args_is_help=True)
topic_app = typer.Typer(name="topic", help="Parent topics: first levels of topic names.", no_args_is_help=True)


# --- groups


@group_app.command("create", epilog=example("group create GID_sensors"))
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


kinds.add_commands(
    group_app,
    kinds.Kind(
        name="Group",
        plural="groups",
        key="group_id",
        list_request=pb.ListGroupsRequest,
        items="groups",
        delete_request=pb.DeleteGroupRequest,
        deletion="Delete a group; its devices can't connect any more.",
        sample="GID_sensors",
    ),
)


# --- parent topics


@topic_app.command("create", epilog=example("topic create sensors --retention 12h"))
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


kinds.add_commands(
    topic_app,
    kinds.Kind(
        name="Topic",
        plural="topics",
        key="topic",
        list_request=pb.ListTopicsRequest,
        items="topics",
        delete_request=pb.DeleteTopicRequest,
        deletion="Delete a parent topic and every message in its log; clients lose their subscriptions to it.",
        sample="sensors",
    ),
)
