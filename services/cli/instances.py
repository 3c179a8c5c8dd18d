"""`weimq instance create|set|list|show|delete`, over auth's resource API."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from services.cli.errors import WRONG_USE, CliError
from services.cli.options import DEFAULT_DATA, AuthOption, DataOption, JsonOption, example
from services.cli.output import print_created, print_deleted, print_json, print_list, print_one, print_record, record
from services.cli.rpc import Target
from weimq.auth.v1 import auth_pb2
from weimq.auth.v1 import resource_pb2 as pb
from weimq.auth.v1.resource_pb2_grpc import ResourceServiceStub

instance_app = typer.Typer(name="instance", help="Instances: the tenants of the mesh.", no_args_is_help=True)


class Profile(enum.StrEnum):
    """Rule set of an instance."""

    LMQ = "lmq"
    STANDARD = "standard"


@instance_app.command("create", epilog=example("instance create plain --profile standard --anonymous"))
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
    answer = Target("auth", auth, data).request(
        ResourceServiceStub, "CreateInstance", pb.CreateInstanceRequest(instance=wanted)
    )
    print_created("Instance", instance, record(answer.instance), as_json=as_json)


def _instances(target: Target) -> Sequence[Message]:
    found: Sequence[Message] = target.request(ResourceServiceStub, "ListInstances", pb.ListInstancesRequest()).instances
    return found


@instance_app.command("list", epilog=example("instance list"))
def list_instances(data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False) -> None:
    """List the instances; `weimq instance show` tells the limits of one."""
    print_list(
        _instances(Target("auth", auth, data)),
        as_json=as_json,
        nothing="There are no instances.",
        columns=("instance_id", "profile", "anonymous", "create_time_ms"),
    )


@instance_app.command("show", epilog=example("instance show mqtt-demo"))
def show_instance(
    instance: Annotated[str, typer.Argument(metavar="ID")],
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show an instance."""
    print_one(_instances(Target("auth", auth, data)), "instance_id", instance, as_json=as_json, kind="Instance")


def _limit(text: str) -> Any:  # noqa: ANN401 - an option of typer
    return typer.Option(metavar="N", show_default="as it is", help=text)


@instance_app.command("set", epilog=example("instance set mqtt-demo --max-subscriptions 50 --takeover"))
def set_instance(
    instance: Annotated[str, typer.Argument(metavar="ID")],
    anonymous: Annotated[
        bool | None, typer.Option(show_default="as it is", help="Let clients in without user name (profile standard).")
    ] = None,
    takeover: Annotated[
        bool | None,
        typer.Option(show_default="as it is", help="A second connection with a client id displaces the first."),
    ] = None,
    refuse_filters: Annotated[
        bool | None, typer.Option(show_default="as it is", help="Answer denied filters 0x80 instead of closing.")
    ] = None,
    strict_order: Annotated[
        bool | None, typer.Option(show_default="as it is", help="Live messages wait behind the offline ones.")
    ] = None,
    max_topic_characters: Annotated[int | None, _limit("Longest topic; 0: what MQTT allows.")] = None,
    max_topic_levels: Annotated[int | None, _limit("Most levels of a topic; 0: what MQTT allows.")] = None,
    max_payload_bytes: Annotated[
        int | None, _limit("Largest payload; a larger one is acknowledged and dropped.")
    ] = None,
    max_subscriptions: Annotated[int | None, _limit("Subscriptions of a client.")] = None,
    offline_batch_messages: Annotated[int | None, _limit("Offline messages sent at once; 0: no pacing.")] = None,
    offline_batch_interval_ms: Annotated[int | None, _limit("Milliseconds between those batches.")] = None,
    acknowledgement_timeout_ms: Annotated[
        int | None, _limit("Milliseconds after which an unacknowledged message counts as offline.")
    ] = None,
    offline_retention_ms: Annotated[int | None, _limit("Milliseconds that offline messages are kept.")] = None,
    max_offline_messages: Annotated[int | None, _limit("Offline messages of the instance.")] = None,
    session_expiry_ms: Annotated[
        int | None, _limit("Milliseconds that a persistent session outlives its last connection; 0: for ever.")
    ] = None,
    max_publish_rate: Annotated[int | None, _limit("Messages of a client per second; 0: no bound.")] = None,
    max_publish_bytes_rate: Annotated[int | None, _limit("Bytes of a client per second; 0: no bound.")] = None,
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Change rules and limits of an instance; what is not named stays as it is."""
    given = {
        "anonymous": anonymous,
        "takeover": takeover,
        "refuse_filters": refuse_filters,
        "strict_order": strict_order,
        "max_topic_characters": max_topic_characters,
        "max_topic_levels": max_topic_levels,
        "max_payload_bytes": max_payload_bytes,
        "max_subscriptions": max_subscriptions,
        "offline_batch_messages": offline_batch_messages,
        "offline_batch_interval_ms": offline_batch_interval_ms,
        "acknowledgement_timeout_ms": acknowledgement_timeout_ms,
        "offline_retention_ms": offline_retention_ms,
        "max_offline_messages": max_offline_messages,
        "session_expiry_ms": session_expiry_ms,
        "max_publish_rate": max_publish_rate,
        "max_publish_bytes_rate": max_publish_bytes_rate,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise CliError(
            "What shall change? No option names it.", "`weimq instance set --help` lists them.", status=WRONG_USE
        )
    try:
        wanted = pb.Instance(instance_id=instance, **changes)
    except ValueError as error:
        raise CliError(f"A number is too large: {error}.", status=WRONG_USE) from error
    request = pb.UpdateInstanceRequest(instance=wanted, update_mask=FieldMask(paths=list(changes)))
    answer = Target("auth", auth, data).request(ResourceServiceStub, "UpdateInstance", request)
    (print_json if as_json else print_record)(record(answer.instance))


@instance_app.command("delete", epilog=example("instance delete plain --force"))
def delete_instance(
    instance: Annotated[str, typer.Argument(metavar="ID")],
    force: Annotated[bool, typer.Option("--force", help="Delete what it owns too, messages included.")] = False,
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Delete an instance that owns nothing."""
    request = pb.DeleteInstanceRequest(instance_id=instance, force=force)
    Target("auth", auth, data).request(ResourceServiceStub, "DeleteInstance", request)
    print_deleted("Instance", instance, as_json=as_json)
