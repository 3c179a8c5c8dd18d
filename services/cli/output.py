"""Results of commands: JSON for programs, short lines and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import typer
from google.protobuf.message import Message

from services.cli.errors import CliError

Record = dict[str, object]


def record(message: Message) -> Record:
    """Return the fields of a message; enum values without their prefix, in lower case.

    Unlike protobuf's own JSON form, 64-bit numbers are numbers, and every field is there.
    """
    values: Record = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            values[field.name] = [record(one) if isinstance(one, Message) else one for one in value]
        elif isinstance(value, Message):
            values[field.name] = record(value)
        elif field.enum_type is not None:
            names = field.enum_type.values_by_number
            prefix = names[0].name.removesuffix("UNSPECIFIED")
            values[field.name] = names[value].name.removeprefix(prefix).lower() if value in names else value
        else:
            values[field.name] = value
    return values


def print_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_record(values: Mapping[str, object]) -> None:
    """Print one line for each field."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        typer.echo(f"{_label(name):<{width}}  {_shown(name, value)}".rstrip())


def print_table(records: Sequence[Mapping[str, object]], *, nothing: str) -> None:
    """Print a line for each record under a line of headings, or `nothing`."""
    if not records:
        typer.echo(nothing)
        return
    names = list(records[0])
    rows = [[_label(name).upper() for name in names]]
    rows += [[_shown(name, row[name]) for name in names] for row in records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_created(kind: str, name: str, values: Record, *, as_json: bool) -> None:
    """Print something that was made or changed."""
    if as_json:
        print_json(values)
        return
    typer.echo(f"{kind} {name} created")
    print_record(values)


def print_list(messages: Sequence[Message], *, as_json: bool, nothing: str, columns: Sequence[str] = ()) -> None:
    """Print messages; the table for people has `columns` only, all when empty."""
    records = [record(message) for message in messages]
    if as_json:
        print_json(records)
        return
    print_table([{name: one[name] for name in columns or one} for one in records], nothing=nothing)


def print_one(messages: Sequence[Message], key: str, name: str, *, as_json: bool, kind: str) -> None:
    """Print the message whose field `key` is `name`.

    Raises:
        CliError: there is none.
    """
    for message in messages:
        if getattr(message, key) == name:
            (print_json if as_json else print_record)(record(message))
            return
    raise CliError(f"There is no {kind} {name}.", f"`weimq {kind.lower()} list` shows those that exist.")


def print_deleted(kind: str, name: str, *, as_json: bool) -> None:
    """Print that something is gone."""
    if as_json:
        print_json({"deleted": name})
    else:
        typer.echo(f"{kind} {name} deleted")


def _label(name: str) -> str:
    return name.removesuffix("_ms").removesuffix("_s").replace("_", " ")


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _shown_number(name, value)
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return str(value)


def _shown_number(name: str, value: int) -> str:
    if name.startswith("max_") and value == 0:
        return "no limit"
    if name.endswith("_time_ms"):
        if value == 0:
            return "-"  # there was none yet
        return datetime.fromtimestamp(value / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if name.endswith("_ms"):
        return duration(value // 1_000) if value % 1_000 == 0 else f"{value}ms"
    return duration(value) if name.endswith("_s") else str(value)


def duration(seconds: int) -> str:
    """Return seconds in the largest unit that divides them: `3d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
