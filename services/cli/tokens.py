"""`weimq token apply|revoke|query|rotate-key`, over auth's token API."""

from __future__ import annotations

import enum
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from services.cli import mosquitto
from services.cli.errors import WRONG_USE, CliError
from services.cli.options import (
    DEFAULT_DATA,
    AuthOption,
    DataOption,
    InstanceOption,
    JsonOption,
    example,
    parse_duration,
)
from services.cli.output import print_json, print_record, print_table, record
from services.cli.rpc import Target, access_key_or_bootstrap, instance_or_bootstrap
from weimq.auth.v1 import auth_pb2
from weimq.auth.v1 import token_pb2 as pb
from weimq.auth.v1.token_pb2_grpc import TokenServiceStub

token_app = typer.Typer(
    name="token", help="Tokens: what devices connect with that hold no secret.", no_args_is_help=True
)

MIN_LIFETIME_S = 60
"""What a token must have left when auth gets the request."""
BATCH = 1_000
"""Tokens that auth revokes in one call."""

_WORTH = {0: "valid", 1: "forged", 2: "expired", 3: "revoked", -1: "its AccessKey or instance is gone"}


class Actions(enum.StrEnum):
    """What a token allows."""

    READ = "R"
    WRITE = "W"
    READ_WRITE = "RW"


_TYPES = {
    Actions.READ: auth_pb2.TOKEN_TYPE_READ,
    Actions.WRITE: auth_pb2.TOKEN_TYPE_WRITE,
    Actions.READ_WRITE: auth_pb2.TOKEN_TYPE_READ_WRITE,
}

FileOption = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="File with a token in each line; `-`: standard input."),
]


@token_app.command("apply", epilog=example("token apply 'demo/#' --actions R --lifetime 12h"))
def apply(
    resources: Annotated[
        list[str], typer.Argument(metavar="TOPIC", help="Topics and filters, such as demo/# or demo/p2p/#.")
    ],
    actions: Annotated[Actions, typer.Option(help="R subscribe, W publish, RW both.")] = Actions.READ_WRITE,
    lifetime: Annotated[str, typer.Option(metavar="TIME", help="Such as 10m, 12h or 30d; 30d at most.")] = "1h",
    access_key: Annotated[
        str,
        typer.Option(metavar="ID", show_default="that of the first start", help="AccessKey that the token belongs to."),
    ] = "",
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print a new token, and the MQTT user name and password with it."""
    seconds = parse_duration(lifetime, "--lifetime")
    if seconds <= MIN_LIFETIME_S:
        raise CliError(f"--lifetime: must be more than {MIN_LIFETIME_S} s, not {lifetime}.", status=WRONG_USE)
    instance_id = instance_or_bootstrap(instance, data)
    access_key_id = access_key_or_bootstrap(access_key, data)
    request = pb.ApplyTokenRequest(
        instance_id=instance_id,
        access_key_id=access_key_id,
        actions=_TYPES[actions],
        resources=resources,
        expire_time_ms=round((time.time() + seconds) * 1_000),
    )
    answer = Target("auth", auth, data).request(TokenServiceStub, "ApplyToken", request)
    values = record(answer) | {
        "username": f"Token|{access_key_id}|{instance_id}",
        "password": f"{actions.value}|{answer.token}",
    }
    if as_json:
        print_json(values)
        return
    print_record(values)
    tries = mosquitto.lines(
        data,
        client_id="GID_demo@@@device1",
        username=str(values["username"]),
        password=str(values["password"]),
        subscribe=resources[0] if actions is not Actions.WRITE else "",
        publish=resources[0].replace("+", "hello").replace("#", "hello") if actions is not Actions.READ else "",
    )
    typer.echo("\nA client of any id with it, such as:\n" + "\n".join(tries))


@token_app.command("revoke", epilog=example("token revoke --file tokens.txt"))
def revoke(
    tokens: Annotated[list[str] | None, typer.Argument(metavar="TOKEN")] = None,
    file: FileOption = None,
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Revoke tokens; connections that use them are closed within a second."""
    wanted = [*(tokens or []), *_lines(file)]
    if not wanted:
        raise CliError("Which tokens?", "Name them, or a file of them with --file.", status=WRONG_USE)
    target = Target("auth", auth, data)
    codes: list[int] = []
    for start in range(0, len(wanted), BATCH):
        request = pb.RevokeTokensRequest(tokens=wanted[start : start + BATCH])
        codes += target.request(TokenServiceStub, "RevokeTokens", request).codes
    counts = {
        "revoked": codes.count(0),
        "forged": codes.count(1),
        "expired": codes.count(2),
    }
    (print_json if as_json else print_record)(counts)
    if counts["forged"]:
        raise CliError(f"{counts['forged']} of {len(wanted)} are no tokens of this mesh.")


@token_app.command("query", epilog=example("token query --file token.txt"))
def query(
    token: Annotated[str, typer.Argument(metavar="TOKEN", show_default="the one of --file")] = "",
    file: FileOption = None,
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print what a token is worth, and what it allows."""
    wanted = [*([token] if token else []), *_lines(file)]
    if len(wanted) != 1:
        raise CliError("Which token? Exactly one must be named.", status=WRONG_USE)
    answer = Target("auth", auth, data).request(TokenServiceStub, "QueryToken", pb.QueryTokenRequest(token=wanted[0]))
    values = {"worth": _WORTH.get(answer.code, f"code {answer.code}")} | record(answer)
    if as_json:
        print_json(values)
    else:
        print_record(values if answer.token_id else {"worth": values["worth"]})


@token_app.command("rotate-key", epilog=example("token rotate-key"))
def rotate_key(data: DataOption = DEFAULT_DATA, auth: AuthOption = "", as_json: JsonOption = False) -> None:
    """Make a new key that seals tokens; those of older keys stay valid until they expire."""
    target = Target("auth", auth, data)
    answer = target.request(TokenServiceStub, "RotateTokenKey", pb.RotateTokenKeyRequest())
    if as_json:
        print_json(record(answer))
        return
    typer.echo(f"Token key {answer.token_key.key_id} created; it seals new tokens in 10 s.")
    print_table([record(key) for key in answer.token_keys], nothing="")


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--file: can't read {file}.", status=WRONG_USE) from error
    return text.split()
