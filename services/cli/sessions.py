"""`weimq session list|show|delete`: what is kept for clients that are away."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.clients import ClientArgument
from services.cli.errors import CliError
from services.cli.options import DEFAULT_DATA, DataOption, InstanceOption, JsonOption, StatusOption, example
from services.cli.output import print_json, print_list, print_record, record
from services.cli.rpc import TIMEOUT_S, Target, instance_or_bootstrap
from weimq.status.v1 import status_pb2
from weimq.status.v1.status_pb2_grpc import StatusServiceStub

PAGE = 1_000
"""Sessions in one answer of status."""

session_app = typer.Typer(name="session", help="Persistent sessions and kept messages.", no_args_is_help=True)


@session_app.command("list", epilog=example("session list --prefix GID_demo"))
def list_sessions(
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Only clients whose id begins with this, such as a group.")
    ] = "",
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the sessions of an instance, with how many messages wait for each."""
    wanted = status_pb2.ListSessionsRequest(
        instance_id=instance_or_bootstrap(instance, data), client_id_prefix=prefix, page_size=PAGE
    )
    sessions = Target("status", address, data).request_all(StatusServiceStub, "ListSessions", wanted, "sessions")
    print_list(sessions, as_json=as_json, nothing="There are no sessions.")


@session_app.command("show", epilog=example("session show GID_demo@@@device1"))
def show_session(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print the session of a client: its subscriptions, and how many messages wait for it."""
    wanted = status_pb2.DescribeClientRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)

    answer = Target("status", address, data).request(StatusServiceStub, "DescribeClient", wanted)
    if not answer.HasField("session"):
        raise CliError(f"There is no session of {client_id}.")
    values = record(answer.session)
    if not as_json:
        values["subscriptions"] = ", ".join(
            f"{each.topic_filter} ({each.qos})" for each in answer.session.subscriptions
        )
    (print_json if as_json else print_record)(values)


@session_app.command("delete", epilog=example("session delete GID_demo@@@device1"))
def delete_session(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    address: StatusOption = "",
    as_json: JsonOption = False,
) -> None:
    """Delete the session of a client with the messages that wait for it, and close its connections."""
    wanted = status_pb2.DeleteSessionRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)

    target = Target("status", address, data)
    answer = target.request(StatusServiceStub, "DeleteSession", wanted, timeout_s=2 * TIMEOUT_S)
    if as_json:
        print_json(record(answer))
    else:
        typer.echo(f"{client_id}: deleted, {answer.dropped_message_count} message(s) dropped")
