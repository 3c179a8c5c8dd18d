"""Settings of the session service."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from services.common.settings import (
    CommonSettings,
    Secret,
    SettingsError,
    check_grpc_listen,
    check_nats_urls,
    check_optional_listen,
    check_peers,
    setting,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionSettings(CommonSettings):
    """What the session service is told; environment variables `SESSION_*`."""

    nats_url: Secret = setting(
        text="Addresses of NATS, `nats://user:password@host:port`, joined by commas.", check=check_nats_urls
    )
    grpc_listen: tuple[str, ...] = setting(
        ("127.0.0.1:7002",),
        text="Addresses for gRPC, `host:port` or `unix:/path`, joined by commas.",
        check=check_grpc_listen,
    )
    http_listen: str = setting(
        "", text="Address for HTTP, host:port: health and metrics; empty: none.", check=check_optional_listen
    )
    router: tuple[str, ...] = setting(
        ("127.0.0.1:7003",),
        text="Addresses of the routers, joined by commas, in the same order everywhere.",
        check=check_peers,
    )
    shard_index: int = setting(
        0,
        text="Index of this session shard, from 0: its place in the lists of addresses of the other services.",
        minimum=0,
        maximum=1023,
    )
    shard_count: int = setting(
        1, text="Number of session shards; another number gives clients to other shards.", minimum=1, maximum=1024
    )
    data_dir: Path | None = setting(
        None,
        text="Directory of this shard alone, for files that shorten its start and may be deleted; empty: none, and the "
        "shard reads all logs when it starts.",
    )
    edge_grace_s: float = setting(
        5.0, text="Seconds that the connections of an edge outlive its link.", minimum=0.1, maximum=600
    )
    checkpoint_s: float = setting(
        60.0, text="Seconds between two checkpoints of the presence.", minimum=0.1, maximum=86_400
    )

    def __post_init__(self) -> None:
        if self.shard_index >= self.shard_count:
            raise SettingsError(
                [f"SESSION_SHARD_INDEX: must be below SESSION_SHARD_COUNT, {self.shard_count}, not {self.shard_index}"]
            )
