"""`weimq credentials|sign|status|clients|kick`: what a device needs, and what it does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from grpc import aio

from services.cli import mosquitto, nats_config
from services.cli.errors import WRONG_USE, CliError
from services.cli.options import DEFAULT_DATA, DataOption, InstanceOption, JsonOption, StatusOption
from services.cli.output import print_json, print_record, print_table, record
from services.cli.rpc import Target, instance_or_bootstrap
from services.cli.secrets import DataDir
from services.common import signature
from weimq.status.v1 import status_pb2
from weimq.status.v1.status_pb2_grpc import StatusServiceStub

PAGE = 1_000
"""Clients in one answer of status."""

ClientArgument = Annotated[str, typer.Argument(metavar="CLIENT_ID", help="Such as GID_demo@@@device1.")]


def credentials(data: DataOption = DEFAULT_DATA, as_json: JsonOption = False) -> None:
    """Print the instance, AccessKey, group and parent topic made at the first start, and the NATS URL of backends."""
    directory = DataDir(data)
    bootstrap = directory.read_bootstrap()
    values = {
        "instance": bootstrap.instance,
        "access_key": bootstrap.access_key,
        "secret": bootstrap.secret,
        "group": bootstrap.group,
        "topic": bootstrap.topic,
        "nats_url": nats_config.backend_url(directory, directory.read_backends()[0]),
    }
    (print_json if as_json else print_record)(values)


def sign(
    client_id: ClientArgument,
    access_key: Annotated[
        str, typer.Option(metavar="ID", show_default="that of the first start", help="AccessKey that signs.")
    ] = "",
    secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the secret of --access-key.")
    ] = None,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    as_json: JsonOption = False,
) -> None:
    """Print the MQTT user name and password of a client in signature mode."""
    directory = DataDir(data)
    if bool(access_key) != bool(secret_file):
        raise CliError("--access-key and --secret-file belong together.", status=WRONG_USE)
    if secret_file:
        try:
            secret = secret_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CliError(f"--secret-file: can't read {secret_file}: {error.strerror}.", status=WRONG_USE) from error
    else:
        bootstrap = directory.read_bootstrap()
        access_key, secret = bootstrap.access_key, bootstrap.secret
        if instance and instance != bootstrap.instance:
            raise CliError(
                f"The AccessKey of the first start is one of instance {bootstrap.instance}, not of {instance}.",
                f"Make one with `weimq accesskey create --instance {instance}`, put its secret into a file, "
                "and name both: --access-key ID --secret-file FILE.",
                status=WRONG_USE,
            )
    values = {
        "client_id": client_id,
        "username": f"Signature|{access_key}|{instance_or_bootstrap(instance, data)}",
        "password": signature.sign(secret, client_id),
    }
    if as_json:
        print_json(values)
        return
    print_record(values)
    topic = directory.read_bootstrap().topic if directory.is_initialized else "demo"
    tries = mosquitto.lines(data, **values, subscribe=f"{topic}/#", publish=f"{topic}/hello")
    typer.echo("\n" + "\n".join(tries))


def status(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print whether a client is online, its connections with their subscriptions, and what is kept for it."""
    wanted = status_pb2.DescribeClientRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)

    answer = Target("status", address, data).request(StatusServiceStub, "DescribeClient", wanted)
    if as_json:
        values = record(answer)
        values["session"] = record(answer.session) if answer.HasField("session") else None
        print_json(values)
        return
    states = {-1: "unknown, the state is not in sync yet: try again", 0: "offline", 1: "online"}
    typer.echo(f"{client_id}: {states.get(answer.online, f'online, {answer.online} connections')}")
    if answer.connections:
        print_table([_connection(connection) for connection in answer.connections], nothing="")
    if answer.HasField("session"):
        kind = "persistent session" if answer.session.persistent else "kept P2P messages"
        typer.echo(f"\n{kind}: {answer.session.offline_message_count} message(s) wait for it")
        if answer.session.subscriptions:
            typer.echo(f"subscriptions: {_filters(answer.session.subscriptions)}")


def clients(
    group: Annotated[
        str, typer.Argument(metavar="GROUP", help="Group ID.", show_default="the group made at the first start")
    ] = "",
    topic: Annotated[
        str, typer.Option(metavar="TOPIC", help="Clients with a subscription that matches, instead of a group's.")
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on and print who comes and goes, until Ctrl-C; one JSON line each.")
    ] = False,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the clients of a group that are online, or the subscribers of a topic."""
    if topic and (group or watch):
        raise CliError("--topic goes without GROUP and --watch.", status=WRONG_USE)
    instance_id = instance_or_bootstrap(instance, data)
    group = group or (DataDir(data).read_bootstrap().group if not topic else "")
    target = Target("status", address, data)
    if watch:
        target.call(lambda channel: _watch(channel, instance_id, group))
    elif topic:
        matching = status_pb2.ListSubscribersRequest(instance_id=instance_id, topic=topic, page_size=PAGE)
        subscribers = target.request_all(StatusServiceStub, "ListSubscribers", matching, "subscribers")
        if as_json:
            print_json([record(each) for each in subscribers])
            return
        rows = [
            {"client_id": each.client_id, "edge_id": each.edge_id, "subscriptions": _filters(each.subscriptions)}
            for each in subscribers
        ]
        print_table(rows, nothing=f"Nobody online has a subscription that matches {topic}.")
    else:
        members = status_pb2.ListGroupClientsRequest(instance_id=instance_id, group_id=group, page_size=PAGE)
        online = target.request_all(StatusServiceStub, "ListGroupClients", members, "clients")
        if as_json:
            print_json([record(each) for each in online])
            return
        found: list[dict[str, object]] = [
            {"client_id": each.client_id} | _connection(connection)
            for each in online
            for connection in each.connections
        ]
        print_table(found, nothing=f"No client of {group} is online.")


def _connection(connection: status_pb2.ClientConnection) -> dict[str, object]:
    values = record(connection)
    values["subscriptions"] = _filters(connection.subscriptions)
    return values if connection.subscriptions else {k: v for k, v in values.items() if k != "subscriptions"}


def _filters(subscriptions: Iterable[status_pb2.Subscription]) -> str:
    return ", ".join(f"{each.topic_filter} (QoS {each.qos})" for each in subscriptions)


async def _watch(channel: aio.Channel, instance_id: str, group: str) -> None:
    request = status_pb2.WatchGroupRequest(instance_id=instance_id, group_id=group)
    async for message in StatusServiceStub(channel).WatchGroup(request):
        for change in message.changes:
            values = {
                "client_id": change.client_id,
                "connected": change.connected,
                "time_ms": change.time_ms,
                "channel_id": change.connection.channel_id,
                "address": change.connection.address,
            }
            typer.echo(json.dumps(values, ensure_ascii=False))


def kick(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """Close every connection of a client."""
    wanted = status_pb2.CloseConnectionsRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)

    answer = Target("status", address, data).request(StatusServiceStub, "CloseConnections", wanted)
    if as_json:
        print_json(record(answer))
    else:
        typer.echo(f"{client_id}: {answer.connection_count} connection(s) closed")
