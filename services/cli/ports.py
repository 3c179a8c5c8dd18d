"""Which port of the mesh listens where."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from services.cli.errors import WRONG_USE, CliError

LOOPBACK = "127.0.0.1"
MAX_EDGES = 32
"""More edges than that would make their default ports meet those of other listeners."""

MAX_NATS_NODES = 5

_EDGE_STEP = 20
_LAST_OFFSET = 10
_ROUTES_OFFSET = 15
_HIGHEST_PORT = 65_535


@dataclass(frozen=True, kw_only=True)
class EdgePorts:
    """Ports of one edge, by transport."""

    tcp: int
    tls: int
    ws: int
    wss: int


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Every port of a mesh on one machine."""

    edges: tuple[EdgePorts, ...]
    status_http: int
    token_http: int
    auth: int
    session: int
    router: int
    status: int
    nats: int
    """Of the first node; each further one is one higher."""
    nats_routes: tuple[int, ...] = ()
    """Where the nodes of a cluster listen for each other."""


def plan_ports(base: int | None, edges: int, nats_nodes: int = 1) -> Ports:
    """Return the ports that `weimq up --port-base BASE --edges EDGES` uses; without base the usual ones.

    Raises:
        CliError: the ports would not fit.
    """
    if not 1 <= edges <= MAX_EDGES:
        raise CliError(f"--edges must be from 1 to {MAX_EDGES}, not {edges}.", status=WRONG_USE)
    if base is None:
        return Ports(
            edges=tuple(
                EdgePorts(tcp=1883 + step, tls=8883 + step, ws=8083 + step, wss=8084 + step)
                for step in range(0, _EDGE_STEP * edges, _EDGE_STEP)
            ),
            status_http=8080,
            token_http=8081,
            auth=7001,
            session=7002,
            router=7003,
            status=7004,
            nats=4222,
            nats_routes=_routes(6222, nats_nodes),
        )
    last_offset = _LAST_OFFSET if nats_nodes == 1 else _ROUTES_OFFSET + nats_nodes - 1
    highest = _HIGHEST_PORT - _EDGE_STEP * (edges - 1) - last_offset
    if not 1 <= base <= highest:
        raise CliError(f"--port-base must be from 1 to {highest} with {edges} edge(s), not {base}.", status=WRONG_USE)
    return Ports(
        edges=tuple(
            EdgePorts(tcp=first, tls=first + 1, ws=first + 2, wss=first + 3)
            for first in range(base, base + _EDGE_STEP * edges, _EDGE_STEP)
        ),
        status_http=base + 4,
        token_http=base + 5,
        auth=base + 6,
        session=base + 7,
        router=base + 8,
        status=base + 9,
        nats=base + _LAST_OFFSET,
        nats_routes=_routes(base + _ROUTES_OFFSET, nats_nodes),
    )


def _routes(first: int, nats_nodes: int) -> tuple[int, ...]:
    return tuple(range(first, first + nats_nodes)) if nats_nodes > 1 else ()


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`.

    Raises:
        ValueError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > _HIGHEST_PORT:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def check_free(listens: Iterable[tuple[str, str]]) -> None:
    """Make sure that every address can be listened on, before anything starts.

    Args:
        listens: pairs of process name and `host:port`.

    Raises:
        CliError: naming each one that can't.
    """
    faults = []
    owners: dict[str, str] = {}
    for name, address in listens:
        try:
            host, port = split_address(address)
        except ValueError:  # the service refuses it when it starts, with its other wrong settings
            continue
        if port and owners.setdefault(address, name) != name:
            faults.append(f"{name} can't listen on {address}: {owners[address]} does.")
        elif fault := _listen_fault(host, port):
            faults.append(f"{name} can't listen on {address}: {fault}")
    if faults:
        raise CliError(
            "\n".join(faults),
            "Stop what uses the port (`ss -ltnp` shows it), or choose other ports with --port-base N.",
        )


def _listen_fault(host: str, port: int) -> str:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            # As servers do: a port whose old connections linger in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "the port is in use."
        return f"{os.strerror(error.errno)}." if error.errno and error.errno > 0 else f"{error}."
    return ""
