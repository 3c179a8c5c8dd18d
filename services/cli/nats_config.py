"""Configuration of NATS: two users, JetStream, where it listens.

`weimq` is what the services are. `backend` is for applications: it reads message logs and lifecycle events
and publishes to `mq.in.>`, nothing else.

NATS matches whole tokens only, so no rule can say "streams whose name begins with MQ_". What `backend` must not
read is therefore denied by name, and `PRIVATE_STREAMS` has to list every stream of the mesh that is neither a
message log nor lifecycle events; a test compares it with what the services create.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from services.cli.errors import CliError
from services.cli.secrets import DataDir, NatsPasswords, write_private
from services.common.subjects import IN

WEIMQ_USER = "weimq"
BACKEND_USER = "backend"

MAX_PAYLOAD_BYTES = 8 << 20
"""Largest NATS message: the `standard` profile takes payloads of 1 MB and more."""

PRIVATE_STREAMS = (
    "KV_device_credentials",
    "KV_presence",
    "KV_resources",
    "KV_revoked_tokens",
    "KV_router_edges",
    "KV_sessions",
    "MQ_DEAD",
    "MQ_IN",
    "PRESENCE",
)
"""Streams that applications must not see into."""

_API = "$JS.API"

_ALLOWED = (
    f"{IN}.>",
    f"{_API}.INFO",
    f"{_API}.STREAM.NAMES",
    f"{_API}.STREAM.LIST",
    f"{_API}.STREAM.INFO.*",
    f"{_API}.STREAM.MSG.GET.*",
    f"{_API}.DIRECT.GET.*",
    f"{_API}.DIRECT.GET.*.>",
    f"{_API}.CONSUMER.CREATE.*",
    f"{_API}.CONSUMER.CREATE.*.>",
    f"{_API}.CONSUMER.DURABLE.CREATE.*.*",
    f"{_API}.CONSUMER.INFO.*.*",
    f"{_API}.CONSUMER.NAMES.*",
    f"{_API}.CONSUMER.LIST.*",
    f"{_API}.CONSUMER.DELETE.*.*",
    f"{_API}.CONSUMER.MSG.NEXT.*.*",
    "$JS.ACK.>",
    "$JS.FC.>",
)


def _denied() -> list[str]:
    return [
        subject.format(stream)
        for stream in PRIVATE_STREAMS
        for subject in (
            f"{_API}.STREAM.INFO.{{}}",
            f"{_API}.STREAM.MSG.GET.{{}}",
            f"{_API}.DIRECT.GET.{{}}",
            f"{_API}.DIRECT.GET.{{}}.>",
            f"{_API}.CONSUMER.*.{{}}",
            f"{_API}.CONSUMER.*.{{}}.>",
            f"{_API}.CONSUMER.DURABLE.CREATE.{{}}.>",
            f"{_API}.CONSUMER.MSG.NEXT.{{}}.>",
            "$JS.ACK.{}.>",
            "$JS.FC.{}.>",
        )
    ]


@dataclass(frozen=True, kw_only=True)
class NatsConfig:
    """What the configuration file says.

    Attributes:
        listen: `host:port` of the clients' listener.
        store: directory of JetStream's files, as the NATS process sees it.
    """

    listen: str
    store: Path
    passwords: NatsPasswords

    def text(self) -> str:
        """Return the file; it holds passwords."""
        permissions = {"publish": {"allow": list(_ALLOWED), "deny": _denied()}, "subscribe": {"allow": ["_INBOX.>"]}}
        users = [
            {"user": WEIMQ_USER, "password": self.passwords.weimq},
            {"user": BACKEND_USER, "password": self.passwords.backend, "permissions": permissions},
        ]
        # NATS's configuration language accepts JSON values, which saves quoting rules of our own.
        settings = {
            "server_name": "weimq",
            "listen": self.listen,
            "max_payload": MAX_PAYLOAD_BYTES,
            "jetstream": {"store_dir": str(self.store)},
            "authorization": {"users": users},
        }
        lines = [f"{key}: {json.dumps(value, indent=1, ensure_ascii=False)}" for key, value in settings.items()]
        return "\n".join(("# Written by weimq at every start; changes here are lost.", *lines, ""))


def url(user: str, password: str, address: str) -> str:
    """Return the URL that a NATS client connects with."""
    return f"nats://{user}:{password}@{address}"


def write_files(data: DataDir, *, listen: str, address: str, store: Path) -> None:
    """Write NATS's configuration and the services' URL of it into an initialised data directory.

    Args:
        data: the data directory.
        listen: `host:port` where NATS listens.
        address: `host:port` where clients reach it.
        store: directory of JetStream's files, as NATS sees it.

    Raises:
        CliError: the directory can't be written.
    """
    passwords = data.read_nats_passwords()
    config = NatsConfig(listen=listen, store=store, passwords=passwords)
    try:
        write_private(data.nats_conf, config.text())
        write_private(data.nats_url, url(WEIMQ_USER, passwords.weimq, address))
    except OSError as error:
        raise CliError(
            f"Can't write {data.nats_conf}: {error.strerror}.", "Check its owner and permissions."
        ) from error
