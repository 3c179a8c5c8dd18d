"""Settings of a service: environment variables parsed into a frozen dataclass.

All faults are reported together. A variable with the service's prefix that no field names is a
fault, so that a misspelt setting can't be ignored. A secret may be given as `NAME_FILE`, the path
of a file that holds it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import override

SHARED_PREFIX = "WEIMQ_"
"""Prefix of the settings that every service has."""

S = TypeVar("S", bound="CommonSettings")


class SettingsError(Exception):
    """Settings that can't be used.

    Attributes:
        faults: one sentence for each fault, naming the variable.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("wrong settings:\n" + "\n".join(f"  - {fault}" for fault in faults))
        self.faults = faults


class Secret:
    """A text that is never shown by `repr`, `str` or a log record."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    @override
    def __repr__(self) -> str:
        return "Secret(...)"


def setting(
    default: object = dataclasses.MISSING,
    *,
    text: str,
    minimum: float | None = None,
    maximum: float | None = None,
    shared: bool = False,
) -> Any:  # noqa: ANN401 - the type is the annotation of the field
    """Declare a field of a settings dataclass.

    Args:
        default: the value when the variable is not set; without it the variable is required.
        text: what it means, with its unit; shown in the documentation.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        shared: the variable has the prefix `WEIMQ_` instead of the service's own.
    """
    metadata = {"text": text, "minimum": minimum, "maximum": maximum, "shared": shared}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every service is told."""

    cluster_token: Secret = setting(
        text="Secret that every gRPC call between services carries; at least 16 characters.",
        shared=True,
    )
    log_level: str = setting("INFO", text="DEBUG, INFO, WARNING or ERROR.", shared=True)
    drain_s: float = setting(
        5.0,
        text="Seconds that a stopping service gives to calls and clients.",
        minimum=0,
        maximum=600,
        shared=True,
    )


def variable(settings: type[CommonSettings], field: dataclasses.Field[Any]) -> str:
    """Return the name of the environment variable of a field."""
    prefix = SHARED_PREFIX if field.metadata["shared"] else prefix_of(settings)
    return prefix + field.name.upper()


def prefix_of(settings: type[CommonSettings]) -> str:
    """Return the prefix of a service: `EDGE_` for `EdgeSettings`."""
    return settings.__name__.removesuffix("Settings").upper() + "_"


def load(settings: type[S], environ: Mapping[str, str]) -> S:
    """Parse the environment into `settings`.

    Raises:
        SettingsError: naming every variable that is missing, wrong or unknown.
    """
    faults: list[str] = []
    values: dict[str, object] = {}
    known: set[str] = set()
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name = variable(settings, field)
        is_secret = Secret in (hints[field.name], *typing.get_args(hints[field.name]))
        known.update((name, f"{name}_FILE") if is_secret else (name,))
        text = environ.get(name)
        if text is None and is_secret and (path := environ.get(f"{name}_FILE")):
            try:
                text = Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                faults.append(f"{name}_FILE: can't read {path}: {error.strerror}")
                continue
        if text is None:
            if field.default is dataclasses.MISSING:
                or_file = f" (or {name}_FILE)" if is_secret else ""
                faults.append(f"{name}{or_file} is not set: {field.metadata['text']}")
            continue
        try:
            values[field.name] = _parse(hints[field.name], text, field.metadata)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    prefix = prefix_of(settings)
    faults.extend(
        f"{name} is not a setting of this service"
        for name in sorted(environ)
        if name.startswith(prefix) and name not in known
    )
    if "log_level" in values and values["log_level"] not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        faults.append("WEIMQ_LOG_LEVEL: must be DEBUG, INFO, WARNING or ERROR")
    token = values.get("cluster_token")
    if isinstance(token, Secret) and len(token.reveal()) < 16:  # noqa: PLR2004 - stated in the text
        faults.append("WEIMQ_CLUSTER_TOKEN: must have at least 16 characters")
    if faults:
        raise SettingsError(faults)
    return settings(**values)  # type: ignore[arg-type]  # each value was parsed by its field's type


def _parse(hint: object, text: str, metadata: Mapping[str, Any]) -> object:
    parsers: dict[object, Callable[[str], object]] = {
        str: str,
        Path: Path,
        Secret: Secret,
        Secret | None: Secret,
        Path | None: Path,
        bool: _parse_bool,
        tuple[str, ...]: lambda t: tuple(part.strip() for part in t.split(",") if part.strip()),
    }
    if hint in (int, float):
        number = float(text) if hint is float else int(text)
        low, high = metadata["minimum"], metadata["maximum"]
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(f"must be from {low} to {high}, not {text}")
        return number
    return parsers[hint](text)


def _parse_bool(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"must be true or false, not {text!r}")
