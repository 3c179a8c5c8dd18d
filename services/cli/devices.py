"""`weimq device register|refresh|revoke|show|list`, over auth's device API; `import` is in `device_import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli import device_import, mosquitto
from services.cli.errors import CliError
from services.cli.options import DEFAULT_DATA, AuthOption, DataOption, InstanceOption, JsonOption, example
from services.cli.output import Record, print_deleted, print_json, print_record, print_table, record
from services.cli.rpc import Target, instance_or_bootstrap
from services.common.signature import sign
from weimq.auth.v1 import device_pb2 as pb
from weimq.auth.v1.device_pb2_grpc import DeviceServiceStub

device_app = typer.Typer(
    name="device", help="Device credentials: a secret of its own for each device.", no_args_is_help=True
)

PAGE = 1_000

_CURES: dict[int, str] = {
    pb.REGISTER_OUTCOME_EXISTS: "`weimq device refresh` gives it another.",
    pb.REGISTER_OUTCOME_CLIENT_ID_REJECTED: "It must be <Group ID>@@@<device id>, of 64 characters at most.",
    pb.REGISTER_OUTCOME_GROUP_NOT_FOUND: "`weimq group create` makes it.",
}

ClientArgument = Annotated[str, typer.Argument(metavar="CLIENT_ID", help="Such as GID_demo@@@device1.")]


def _print_login(credential: pb.DeviceCredential, secret: str, data: Path, *, as_json: bool) -> None:
    values = {
        **record(credential),
        "secret": secret,
        "username": device_import.user_name(credential),
        "password": sign(secret, credential.client_id),
    }
    if as_json:
        print_json(values)
        return
    print_record(values)
    tries = mosquitto.lines(
        data,
        client_id=credential.client_id,
        username=str(values["username"]),
        password=str(values["password"]),
        subscribe="demo/#",
    )
    typer.echo("\n" + "\n".join(tries))


@device_app.command("register", epilog=example("device register GID_demo@@@device9"))
def register(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give a device a credential; its secret is never shown again."""
    request = pb.RegisterDeviceCredentialsRequest(
        instance_id=instance_or_bootstrap(instance, data), client_ids=[client_id]
    )
    answer = Target("auth", auth, data).request(DeviceServiceStub, "RegisterDeviceCredentials", request)
    (registration,) = answer.registrations
    if registration.outcome != pb.REGISTER_OUTCOME_REGISTERED:
        cause = device_import.OUTCOMES[registration.outcome]
        raise CliError(f"{client_id}: {cause}.", _CURES.get(registration.outcome, ""))
    _print_login(registration.device_credential, registration.secret, data, as_json=as_json)


@device_app.command("refresh", epilog=example("device refresh GID_demo@@@device9"))
def refresh(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give a device another id and secret; the old ones are worth nothing from now on."""
    request = pb.RefreshDeviceCredentialRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)
    answer = Target("auth", auth, data).request(DeviceServiceStub, "RefreshDeviceCredential", request)
    _print_login(answer.device_credential, answer.secret, data, as_json=as_json)


@device_app.command("revoke", epilog=example("device revoke GID_demo@@@device9"))
def revoke(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Take a device its credential; its connection is closed within a second."""
    request = pb.RevokeDeviceCredentialRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)
    Target("auth", auth, data).request(DeviceServiceStub, "RevokeDeviceCredential", request)
    print_deleted("Device credential of", client_id, as_json=as_json)


@device_app.command("show", epilog=example("device show GID_demo@@@device9"))
def show(
    client_id: ClientArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show the credential of a device, without its secret."""
    request = pb.GetDeviceCredentialRequest(instance_id=instance_or_bootstrap(instance, data), client_id=client_id)
    answer = Target("auth", auth, data).request(DeviceServiceStub, "GetDeviceCredential", request)
    (print_json if as_json else print_record)(record(answer.device_credential))


@device_app.command("list", epilog=example("device list --group GID_demo"))
def list_devices(
    group: Annotated[str, typer.Option(metavar="GROUP_ID", show_default="all", help="Group of the devices.")] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Most credentials shown.")] = 100,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """List device credentials by client id, without secrets."""
    target = Target("auth", auth, data)
    request = pb.ListDeviceCredentialsRequest(instance_id=instance_or_bootstrap(instance, data), group_id=group)
    records: list[Record] = []
    while True:
        request.page_size = min(PAGE, limit - len(records))
        answer = target.request(DeviceServiceStub, "ListDeviceCredentials", request)
        records += map(record, answer.device_credentials)
        request.page_token = answer.next_page_token
        if not request.page_token or len(records) == limit:
            break
    if as_json:
        print_json(records)
        return
    print_table(records, nothing="There are no device credentials.")
    if request.page_token:
        typer.echo(f"There are more; the instance has {answer.total_size}. `--limit N` shows them.")


@device_app.command("import", epilog=example("device import devices.csv --output credentials.csv"))
def import_devices(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.csv", help="Client ids in the first column, or in the one named client_id.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="FILE.credentials.csv",
            help="New file for the credentials, readable by its owner only.",
        ),
    ] = None,
    refresh_existing: Annotated[
        bool, typer.Option("--refresh-existing", help="Give devices that have a credential another one.")
    ] = False,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Register every device of a CSV file, and write the credentials to another."""
    target = Target("auth", auth, data)
    summary = device_import.run(
        target,
        instance_id=instance_or_bootstrap(instance, data),
        source=file,
        output=output or file.with_suffix(".credentials.csv"),
        refresh_existing=refresh_existing,
        quiet=as_json,
    )
    (print_json if as_json else print_record)(summary.record())
    if summary.rejected:
        raise CliError(f"{summary.rejected} client ids were rejected.", f"The reasons are in {summary.output}.")
