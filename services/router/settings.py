"""Settings of the router service, `ROUTER_*`."""

from __future__ import annotations

import dataclasses

from services.common.settings import CommonSettings, Secret, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterSettings(CommonSettings):
    """What the router is told."""

    nats_url: Secret = setting(text="NATS with JetStream: `nats://user:password@host:port`, several joined by commas.")
    grpc_listen: tuple[str, ...] = setting(
        ("127.0.0.1:7003",), text="Addresses of the gRPC API, `host:port` or `unix:/path`, joined by commas."
    )
    edge_grace_s: float = setting(
        5.0, text="Seconds that an edge whose link broke is waited for.", minimum=0.1, maximum=600
    )
