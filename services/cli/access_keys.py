"""`weimq accesskey create|set|list|show|delete`, over auth's resource API."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Annotated

import typer
from google.protobuf.message import Message

from services.cli.options import DEFAULT_DATA, AccountOption, AuthOption, DataOption, InstanceOption, JsonOption
from services.cli.output import print_created, print_deleted, print_json, print_list, print_one, print_record, record
from services.cli.rpc import Target, instance_or_bootstrap
from weimq.auth.v1 import resource_pb2 as pb
from weimq.auth.v1.resource_pb2_grpc import ResourceServiceStub

accesskey_app = typer.Typer(name="accesskey", help="AccessKeys: id and secret that sign.", no_args_is_help=True)


class Permission(enum.StrEnum):
    """What clients of an AccessKey may do."""

    ALL = "all"
    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


_PERMISSIONS = {
    Permission.ALL: pb.ACCESS_KEY_PERMISSION_ALL,
    Permission.PUBLISH: pb.ACCESS_KEY_PERMISSION_PUBLISH,
    Permission.SUBSCRIBE: pb.ACCESS_KEY_PERMISSION_SUBSCRIBE,
}

PermissionOption = Annotated[Permission, typer.Option("--permission", help="What its clients may do.")]
FiltersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--topic-filter",
        metavar="FILTER",
        show_default="every parent topic of its account",
        help="What it is limited to; may be given several times.",
    ),
]


@accesskey_app.command("create")
def create_access_key(
    access_key: Annotated[str, typer.Argument(metavar="[ID]", show_default="a random one")] = "",
    permission: PermissionOption = Permission.ALL,
    topic_filters: FiltersOption = None,
    account: AccountOption = "default",
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create an AccessKey and print its secret, which is never shown again."""
    request = pb.CreateAccessKeyRequest(
        instance_id=instance_or_bootstrap(instance, data),
        access_key_id=access_key,
        account_id=account,
        permission=_PERMISSIONS[permission],
        topic_filters=topic_filters or (),
    )
    answer = Target("auth", auth, data).request(ResourceServiceStub, "CreateAccessKey", request)
    values = record(answer.access_key) | {"secret": answer.secret}
    print_created("AccessKey", answer.access_key.access_key_id, values, as_json=as_json)


@accesskey_app.command("set")
def set_access_key(
    access_key: Annotated[str, typer.Argument(metavar="ID")],
    permission: PermissionOption = Permission.ALL,
    topic_filters: FiltersOption = None,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Replace the permissions of an AccessKey; what is not named is as for a new key."""
    request = pb.UpdateAccessKeyRequest(
        instance_id=instance_or_bootstrap(instance, data),
        access_key_id=access_key,
        permission=_PERMISSIONS[permission],
        topic_filters=topic_filters or (),
    )
    answer = Target("auth", auth, data).request(ResourceServiceStub, "UpdateAccessKey", request)
    (print_json if as_json else print_record)(record(answer.access_key))


def _access_keys(target: Target, instance: str) -> Sequence[Message]:
    request = pb.ListAccessKeysRequest(instance_id=instance)
    found: Sequence[Message] = target.request(ResourceServiceStub, "ListAccessKeys", request).access_keys
    return found


@accesskey_app.command("list")
def list_access_keys(
    instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False
) -> None:
    """List the AccessKeys of an instance, without secrets."""
    found = _access_keys(Target("auth", auth, data), instance_or_bootstrap(instance, data))
    print_list(found, as_json=as_json, nothing="There are no AccessKeys.")


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
    print_one(found, "access_key_id", access_key, as_json=as_json, kind="AccessKey")


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
    Target("auth", auth, data).request(ResourceServiceStub, "DeleteAccessKey", request)
    print_deleted("AccessKey", access_key, as_json=as_json)
