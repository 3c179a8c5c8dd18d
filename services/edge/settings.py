"""Settings of an edge."""

from __future__ import annotations

import dataclasses

from services.common.settings import (
    CommonSettings,
    check_grpc_listen,
    check_name,
    check_optional_listen,
    check_peer,
    check_peers,
    one_of,
    setting,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeSettings(CommonSettings):
    """What an edge is told; environment variables `EDGE_*`."""

    id: str = setting(
        text="Name of this edge, unique in the mesh and kept across restarts: printable ASCII without `/`.",
        check=check_name,
    )
    tcp_listen: str = setting(
        "127.0.0.1:1883", text="Address for MQTT over TCP, `host:port`; empty: none.", check=check_optional_listen
    )
    tls_listen: str = setting(
        "", text="Address for MQTT over TLS, `host:port`, usually port 8883; empty: none.", check=check_optional_listen
    )
    ws_listen: str = setting(
        "",
        text="Address for MQTT over WebSocket, `host:port`, usually port 8083; empty: none.",
        check=check_optional_listen,
    )
    wss_listen: str = setting(
        "",
        text="Address for MQTT over WebSocket and TLS, `host:port`, usually port 8084; empty: none.",
        check=check_optional_listen,
    )
    flash_policy_listen: str = setting(
        "",
        text="Address that answers Flash policy requests, `host:port`, usually port 843; empty: none.",
        check=check_optional_listen,
    )
    tls_certificate_file: str = setting(
        "", text="PEM file of the certificate and its intermediates; loaded again when it changes."
    )
    tls_key_file: str = setting("", text="PEM file of its private key, not encrypted; loaded again when it changes.")
    tls_client_ca_file: str = setting(
        "", text="PEM file of the authorities for client certificates; a change needs a restart."
    )
    tls_client_certificates: str = setting(
        "none",
        text="Client certificates: `none`, `optional` or `required`.",
        check=one_of("none", "optional", "required"),
    )
    proxy_protocol: tuple[str, ...] = setting(
        (), text="Listeners (`tcp`, `tls`, `ws`, `wss`) whose connections must begin with a PROXY header."
    )
    ws_allowed_origins: tuple[str, ...] = setting(
        (), text="Origins of pages that browsers may connect from; empty: all. Who sends no Origin is let in."
    )
    ws_trust_forwarded_for: bool = setting(
        False,  # noqa: FBT003 - the default
        text="Whether the last X-Forwarded-For address is the client's; only behind a proxy that sets it.",
    )
    grpc_listen: tuple[str, ...] = setting(
        ("127.0.0.1:7005",),
        text="Addresses of the health service, `host:port` or `unix:/path`, joined by commas.",
        check=check_grpc_listen,
    )
    auth: str = setting("127.0.0.1:7001", text="Address of the auth service.", check=check_peer)
    session: tuple[str, ...] = setting(
        ("127.0.0.1:7002",),
        text="Addresses of the session shards, joined by commas, in the order of their index.",
        check=check_peers,
    )
    router: tuple[str, ...] = setting(
        ("127.0.0.1:7003",),
        text="Addresses of the routers, joined by commas, in the same order everywhere.",
        check=check_peers,
    )
    default_instance: str = setting("", text="Instance that serves clients whose user name names none; empty: nobody.")
    policy_max_age_s: float = setting(
        3600.0,
        text="Seconds that clients go on while auth, or NATS for it, is away; then all are closed: it may be revoked.",
        minimum=5,
        maximum=604_800,
    )
    connect_timeout_s: float = setting(
        10.0, text="Seconds that a connection has for its CONNECT and for being let in.", minimum=0.1, maximum=600
    )
    max_strangers: int = setting(
        16_384,
        text="Connections without CONNECT yet, on all listeners, 2 to 4 KB each; a further one costs the oldest.",
        minimum=16,
        maximum=10_000_000,
    )
    max_tls_strangers: int = setting(
        1024,
        text="Those in or behind a TLS handshake, up to 75 KB each; further ones wait, or take a place after 3 s.",
        minimum=16,
        maximum=1_000_000,
    )
    max_packet_bytes: int = setting(
        1 << 20, text="Largest MQTT packet in bytes; a larger one closes the connection.", minimum=1024, maximum=1 << 28
    )
    max_inflight: int = setting(
        64,
        text="Messages of QoS 1 and 2 that are sent to a client before it acknowledges one.",
        minimum=1,
        maximum=65535,
    )
    max_queued: int = setting(
        100_000,
        text="Messages of QoS 1 and 2, 16 MiB at most, that wait for that window; a further one closes the connection.",
        minimum=1,
        maximum=10_000_000,
    )
    slow_consumer_s: float = setting(
        10.0,
        text="Seconds that a client with 1,000 waiting messages or more may take to acknowledge one.",
        minimum=1,
        maximum=3600,
    )
    write_buffer_bytes: int = setting(
        1 << 20, text="Bytes unsent to a client above which it gets no message of QoS 0.", minimum=4096, maximum=1 << 30
    )
