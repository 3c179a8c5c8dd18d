"""Configuration of NATS: accounts and users, JetStream, where it listens.

- Account `WEIMQ` has every stream; its user `weimq` is what the services are.
- The backend applications of each instance have an account of their own, so they can't see or name anything of
  another instance: NATS lets through what an account imports, nothing else. These are the inbound subjects of the
  instance; fetching and acknowledging for each of its streams by name, since NATS matches whole tokens only; and the
  rest of JetStream's API, which goes to auth (`services.auth.backend_api`). Answers go back through NATS's own
  reply subjects, so a backend can't have messages sent to a subject of `WEIMQ`, as it could inside one account.
- Account `SYS` is NATS's own; its user may reload this file, which `weimq backend follow` does when topics change.

The nodes of a cluster share the file: what differs comes from their environment (`node_environ`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.cli.errors import CliError
from services.cli.nats_storage import Storage, limit_at_start
from services.cli.secrets import Backend, DataDir, NatsPasswords, write_private
from services.common import subjects

WEIMQ_USER = "weimq"
SYSTEM_USER = "system"
WEIMQ_ACCOUNT = "WEIMQ"
SYSTEM_ACCOUNT = "SYS"

CLUSTER = "weimq"
ROUTE_USER = "route"
_NODE_VARIABLES = ("WEIMQ_NATS_NODE", "WEIMQ_NATS_LISTEN", "WEIMQ_NATS_STORE", "WEIMQ_NATS_ROUTE_LISTEN")

MAX_PAYLOAD_BYTES = 8 << 20
"""Largest NATS message: the `standard` profile takes payloads of 1 MB and more."""

_API = "$JS.API"
_FETCH = f"{_API}.CONSUMER.MSG.NEXT"
_ACKNOWLEDGE = "$JS.ACK"

_ASKED = (
    "INFO",
    "STREAM.>",
    "DIRECT.GET.>",
    "CONSUMER.CREATE.>",
    "CONSUMER.DURABLE.CREATE.>",
    "CONSUMER.INFO.>",
    "CONSUMER.DELETE.>",
    "CONSUMER.LIST.>",
    "CONSUMER.NAMES.>",
)
"""Parts of JetStream's API that go to auth."""


@dataclass(frozen=True, kw_only=True)
class NatsConfig:
    """What the configuration file says.

    Attributes:
        listen: `host:port` of the clients' listener; unused in a cluster.
        store: directory of JetStream's files, as the NATS process sees it; unused in a cluster.
        backends: of all instances.
        topics: logged parent topics by instance id.
        most_stored: bytes that JetStream may store; None, and in a cluster: as NATS thinks.
        routes: `host:port` where the nodes of a cluster reach each other; none: there is one server alone.
    """

    listen: str
    store: Path
    passwords: NatsPasswords
    system_password: str
    backends: Sequence[Backend] = ()
    topics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    most_stored: int | None = None
    routes: Sequence[str] = ()

    def text(self) -> str:
        """Return the file; it holds passwords."""
        # NATS's configuration language accepts JSON values, which saves quoting rules of our own.
        settings = {
            **(self._node() if self.routes else self._single()),
            "max_payload": MAX_PAYLOAD_BYTES,
            "system_account": SYSTEM_ACCOUNT,
            "accounts": self._accounts(),
        }
        lines = [f"{key}: {json.dumps(value, indent=1, ensure_ascii=False)}" for key, value in settings.items()]
        if self.routes:
            text = "\n".join(lines)
            for variable in _NODE_VARIABLES:  # NATS takes them from the environment when they are not quoted
                text = text.replace(f'"${variable}"', f"${variable}")
            lines = [text]
        return "\n".join(("# Written by weimq at every start and change; changes here are lost.", *lines, ""))

    def _single(self) -> dict[str, Any]:
        limit = {} if self.most_stored is None else {"max_file_store": self.most_stored}
        return {"server_name": "weimq", "listen": self.listen, "jetstream": {"store_dir": str(self.store), **limit}}

    def _node(self) -> dict[str, Any]:
        name, listen, store, route_listen = (f"${variable}" for variable in _NODE_VARIABLES)
        user = {"user": ROUTE_USER, "password": self.system_password}
        routes = [f"nats-route://{ROUTE_USER}:{self.system_password}@{address}" for address in self.routes]
        return {
            "server_name": name,
            "listen": listen,
            "jetstream": {"store_dir": store},
            "cluster": {"name": CLUSTER, "listen": route_listen, "authorization": user, "routes": routes},
        }

    def _accounts(self) -> dict[str, Any]:
        instances = sorted({backend.instance for backend in self.backends})
        accounts = [_account(instance_id) for instance_id in instances]
        exports: list[dict[str, Any]] = []
        if accounts:
            exports += [
                {"service": f"{_FETCH}.*.*", "response_type": "stream", "accounts": accounts},
                {"service": f"{_ACKNOWLEDGE}.>", "response_type": "stream", "accounts": accounts},
            ]
        for instance_id, account in zip(instances, accounts, strict=True):
            exports += [
                {"service": f"{_asked(instance_id)}.>", "accounts": [account]},
                {"service": _inbound(instance_id), "accounts": [account]},
            ]
        return {
            SYSTEM_ACCOUNT: {"users": [{"user": SYSTEM_USER, "password": self.system_password}]},
            WEIMQ_ACCOUNT: {
                "jetstream": "enabled",
                "users": [{"user": WEIMQ_USER, "password": self.passwords.weimq}],
                "exports": exports,
            },
            **{
                account: {
                    "users": [
                        {"user": backend.user, "password": backend.password}
                        for backend in self.backends
                        if backend.instance == instance_id
                    ],
                    "imports": _imports(instance_id, self.topics.get(instance_id, ())),
                }
                for instance_id, account in zip(instances, accounts, strict=True)
            },
        }


def _imports(instance_id: str, topics: Sequence[str]) -> list[dict[str, Any]]:
    imports = [_service(_inbound(instance_id))]
    imports += [_service(f"{_asked(instance_id)}.{part}", f"{_API}.{part}") for part in _ASKED]
    streams = [subjects.log_stream(instance_id, topic) for topic in topics]
    for stream in (*streams, subjects.event_stream(instance_id)):
        imports += [_service(f"{_FETCH}.{stream}.*"), _service(f"{_ACKNOWLEDGE}.{stream}.>")]
    dead = f"{subjects.DEAD_STREAM}.{subjects.dead_consumer(instance_id)}"
    return [*imports, _service(f"{_FETCH}.{dead}"), _service(f"{_ACKNOWLEDGE}.{dead}.>")]


def _service(subject: str, local: str = "") -> dict[str, Any]:
    imported: dict[str, Any] = {"service": {"account": WEIMQ_ACCOUNT, "subject": subject}}
    return {**imported, "to": local} if local else imported


def _account(instance_id: str) -> str:
    return f"BACKENDS_{subjects.encode_token(instance_id)}"


def _asked(instance_id: str) -> str:
    return f"{subjects.BACKEND}.{subjects.encode_token(instance_id)}.api"


def _inbound(instance_id: str) -> str:
    return f"{subjects.IN}.{subjects.encode_token(instance_id)}.*"


def node_environ(*, name: str, listen: str, store: Path, route_listen: str) -> dict[str, str]:
    """Return the environment of a node of a cluster.

    Args:
        name: of the server, unique.
        listen: `host:port` of the clients' listener.
        store: directory of its JetStream files.
        route_listen: `host:port` where the other nodes reach it.
    """
    values = (name, listen, str(store), route_listen)
    return {variable: json.dumps(value) for variable, value in zip(_NODE_VARIABLES, values, strict=True)}


def url(user: str, password: str, address: str) -> str:
    """Return the URL that a NATS client connects with; those of several addresses, joined by commas."""
    return ",".join(f"nats://{user}:{password}@{each}" for each in address.split(","))


def write_files(data: DataDir, *, listen: str, address: str, store: Path, routes: Sequence[str] = ()) -> None:
    """Write NATS's configuration and the services' URL of it into an initialised data directory.

    Args:
        data: the data directory.
        listen: `host:port` where NATS listens; not for a cluster.
        address: `host:port` where clients reach it, those of all nodes joined by commas.
        store: directory of JetStream's files, as NATS sees it; not for a cluster.
        routes: as in `NatsConfig`.

    Raises:
        CliError: the directory can't be written.
    """
    passwords = data.read_nats_passwords()
    most = None if routes else limit_at_start(store)
    place = {"listen": listen, "address": address, "store": str(store), "most_stored": most, "routes": list(routes)}
    try:
        write_private(data.nats_place, json.dumps(place))
        write_private(data.nats_conf, config_text(data, data.read_backend_topics(), most))
        write_private(data.nats_url, url(WEIMQ_USER, passwords.weimq, address))
    except OSError as error:
        raise CliError(
            f"Can't write {data.nats_conf}: {error.strerror}.", "Check its owner and permissions."
        ) from error


def storage(data: DataDir) -> Storage | None:
    """Return what looks after the disk of the NATS server that `write_files` configured; None: it is a cluster.

    Raises:
        CliError: it was not called yet.
    """
    place = json.loads(data.read_text(data.nats_place))
    return None if place.get("routes") else Storage(data, Path(place["store"]), place.get("most_stored"))


def config_text(data: DataDir, topics: Mapping[str, Sequence[str]], most_stored: int | None) -> str:
    """Return NATS's configuration for the backends of a data directory, where `write_files` says that NATS is.

    Raises:
        CliError: something can't be read.
    """
    place = json.loads(data.read_text(data.nats_place))
    config = NatsConfig(
        listen=place["listen"],
        store=Path(place["store"]),
        passwords=data.read_nats_passwords(),
        system_password=data.read_text(data.nats_system_password),
        backends=data.read_backends(),
        topics=topics,
        most_stored=most_stored,
        routes=place.get("routes", ()),
    )
    return config.text()


def stamps(data: DataDir) -> list[tuple[int, int, int]]:
    """Return what changes when a file does that `config_text` reads."""
    paths = data.nats_place, data.nats_passwords, data.nats_system_password, data.bootstrap, data.backends
    found = [path.stat() for path in paths if path.exists()]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def backend_url(data: DataDir, backend: Backend) -> str:
    """Return the URL that a backend application connects with: that of the first node, which tells it the others.

    Raises:
        CliError: `write_files` was not called yet.
    """
    return url(backend.user, backend.password, _addresses(data)[0])


def system_urls(data: DataDir) -> list[str]:
    """Return the URL of each node, for the user that may reload the configuration.

    Raises:
        CliError: `write_files` was not called yet.
    """
    password = data.read_text(data.nats_system_password)
    return [url(SYSTEM_USER, password, address) for address in _addresses(data)]


def _addresses(data: DataDir) -> list[str]:
    return str(json.loads(data.read_text(data.nats_place))["address"]).split(",")
