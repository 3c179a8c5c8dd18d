"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from services.cli.errors import WRONG_USE, CliError

DEFAULT_DATA = Path(".weimq")

DataOption = Annotated[
    Path, typer.Option("--data", metavar="DIR", envvar="WEIMQ_DATA", help="Data directory of the mesh.")
]
AuthOption = Annotated[
    str,
    typer.Option(
        "--auth",
        metavar="HOST:PORT",
        envvar="WEIMQ_AUTH",
        help="gRPC address of auth, for a mesh elsewhere; the token is read from WEIMQ_CLUSTER_TOKEN(_FILE).",
    ),
]
StatusOption = Annotated[
    str,
    typer.Option(
        "--status",
        metavar="HOST:PORT",
        envvar="WEIMQ_STATUS",
        help="gRPC address of status, for a mesh elsewhere; the token is read from WEIMQ_CLUSTER_TOKEN(_FILE).",
    ),
]
InstanceOption = Annotated[
    str,
    typer.Option("--instance", metavar="ID", show_default="that of the first start", help="Instance it belongs to."),
]
AccountOption = Annotated[str, typer.Option("--account", metavar="ID", help="Account that owns it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def example(command: str) -> str:
    """Return the last lines of a command's help: how it is called, such as `topic create sensors`."""
    return f"Example: weimq {command}"


def data_options(data: Path) -> list[str]:
    """Return the options with which another command finds the same data directory."""
    return [] if data == DEFAULT_DATA else ["--data", str(data)]


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_duration(text: str, option: str = "--retention") -> int:
    """Return the seconds of `3d`, `12h`, `30m`, `90s` or `90`.

    Raises:
        CliError: it is none of them, or zero.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if not match or not int(match[1]):
        raise CliError(f"{option}: {text!r} is not a time such as 3d, 12h, 30m or 90s.", status=WRONG_USE)
    return int(match[1]) * _UNITS[match[2]]
