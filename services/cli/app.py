"""The commands of `weimq`, put together."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from services import compiled
from services.cli import access_keys, backends, clients, devices, instances, resources, sessions, tokens, up
from services.cli.options import example

app = typer.Typer(
    name="weimq",
    help="An open MQTT messaging platform: run it with `weimq up`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they would show values of variables, secrets among them
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weimq {importlib.metadata.version('weimq')}, hot path: {compiled.describe()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command(epilog=example("up --edges 2 --default-instance mqtt-demo"))(up.up)
app.command(epilog=example("init --data weimq-data"))(up.init)
app.command(epilog=example("credentials --json"))(clients.credentials)
app.command(epilog=example("sign GID_demo@@@device1"))(clients.sign)
app.command(epilog=example("status GID_demo@@@device1"))(clients.status)
app.command(epilog=example("clients GID_demo --watch"))(clients.clients)
app.command(epilog=example("kick GID_demo@@@device1"))(clients.kick)
for group in (
    backends.backend_app,
    instances.instance_app,
    access_keys.accesskey_app,
    resources.group_app,
    resources.topic_app,
    tokens.token_app,
    devices.device_app,
    sessions.session_app,
):
    app.add_typer(group)
