"""Settings of auth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from services.common.settings import (
    CommonSettings,
    Secret,
    check_grpc_listen,
    check_key,
    check_listen,
    check_nats_urls,
    check_optional_listen,
    setting,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuthSettings(CommonSettings):
    """What auth is told, as environment variables `AUTH_*`."""

    nats_url: Secret = setting(
        text="NATS servers, nats://user:password@host:port, several joined by commas.", check=check_nats_urls
    )
    grpc_listen: tuple[str, ...] = setting(
        ("127.0.0.1:7001",),
        text="Addresses for gRPC, joined by commas: host:port or unix:/path.",
        check=check_grpc_listen,
    )
    http_listen: str = setting(
        "127.0.0.1:8081", text="Address for HTTP, host:port: the token API, health and metrics.", check=check_listen
    )
    https_listen: str = setting(
        "", text="Address for HTTPS, host:port, serving the same; empty: none.", check=check_optional_listen
    )
    https_certificate_file: Path | None = setting(
        None, text="PEM file of the certificate and its intermediates; a change needs a restart."
    )
    https_key_file: Path | None = setting(None, text="PEM file of its private key, not encrypted.")
    master_key: Secret = setting(text="Base64 of the 32 bytes that encrypt stored AccessKey secrets.", check=check_key)
    bootstrap_file: Path | None = setting(
        None, text="JSON file with the instance, AccessKey, group and topic made when there is no instance yet."
    )
    free_failures_per_address: int = setting(
        100,
        text="Wrong credentials from one address that cost nothing; 0: no bound, such as behind a proxy.",
        minimum=0,
        maximum=1_000_000,
    )
    free_failures_per_key: int = setting(
        1_000,
        text="Wrong credentials for one user name or AccessKey that cost nothing; 0: no bound.",
        minimum=0,
        maximum=1_000_000,
    )
