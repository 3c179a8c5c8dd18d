"""Settings of status."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from services.common.settings import (
    CommonSettings,
    check_grpc_listen,
    check_listen,
    check_optional_listen,
    check_peer,
    check_peers,
    setting,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatusSettings(CommonSettings):
    """What status is told, as environment variables `STATUS_*`."""

    grpc_listen: tuple[str, ...] = setting(
        ("127.0.0.1:7004",),
        text="Addresses for gRPC, joined by commas: host:port or unix:/path.",
        check=check_grpc_listen,
    )
    http_listen: str = setting(
        "127.0.0.1:8080", text="Address for HTTP, host:port: queries, health and metrics.", check=check_listen
    )
    https_listen: str = setting(
        "", text="Address for HTTPS, host:port, serving the same; empty: none.", check=check_optional_listen
    )
    https_certificate_file: Path | None = setting(
        None, text="PEM file of the certificate and its intermediates; a change needs a restart."
    )
    https_key_file: Path | None = setting(None, text="PEM file of its private key, not encrypted.")
    auth: str = setting(
        "127.0.0.1:7001", text="Address of auth: host:port, dns:///name:port or unix:/path.", check=check_peer
    )
    session: tuple[str, ...] = setting(
        ("127.0.0.1:7002",),
        text="Addresses of the session shards, joined by commas, in the order of their index.",
        check=check_peers,
    )
