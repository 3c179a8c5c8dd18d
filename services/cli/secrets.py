"""The data directory of a mesh and the secrets in it.

    DIR/                      0700
      secrets/                0700, every file 0600
        cluster.token         what every gRPC call carries
        master.key            base64 of the 32 bytes that seal AccessKey secrets
        bootstrap.json        the first instance, AccessKey, group and parent topic
        nats.json             passwords of the NATS users `weimq` and `backend`
        nats-system.password  of the NATS user that reloads its configuration
        nats.url              URL of NATS for the services; written anew at every start
        backends.json         users of backend applications, beside the first one
      tls/                    certificate.pem and key.pem of the edges, self-signed unless replaced
      nats.conf               0600, configuration of NATS; written anew at every start and change
      nats-place.json         where NATS listens and keeps its files
      backend-topics.json     logged topics of the instances that have backends, as last known
      nats/                   JetStream's files
      logs/                   one file per process
      lock, run.json          while `weimq up` runs

Secrets are made once and never replaced: everything sealed or signed with them would be lost.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.cli.errors import CliError


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """What auth creates at its first start, with the secret that signs for it."""

    instance: str
    access_key: str
    secret: str
    group: str
    topic: str


@dataclass(frozen=True, kw_only=True)
class NatsPasswords:
    """Passwords of the two NATS users."""

    weimq: str
    backend: str


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A NATS user for backend applications of one instance."""

    instance: str
    name: str
    user: str
    password: str


class DataDir:
    """Paths of one data directory."""

    def __init__(self, path: Path) -> None:
        # Absolute, since NATS and the services get these paths and run files outlive a `cd`.
        self.path = path.expanduser().absolute()
        self.secrets = self.path / "secrets"
        self.cluster_token = self.secrets / "cluster.token"
        self.master_key = self.secrets / "master.key"
        self.bootstrap = self.secrets / "bootstrap.json"
        self.nats_passwords = self.secrets / "nats.json"
        self.nats_system_password = self.secrets / "nats-system.password"
        self.nats_url = self.secrets / "nats.url"
        self.backends = self.secrets / "backends.json"
        self.nats_place = self.path / "nats-place.json"
        self.backend_topics = self.path / "backend-topics.json"
        self.tls_certificate = self.path / "tls" / "certificate.pem"
        self.tls_key = self.path / "tls" / "key.pem"
        self.nats_conf = self.path / "nats.conf"
        self.nats_store = self.path / "nats"
        self.logs = self.path / "logs"
        self.lock = self.path / "lock"
        self.run = self.path / "run.json"

    @property
    def is_initialized(self) -> bool:
        """Whether the secrets were made."""
        return self.bootstrap.exists()

    def initialize(self) -> None:
        """Make the directories and every secret that does not exist yet; existing ones stay as they are.

        Raises:
            CliError: the directory can't be written.
        """
        try:
            for directory in (self.path, self.secrets):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.secrets.chmod(0o700)
            for path, make in _SECRETS:
                _make_once(self.secrets / path, make)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def read_bootstrap(self) -> Bootstrap:
        """Return the bootstrap resources.

        Raises:
            CliError: nothing was made here yet, or the file is damaged.
        """
        return Bootstrap(**self._read_json(self.bootstrap, Bootstrap))

    def read_nats_passwords(self) -> NatsPasswords:
        """Return the passwords of the NATS users.

        Raises:
            CliError: nothing was made here yet, or the file is damaged.
        """
        return NatsPasswords(**self._read_json(self.nats_passwords, NatsPasswords))

    def read_backends(self) -> list[Backend]:
        """Return the users of backend applications, the one of the first start first.

        Raises:
            CliError: nothing was made here yet, or a file is damaged.
        """
        first = Backend(
            instance=self.read_bootstrap().instance,
            name="backend",
            user="backend",
            password=self.read_nats_passwords().backend,
        )
        return [first, *(Backend(**entry) for entry in self._read_list(self.backends))]

    def write_backends(self, backends: Sequence[Backend]) -> None:
        """Replace the users that `read_backends` returns after the first.

        Raises:
            CliError: the file can't be written.
        """
        try:
            write_private(self.backends, json.dumps([asdict(backend) for backend in backends], indent=1))
        except OSError as error:
            raise _unusable(self.backends, error) from error

    def read_backend_topics(self) -> dict[str, list[str]]:
        """Return the logged parent topics by instance, as last known."""
        try:
            return {str(key): list(value) for key, value in json.loads(self.backend_topics.read_text()).items()}
        except (OSError, ValueError, AttributeError):  # only a memory of what is asked for anyway
            return {}

    def _read_list(self, path: Path) -> list[dict[str, str]]:
        try:
            return list(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise CliError(f"{path} is damaged: it must be a JSON list.", "Restore it from a backup.") from error

    def read_text(self, path: Path) -> str:
        """Return the text of a file of this directory, without white space around it.

        Raises:
            CliError: it can't be read.
        """
        try:
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise CliError(
                f"{self.path} is not the data directory of a mesh: {path.relative_to(self.path)} is missing.",
                "Start the mesh once with `weimq up`, or name its directory with --data DIR.",
            ) from None
        except OSError as error:
            raise _unusable(path, error) from error

    def _read_json(self, path: Path, form: type[Bootstrap | NatsPasswords]) -> dict[str, str]:
        wanted = set(form.__dataclass_fields__)
        try:
            values = json.loads(self.read_text(path))
        except ValueError:
            values = None
        if not isinstance(values, dict) or not wanted <= values.keys():
            raise CliError(
                f"{path} is damaged: it must be a JSON object with {', '.join(sorted(wanted))}.",
                "Restore it from a backup, or start with a new data directory.",
            )
        return {name: str(values[name]) for name in wanted}


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600 so that readers see the old or the new text, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _make_once(path: Path, make: Callable[[], str]) -> None:
    if path.exists():
        path.chmod(0o600)
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(make())
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link, not a rename: of two that start together, the second must not replace the first's.
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _unusable(path: Path, error: OSError) -> CliError:
    return CliError(f"Can't use {path}: {error.strerror}.", "Check its owner and permissions, or use --data DIR.")


def _bootstrap() -> str:
    made = Bootstrap(
        instance="mqtt-demo",
        access_key=f"AK{secrets.token_hex(8).upper()}",
        secret=secrets.token_hex(20),
        group="GID_demo",
        topic="demo",
    )
    return json.dumps(asdict(made), indent=1)


def _nats_passwords() -> str:
    # Hexadecimal digits need no quoting in URLs, shells and NATS's configuration.
    return json.dumps(asdict(NatsPasswords(weimq=secrets.token_hex(24), backend=secrets.token_hex(24))), indent=1)


_SECRETS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("cluster.token", lambda: secrets.token_hex(24)),
    ("master.key", lambda: base64.b64encode(secrets.token_bytes(32)).decode()),
    ("nats.json", _nats_passwords),
    ("nats-system.password", lambda: secrets.token_hex(24)),
    ("bootstrap.json", _bootstrap),  # last: shows that all were made
)
