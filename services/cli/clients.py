"""`weimq credentials|sign|status|kick`: what a device needs, and what it does."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from grpc import aio

from services.cli import nats_config
from services.cli.errors import WRONG_USE, CliError
from services.cli.options import DEFAULT_DATA, DataOption, InstanceOption, JsonOption, StatusOption
from services.cli.output import print_json, print_record, print_table, record
from services.cli.ports import LOOPBACK, split_address
from services.cli.rpc import TIMEOUT_S, Target, instance_or_bootstrap
from services.cli.run_file import read_running
from services.cli.secrets import DataDir
from services.common import signature
from weimq.status.v1 import status_pb2, status_pb2_grpc

ClientArgument = Annotated[str, typer.Argument(metavar="CLIENT_ID", help="Such as GID_demo@@@device1.")]


def credentials(data: DataOption = DEFAULT_DATA, as_json: JsonOption = False) -> None:
    """Print the instance, AccessKey, group and parent topic made at the first start, and the NATS URL of backends."""
    directory = DataDir(data)
    bootstrap = directory.read_bootstrap()
    # The services' URL tells where NATS is reached; backends have a user of their own.
    address = directory.read_text(directory.nats_url).rpartition("@")[2]
    values = {
        "instance": bootstrap.instance,
        "access_key": bootstrap.access_key,
        "secret": bootstrap.secret,
        "group": bootstrap.group,
        "topic": bootstrap.topic,
        "nats_url": nats_config.url(nats_config.BACKEND_USER, directory.read_nats_passwords().backend, address),
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
    values = {
        "client_id": client_id,
        "username": f"Signature|{access_key}|{instance_or_bootstrap(instance, data)}",
        "password": signature.sign(secret, client_id),
    }
    if as_json:
        print_json(values)
        return
    print_record(values)
    run = read_running(directory)
    host, port = split_address(run.endpoints["mqtt"] if run else f"{LOOPBACK}:1883")
    topic = directory.read_bootstrap().topic if directory.is_initialized else "demo"
    login = ["-h", _reachable(host), "-p", str(port), "-i", client_id]
    login += ["-u", values["username"], "-P", values["password"]]
    subscribe = ["mosquitto_sub", *login, "-q", "1", "-t", f"{topic}/#", "-v"]
    publish = ["mosquitto_pub", *login, "-q", "1", "-t", f"{topic}/hello", "-m", "hello"]
    typer.echo(f"\n{shlex.join(subscribe)}\n{shlex.join(publish)}")


def _reachable(host: str) -> str:
    return LOOPBACK if host in {"0.0.0.0", "::"} else host


def status(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print whether a client is online, and its connections."""
    wanted = status_pb2.GetClientRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)

    async def work(channel: aio.Channel) -> status_pb2.GetClientResponse:
        return await status_pb2_grpc.StatusServiceStub(channel).GetClient(wanted, timeout=TIMEOUT_S)

    answer = Target("status", address, data).call(work)
    if as_json:
        print_json(record(answer))
        return
    states = {-1: "unknown, the state is not in sync yet: try again", 0: "offline", 1: "online"}
    typer.echo(f"{client_id}: {states.get(answer.online, f'online, {answer.online} connections')}")
    if answer.connections:
        print_table([record(connection) for connection in answer.connections], nothing="")


def kick(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """Close every connection of a client."""
    wanted = status_pb2.CloseConnectionsRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)

    async def work(channel: aio.Channel) -> status_pb2.CloseConnectionsResponse:
        return await status_pb2_grpc.StatusServiceStub(channel).CloseConnections(wanted, timeout=TIMEOUT_S)

    answer = Target("status", address, data).call(work)
    if as_json:
        print_json(record(answer))
    else:
        typer.echo(f"{client_id}: {answer.connection_count} connection(s) closed")
