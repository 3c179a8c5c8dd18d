"""Settings of a service: environment variables parsed into a frozen dataclass.

All faults are reported together. A variable with the service's or the shared prefix that nobody
knows is a fault, so that a misspelt setting can't be ignored. A secret may be given as `NAME_FILE`,
the path of a file that holds it.

What can never work (an address that is none, a key of the wrong length) must be found here: the
process then ends with the exit status that says that a restart can't help. Fields name a check for
it; the checks are pure, and never show the text they refuse, which may be a secret.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import math
import os
import re
import typing
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import override

SHARED_PREFIX = "WEIMQ_"
"""Prefix of the settings that every service has."""

NOT_OF_SERVICES = frozenset(
    f"{SHARED_PREFIX}{name}" for name in ("AUTH", "BIND", "DATA", "PURE", "STATUS", "VERSION", "WRITE_DOCS")
)
"""Variables with the shared prefix that the `weimq` command, compose.yaml and the Makefile use."""

MIN_TOKEN, MAX_TOKEN = 16, 1024
MAX_NAME = 128
MAX_PORT = 65_535
KEY_BYTES = 32
MAX_SOCKET_PATH = 107
"""Bytes of the path of a Unix socket, by the kernel."""

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}")
_NAME = re.compile(rf"[!-.0-~]{{1,{MAX_NAME}}}")
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")

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
    check: Callable[[Any], None] | None = None,
) -> Any:  # noqa: ANN401 - the type is the annotation of the field
    """Declare a field of a settings dataclass.

    Args:
        default: the value when the variable is not set; without it the variable is required.
        text: what it means, with its unit; shown in the documentation.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        shared: the variable has the prefix `WEIMQ_` instead of the service's own.
        check: called with a value from the environment (of a secret: its text); raises ValueError
            with a sentence when it can't be used.
    """
    metadata = {"text": text, "minimum": minimum, "maximum": maximum, "shared": shared, "check": check}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_listen(address: str) -> None:
    """Refuse what is not `host:port`; port 0 is any free one."""
    _check_host_port(address, "host:port", smallest_port=0)


def check_optional_listen(address: str) -> None:
    """Refuse what is neither empty nor `host:port`."""
    if address:
        check_listen(address)


def check_grpc_listen(addresses: tuple[str, ...]) -> None:
    """Refuse no address at all, and those that are neither `host:port` nor `unix:/path`."""
    if not addresses:
        raise ValueError("must name an address at least")
    for address in addresses:
        if not _is_socket(address):
            _check_host_port(address, "host:port or unix:/path", smallest_port=0)


def check_peer(address: str) -> None:
    """Refuse what is not `host:port`, `dns:///name:port` or `unix:/path` of another process."""
    if not _is_socket(address):
        form = "host:port, dns:///name:port or unix:/path"
        _check_host_port(address.removeprefix("dns:///"), form, smallest_port=1)


def check_peers(addresses: tuple[str, ...]) -> None:
    """Refuse no address at all, one that is given twice, and what `check_peer` refuses."""
    if not addresses:
        raise ValueError("must name an address at least")
    for address in addresses:
        check_peer(address)
    if len(set(addresses)) != len(addresses):
        raise ValueError("must name each address once: the index in the list says who is responsible")


def check_nats_urls(urls: str) -> None:
    """Refuse what is not URLs of NATS servers, joined by commas without spaces."""
    form = "must be nats://host:port or tls://host:port, several joined by commas"
    if not urls.isprintable() or " " in urls:
        raise ValueError(f"{form}, without spaces and line breaks")
    for url in urls.split(","):
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError(form) from None  # urllib's sentence shows parts of the URL
        if parts.scheme not in {"nats", "tls"} or not parts.hostname or port == 0:
            raise ValueError(form)


def check_name(name: str) -> None:
    """Refuse what can't name a process: subjects, keys and logs hold it."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"must be 1 to {MAX_NAME} printable ASCII characters without `/` and spaces")


def check_key(key: str) -> None:
    """Refuse what is not Base64 of a key of AES-256."""
    try:
        size = len(base64.b64decode(key, validate=True))
    except ValueError:
        size = 0
    if size != KEY_BYTES:
        raise ValueError(f"must be Base64 of {KEY_BYTES} bytes")


def check_token(token: str) -> None:
    """Refuse what is too short, or what gRPC metadata can't carry unchanged."""
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN:
        raise ValueError(f"must have at least {MIN_TOKEN} characters and at most {MAX_TOKEN}")
    if not _HEADER_VALUE.fullmatch(token):
        raise ValueError("must be printable ASCII, without spaces around it and line breaks")


def one_of(*allowed: str) -> Callable[[str], None]:
    """Return a check that refuses everything but `allowed`."""

    def check(value: str) -> None:
        if value not in allowed:
            raise ValueError(f"must be {', '.join(allowed[:-1])} or {allowed[-1]}")

    return check


def _check_host_port(address: str, form: str, *, smallest_port: int) -> None:
    host, _, port = address.rpartition(":")
    if not _is_host(host) or not _PORT.fullmatch(port):
        raise ValueError(f"must be {form} (IPv6 in brackets)")
    if not smallest_port <= int(port) <= MAX_PORT:
        raise ValueError(f"must be {form} with a port from {smallest_port} to {MAX_PORT}")


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    return _HOST.fullmatch(host) is not None


def _is_socket(address: str) -> bool:
    """Return whether it is `unix:/path`.

    Raises:
        ValueError: it is, with a path that no socket can have.
    """
    if not address.startswith("unix:/"):
        return False
    path = address.removeprefix("unix:")
    if path.endswith("/") or not path.isprintable() or len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"must be unix:/path with the path of a file, {MAX_SOCKET_PATH} bytes at most")
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every service is told."""

    cluster_token: Secret = setting(
        text="Secret that every gRPC call between services carries; 16 to 1024 characters of printable ASCII.",
        shared=True,
        check=check_token,
    )
    log_level: str = setting(
        "INFO",
        text="DEBUG, INFO, WARNING or ERROR.",
        shared=True,
        check=one_of("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    drain_s: float = setting(
        5.0,
        text="Seconds that a stopping service gives to calls and clients.",
        minimum=0,
        maximum=600,
        shared=True,
    )
    nats_replicas: int = setting(
        1,
        text="Replicas of every JetStream stream and bucket: 3 where NATS is a cluster of three servers or more.",
        minimum=1,
        maximum=5,
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
            except UnicodeDecodeError:
                faults.append(f"{name}_FILE: {path} is not text in UTF-8")
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
    known |= NOT_OF_SERVICES
    prefixes = (prefix_of(settings), SHARED_PREFIX)
    faults.extend(
        f"{name} is not a setting of this service"
        for name in sorted(environ)
        if name.startswith(prefixes) and name not in known
    )
    if faults:
        raise SettingsError(faults)
    return settings(**values)  # type: ignore[arg-type]  # each value was parsed by its field's type


def _parse(hint: object, text: str, metadata: Mapping[str, Any]) -> object:
    value = _convert(hint, text, metadata)
    if (check := metadata["check"]) is not None:
        check(value.reveal() if isinstance(value, Secret) else value)
    return value


def _convert(hint: object, text: str, metadata: Mapping[str, Any]) -> object:
    parsers: dict[object, Callable[[str], object]] = {
        str: str,
        Path: _parse_path,
        Secret: Secret,
        Secret | None: Secret,
        Path | None: _parse_path,
        bool: _parse_bool,
        tuple[str, ...]: lambda t: tuple(part.strip() for part in t.split(",") if part.strip()),
    }
    if hint in (int, float):
        try:
            number = float(text) if hint is float else int(text)
        except ValueError:
            raise ValueError(f"must be a {'' if hint is float else 'whole '}number, not {text!r}") from None
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"must be a finite number, not {text}")
        low, high = metadata["minimum"], metadata["maximum"]
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(f"must be from {low} to {high}, not {text}")
        return number
    return parsers[hint](text)


def _parse_path(text: str) -> Path:
    if not text:  # else the working directory
        raise ValueError("must not be empty")
    return Path(text)


def _parse_bool(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"must be true or false, not {text!r}")
