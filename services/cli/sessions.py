"""`weimq session list|show|delete`: what is kept for clients that are away."""

from __future__ import annotations

from typing import Annotated

import typer
from grpc import aio

from services.cli.clients import ClientArgument
from services.cli.errors import CliError
from services.cli.options import DEFAULT_DATA, DataOption, InstanceOption, JsonOption, StatusOption, example
from services.cli.output import print_json, print_record, print_table, record
from services.cli.rpc import TIMEOUT_S, Target, instance_or_bootstrap
from weimq.status.v1 import status_pb2, status_pb2_grpc

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
    instance_id = instance_or_bootstrap(instance, data)

    async def work(channel: aio.Channel) -> list[status_pb2.SessionSummary]:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        wanted = status_pb2.ListSessionsRequest(instance_id=instance_id, client_id_prefix=prefix, page_size=PAGE)
        sessions: list[status_pb2.SessionSummary] = []
        while True:
            answer = await stub.ListSessions(wanted, timeout=TIMEOUT_S)
            sessions.extend(answer.sessions)
            wanted.page_token = answer.next_page_token
            if not wanted.page_token:
                return sessions

    sessions = Target("status", address, data).call(work)
    if as_json:
        print_json([record(session) for session in sessions])
    else:
        print_table([record(session) for session in sessions], nothing="There are no sessions.")


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

    async def work(channel: aio.Channel) -> status_pb2.DescribeClientResponse:
        return await status_pb2_grpc.StatusServiceStub(channel).DescribeClient(wanted, timeout=TIMEOUT_S)

    answer = Target("status", address, data).call(work)
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

    async def work(channel: aio.Channel) -> status_pb2.DeleteSessionResponse:
        return await status_pb2_grpc.StatusServiceStub(channel).DeleteSession(wanted, timeout=2 * TIMEOUT_S)

    answer = Target("status", address, data).call(work)
    if as_json:
        print_json(record(answer))
    else:
        typer.echo(f"{client_id}: deleted, {answer.dropped_message_count} message(s) dropped")
