"""The tables of settings in docs/operations.md are those of the dataclasses; `make docs` rewrites them."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path

import pytest

from services.auth.settings import AuthSettings
from services.cli.config_file import _SET_BY_UP
from services.common.settings import CommonSettings, Secret, variable
from services.edge.settings import EdgeSettings
from services.router.settings import RouterSettings
from services.session.settings import SessionSettings
from services.status.settings import StatusSettings

DOCUMENT = Path(__file__).parents[3] / "docs" / "operations.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->\n"

FORMS: tuple[tuple[str, type[CommonSettings]], ...] = (
    ("Every service", CommonSettings),
    ("Auth", AuthSettings),
    ("Session", SessionSettings),
    ("Router", RouterSettings),
    ("Status", StatusSettings),
    ("Edge", EdgeSettings),
)


def default_of(field: dataclasses.Field[object]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    if value is None or value == "":
        return "-"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def bounds_of(field: dataclasses.Field[object]) -> str:
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    return "" if low is None and high is None else f" {low} to {high}."


def table(title: str, form: type[CommonSettings]) -> str:
    shared = {field.name for field in dataclasses.fields(CommonSettings)}
    given = _SET_BY_UP["weimq" if form is CommonSettings else title.lower()]
    lines = [f"### {title}", "", "| Variable | Default | Meaning |", "|---|---|---|"]
    hints = typing.get_type_hints(form)
    for field in dataclasses.fields(form):
        if field.name in shared and form is not CommonSettings:
            continue
        is_secret = Secret in (hints[field.name], *typing.get_args(hints[field.name]))
        name = (
            f"`{variable(form, field)}`" + (" (`_FILE`)" if is_secret else "") + (" *" if field.name in given else "")
        )
        lines.append(f"| {name} | {default_of(field)} | {field.metadata['text']}{bounds_of(field)} |")
    return "\n".join(lines)


def test_every_setting_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + BEGIN + "\n" + "\n\n".join(table(*each) for each in FORMS) + "\n\n" + END + after
    if os.environ.get("WEIMQ_WRITE_DOCS"):
        DOCUMENT.write_text(wanted, encoding="utf-8")
        return
    if text != wanted:
        pytest.fail("docs/operations.md does not list the settings as they are: run `make docs`")
