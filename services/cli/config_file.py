"""The file given with `weimq up --config`: TOML, a table for each service, a key for each setting.

[edge]
max_inflight = 100

[weimq]              # settings that every service has
log_level = "DEBUG"
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

from services.cli.errors import WRONG_USE, CliError
from services.common.settings import SHARED_PREFIX, CommonSettings

SERVICES = ("auth", "session", "router", "status", "edge")
SHARED_TABLE = "weimq"
TABLES = (SHARED_TABLE, *SERVICES)

_SHARED = {field.name for field in dataclasses.fields(CommonSettings)}

_SET_BY_UP = {
    SHARED_TABLE: {"cluster_token", "cluster_token_file"},
    "auth": {"nats_url", "nats_url_file", "grpc_listen", "master_key", "master_key_file", "bootstrap_file"},
    "session": {"nats_url", "nats_url_file", "grpc_listen", "router", "shard_index", "shard_count", "data_dir"},
    "router": {"nats_url", "nats_url_file", "grpc_listen", "index", "count", "shard_count"},
    "status": {"grpc_listen", "auth", "session"},
    "edge": {"id", "grpc_listen", "auth", "session", "router"},
}

Environments = Mapping[str, Mapping[str, str]]
"""Environment variables by service."""


def read(path: Path) -> Environments:
    """Return the environment variables that the file asks for, by service.

    Whether a service knows a setting and likes its value, it says itself when it starts.

    Raises:
        CliError: naming every fault of the file.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CliError(f"Can't read {path}: {error.strerror}.", "Check --config FILE.", status=WRONG_USE) from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise CliError(f"{path} is not TOML: {error}.", status=WRONG_USE) from error
    environments: dict[str, dict[str, str]] = {service: {} for service in SERVICES}
    faults: list[str] = []
    for table, settings in tables.items():
        if table not in TABLES:
            what = f"[{table}] is not a service" if isinstance(settings, dict) else f"{table} is in no table"
            faults.append(f"{what}: the tables are {', '.join(f'[{name}]' for name in TABLES)}.")
        elif not isinstance(settings, dict):
            faults.append(f"{table} must be a table: [{table}].")
        else:
            targets = SERVICES if table == SHARED_TABLE else (table,)
            for name, value in settings.items():
                try:
                    variable, text = _variable(table, name), _text(value)
                    if name in _SET_BY_UP[table] | _SET_BY_UP[SHARED_TABLE]:
                        raise ValueError("is set by `weimq up` itself")  # noqa: TRY301 - one place lists all faults
                except ValueError as error:
                    faults.append(f"[{table}] {name}: {error}.")
                    continue
                for service in targets:
                    # The service's own table wins over [weimq], wherever it stands in the file.
                    if table != SHARED_TABLE or variable not in environments[service]:
                        environments[service][variable] = text
    if faults:
        raise CliError(
            f"{path} has {len(faults)} fault(s):\n" + "\n".join(f"  - {fault}" for fault in faults),
            "Settings are listed in docs/operations.md.",
            status=WRONG_USE,
        )
    return environments


def _variable(table: str, name: str) -> str:
    if not name.replace("_", "").isalnum() or name != name.lower() or not name.isascii():
        raise ValueError("setting names are lower case")
    if name in _SHARED or name.removesuffix("_file") in _SHARED:
        return SHARED_PREFIX + name.upper()
    if table == SHARED_TABLE:
        raise ValueError(f"is not a setting that every service has: those are {', '.join(sorted(_SHARED))}")
    return f"{table}_{name}".upper()


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    raise ValueError("must be a text, number, true, false or list of texts")
