"""`list`, `show` and `delete` of what auth keeps by name in an instance: AccessKeys, groups and parent topics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from google.protobuf.message import Message

from services.cli.errors import CliError
from services.cli.options import DEFAULT_DATA, AuthOption, DataOption, InstanceOption, JsonOption, example
from services.cli.output import print_deleted, print_list, print_one
from services.cli.rpc import Target, instance_or_bootstrap
from weimq.auth.v1 import resource_pb2 as pb
from weimq.auth.v1.resource_pb2_grpc import ResourceServiceStub

NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of resource.

    Attributes:
        name: as in the names of the calls and for people: `Topic`.
        plural: for people: `topics`.
        key: field of its message that names it.
        list_request: request of `List<name>s`, whose answer has `items`.
        items: field of that answer.
        delete_request: request of `Delete<name>`.
        deletion: what deleting one does, a sentence.
        sample: a name for examples.
    """

    name: str
    plural: str
    key: str
    list_request: type[pb.ListAccessKeysRequest | pb.ListGroupsRequest | pb.ListTopicsRequest]
    items: str
    delete_request: type[pb.DeleteAccessKeyRequest | pb.DeleteGroupRequest | pb.DeleteTopicRequest]
    deletion: str
    sample: str


def check_instance(target: Target, instance: str) -> None:
    """Refuse an instance that does not exist.

    Raises:
        CliError: it does not.
    """
    existing = target.request(ResourceServiceStub, "ListInstances", pb.ListInstancesRequest()).instances
    if instance not in {each.instance_id for each in existing}:
        raise CliError(f"There is no instance {instance}.", "`weimq instance list` shows those that exist.")


def add_commands(app: typer.Typer, kind: Kind) -> None:
    """Give the commands of a kind its `list`, `show` and `delete`."""
    command = kind.name.lower()

    def found(target: Target, instance: str) -> Sequence[Message]:
        answer = target.request(ResourceServiceStub, f"List{kind.name}s", kind.list_request(instance_id=instance))
        items: Sequence[Message] = getattr(answer, kind.items)
        if not items:
            check_instance(target, instance)
        return items

    @app.command("list", help=f"List the {kind.plural} of an instance.", epilog=example(f"{command} list"))
    def _list(
        instance: InstanceOption = "",
        data: DataOption = DEFAULT_DATA,
        auth: AuthOption = "",
        as_json: JsonOption = False,
    ) -> None:
        messages = found(Target("auth", auth, data), instance_or_bootstrap(instance, data))
        print_list(messages, as_json=as_json, nothing=f"There are no {kind.plural}.")

    @app.command("show", help=f"Show one {kind.name}.", epilog=example(f"{command} show {kind.sample}"))
    def _show(
        name: NameArgument,
        instance: InstanceOption = "",
        data: DataOption = DEFAULT_DATA,
        auth: AuthOption = "",
        as_json: JsonOption = False,
    ) -> None:
        messages = found(Target("auth", auth, data), instance_or_bootstrap(instance, data))
        print_one(messages, kind.key, name, as_json=as_json, kind=kind.name)

    @app.command("delete", help=kind.deletion, epilog=example(f"{command} delete {kind.sample}"))
    def _delete(
        name: NameArgument,
        instance: InstanceOption = "",
        data: DataOption = DEFAULT_DATA,
        auth: AuthOption = "",
        as_json: JsonOption = False,
    ) -> None:
        request = kind.delete_request(instance_id=instance_or_bootstrap(instance, data), **{kind.key: name})
        Target("auth", auth, data).request(ResourceServiceStub, f"Delete{kind.name}", request)
        print_deleted(kind.name, name, as_json=as_json)
