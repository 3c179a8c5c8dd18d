"""`weimq instance|accesskey|group|topic create|list|show|delete`, over auth's resource API."""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from grpc import aio

from services.cli.errors import WRONG_USE, CliError
from services.cli.options import DEFAULT_DATA, AuthOption, DataOption, InstanceOption, JsonOption
from services.cli.output import Record, print_json, print_record, print_table, record
from services.cli.rpc import TIMEOUT_S, Target, instance_or_bootstrap
from weimq.auth.v1 import auth_pb2, resource_pb2_grpc
from weimq.auth.v1 import resource_pb2 as pb

instance_app = typer.Typer(name="instance", help="Instances: the tenants of the mesh.", no_args_is_help=True)
accesskey_app = typer.Typer(name="accesskey", help="AccessKeys: id and secret that sign.", no_args_is_help=True)
group_app = typer.Typer(name="group", help="Group IDs: sets of like devices.", no_args_is_help=True)
topic_app = typer.Typer(name="topic", help="Parent topics: first levels of topic names.", no_args_is_help=True)

AccountOption = Annotated[str, typer.Option("--account", metavar="ID", help="Account that owns it.")]


class Profile(enum.StrEnum):
    """Rule set of an instance."""

    LMQ = "lmq"
    STANDARD = "standard"


def _call(target: Target, method: str, request: Message) -> Any:  # noqa: ANN401 - the response type of the method
    async def work(channel: aio.Channel) -> Message:
        stub = resource_pb2_grpc.ResourceServiceStub(channel)
        send: Callable[..., Awaitable[Message]] = getattr(stub, method)
        return await send(request, timeout=TIMEOUT_S)

    return target.call(work)


def _print_created(kind: str, name: str, values: Record, *, as_json: bool) -> None:
    if as_json:
        print_json(values)
        return
    typer.echo(f"{kind} {name} created")
    print_record(values)


def _print_list(messages: Sequence[Message], *, as_json: bool, nothing: str) -> None:
    records = [record(message) for message in messages]
    if as_json:
        print_json(records)
    else:
        print_table(records, nothing=nothing)


def _print_one(messages: Sequence[Message], key: str, name: str, *, as_json: bool, kind: str) -> None:
    for message in messages:
        if getattr(message, key) == name:
            (print_json if as_json else print_record)(record(message))
            return
    raise CliError(f"There is no {kind} {name}.", f"`weimq {kind.lower()} list` shows those that exist.")


def _print_deleted(kind: str, name: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"deleted": name})
    else:
        typer.echo(f"{kind} {name} deleted")


# --- instances


@instance_app.command("create")
def create_instance(
    instance: Annotated[str, typer.Argument(metavar="ID")],
    profile: Annotated[Profile, typer.Option(help="Rules that apply.")] = Profile.LMQ,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Let clients in without user name (profile standard).")
    ] = False,
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create an instance."""
    wanted = pb.Instance(
        instance_id=instance,
        profile=auth_pb2.PROFILE_STANDARD if profile is Profile.STANDARD else auth_pb2.PROFILE_LMQ,
        anonymous=anonymous,
    )
    answer = _call(Target("auth", auth, data), "CreateInstance", pb.CreateInstanceRequest(instance=wanted))
    _print_created("Instance", instance, record(answer.instance), as_json=as_json)


def _instances(target: Target) -> Sequence[Message]:
    found: Sequence[Message] = _call(target, "ListInstances", pb.ListInstancesRequest()).instances
    return found


@instance_app.command("list")
def list_instances(data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False) -> None:
    """List the instances; `weimq instance show` tells the limits of one."""
    records = [record(message) for message in _instances(Target("auth", auth, data))]
    if as_json:
        print_json(records)
        return
    columns = ("instance_id", "profile", "anonymous", "create_time_ms")
    print_table([{name: one[name] for name in columns} for one in records], nothing="There are no instances.")


@instance_app.command("show")
def show_instance(
    instance: Annotated[str, typer.Argument(metavar="ID")],
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show an instance."""
    _print_one(_instances(Target("auth", auth, data)), "instance_id", instance, as_json=as_json, kind="Instance")


@instance_app.command("delete")
def delete_instance(
    instance: Annotated[str, typer.Argument(metavar="ID")],
    force: Annotated[bool, typer.Option("--force", help="Delete what it owns too, messages included.")] = False,
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Delete an instance that owns nothing."""
    request = pb.DeleteInstanceRequest(instance_id=instance, force=force)
    _call(Target("auth", auth, data), "DeleteInstance", request)
    _print_deleted("Instance", instance, as_json=as_json)


# --- AccessKeys


@accesskey_app.command("create")
def create_access_key(
    access_key: Annotated[str, typer.Argument(metavar="[ID]", show_default="a random one")] = "",
    account: AccountOption = "default",
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create an AccessKey and print its secret, which is never shown again."""
    request = pb.CreateAccessKeyRequest(
        instance_id=instance_or_bootstrap(instance, data), access_key_id=access_key, account_id=account
    )
    answer = _call(Target("auth", auth, data), "CreateAccessKey", request)
    values = record(answer.access_key) | {"secret": answer.secret}
    _print_created("AccessKey", answer.access_key.access_key_id, values, as_json=as_json)


def _access_keys(target: Target, instance: str) -> Sequence[Message]:
    request = pb.ListAccessKeysRequest(instance_id=instance)
    found: Sequence[Message] = _call(target, "ListAccessKeys", request).access_keys
    return found


@accesskey_app.command("list")
def list_access_keys(
    instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False
) -> None:
    """List the AccessKeys of an instance, without secrets."""
    found = _access_keys(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    _print_list(found, as_json=as_json, nothing="There are no AccessKeys.")


@accesskey_app.command("show")
def show_access_key(
    access_key: Annotated[str, typer.Argument(metavar="ID")],
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show an AccessKey, without its secret."""
    found = _access_keys(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    _print_one(found, "access_key_id", access_key, as_json=as_json, kind="AccessKey")


@accesskey_app.command("delete")
def delete_access_key(
    access_key: Annotated[str, typer.Argument(metavar="ID")],
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Delete an AccessKey; what it signed is refused from now on."""
    request = pb.DeleteAccessKeyRequest(instance_id=instance_or_bootstrap(instance, data), access_key_id=access_key)
    _call(Target("auth", auth, data), "DeleteAccessKey", request)
    _print_deleted("AccessKey", access_key, as_json=as_json)


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
    answer = _call(Target("auth", auth, data), "CreateGroup", pb.CreateGroupRequest(group=wanted))
    _print_created("Group", group, record(answer.group), as_json=as_json)


def _groups(target: Target, instance: str) -> Sequence[Message]:
    found: Sequence[Message] = _call(target, "ListGroups", pb.ListGroupsRequest(instance_id=instance)).groups
    return found


@group_app.command("list")
def list_groups(
    instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False
) -> None:
    """List the groups of an instance."""
    found = _groups(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    _print_list(found, as_json=as_json, nothing="There are no groups.")


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
    _print_one(found, "group_id", group, as_json=as_json, kind="Group")


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
    _call(Target("auth", auth, data), "DeleteGroup", request)
    _print_deleted("Group", group, as_json=as_json)


# --- parent topics

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_duration(text: str) -> int:
    """Return the seconds of `3d`, `12h`, `30m`, `90s` or `90`.

    Raises:
        CliError: it is none of them, or zero.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if not match or not int(match[1]):
        raise CliError(f"--retention: {text!r} is not a time such as 3d, 12h, 30m or 90s.", status=WRONG_USE)
    return int(match[1]) * _UNITS[match[2]]


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
    answer = _call(Target("auth", auth, data), "CreateTopic", pb.CreateTopicRequest(topic=wanted))
    _print_created("Topic", topic, record(answer.topic), as_json=as_json)


def _topics(target: Target, instance: str) -> Sequence[Message]:
    found: Sequence[Message] = _call(target, "ListTopics", pb.ListTopicsRequest(instance_id=instance)).topics
    return found


@topic_app.command("list")
def list_topics(
    instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False
) -> None:
    """List the parent topics of an instance."""
    found = _topics(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    _print_list(found, as_json=as_json, nothing="There are no topics.")


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
    _print_one(found, "topic", topic, as_json=as_json, kind="Topic")


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
    _call(Target("auth", auth, data), "DeleteTopic", request)
    _print_deleted("Topic", topic, as_json=as_json)
