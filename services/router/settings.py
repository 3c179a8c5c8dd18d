"""Settings of the router service, `ROUTER_*`."""

from __future__ import annotations

import dataclasses

from services.common.settings import (
    CommonSettings,
    Secret,
    SettingsError,
    check_grpc_listen,
    check_nats_urls,
    check_optional_listen,
    check_peer,
    setting,
)
from services.common.sharding import ROUTER_SLOTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterSettings(CommonSettings):
    """What the router is told."""

    nats_url: Secret = setting(
        text="NATS with JetStream: `nats://user:password@host:port`, several joined by commas.", check=check_nats_urls
    )
    grpc_listen: tuple[str, ...] = setting(
        ("127.0.0.1:7003",),
        text="Addresses of the gRPC API, `host:port` or `unix:/path`, joined by commas.",
        check=check_grpc_listen,
    )
    http_listen: str = setting(
        "", text="Address for HTTP, host:port: health and metrics; empty: none.", check=check_optional_listen
    )
    index: int = setting(
        0,
        text="Index of this router, from 0: its place in the lists of addresses of the other services.",
        minimum=0,
        maximum=ROUTER_SLOTS - 1,
    )
    count: int = setting(
        1,
        text="Number of routers; another number gives parent topics to other routers.",
        minimum=1,
        maximum=ROUTER_SLOTS,
    )
    shard_count: int = setting(
        1,
        text="Number of session shards; until each was there, all messages of QoS 1 and 2 are written. 0: none.",
        minimum=0,
        maximum=1_024,
    )
    auth: str = setting("127.0.0.1:7001", text="Address of the auth service.", check=check_peer)
    edge_grace_s: float = setting(
        5.0, text="Seconds that an edge whose link broke is waited for.", minimum=0.1, maximum=600
    )
    max_retained_messages: int = setting(
        100_000,
        text="Retained messages of an instance, at each router; beyond, a topic that has none gets none.",
        minimum=0,
        maximum=10_000_000,
    )
    max_retained_bytes: int = setting(
        256 << 20,
        text="Bytes that the retained messages of an instance take in memory, at each router; beyond, likewise.",
        minimum=0,
        maximum=1 << 40,
    )

    def __post_init__(self) -> None:
        if self.index >= self.count:
            raise SettingsError([f"ROUTER_INDEX: must be below ROUTER_COUNT, {self.count}, not {self.index}"])
