"""`weimq accesskey create|set|list|show|delete`, over auth's resource API."""

from __future__ import annotations

import enum
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
)
from services.cli.output import print_created, print_json, print_record, record
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


@accesskey_app.command(
    "create", epilog=example("accesskey create AKreader --permission subscribe --topic-filter 'demo/#'")
)
def create_access_key(
    access_key: Annotated[str, typer.Argument(metavar="ID", show_default="a random one")] = "",
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


@accesskey_app.command("set", epilog=example("accesskey set AKreader --permission all"))
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


kinds.add_commands(
    accesskey_app,
    kinds.Kind(
        name="AccessKey",
        plural="AccessKeys",
        key="access_key_id",
        list_request=pb.ListAccessKeysRequest,
        items="access_keys",
        delete_request=pb.DeleteAccessKeyRequest,
        deletion="Delete an AccessKey; what it signed is refused from now on.",
        sample="AKreader",
    ),
)
