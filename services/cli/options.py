"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    typer.Option("--instance", metavar="ID", show_default="the bootstrap instance", help="Instance it belongs to."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def data_options(data: Path) -> list[str]:
    """Return the options with which another command finds the same data directory."""
    return [] if data == DEFAULT_DATA else ["--data", str(data)]
