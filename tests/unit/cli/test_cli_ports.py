"""Which port listens where."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator

import pytest

from services.cli.errors import CliError
from services.cli.ports import MAX_EDGES, MAX_NATS_NODES, EdgePorts, Ports, check_free, plan_ports, split_address


def all_ports(ports: Ports) -> list[int]:
    edges = [port for edge in ports.edges for port in dataclasses.astuple(edge)]
    return [
        *edges,
        *ports.nats_routes,
        *(value for value in dataclasses.asdict(ports).values() if isinstance(value, int)),
    ]


def test_port_base_gives_the_stable_offsets() -> None:
    assert plan_ports(20000, 2) == Ports(
        edges=(
            EdgePorts(tcp=20000, tls=20001, ws=20002, wss=20003),
            EdgePorts(tcp=20020, tls=20021, ws=20022, wss=20023),
        ),
        status_http=20004,
        token_http=20005,
        auth=20006,
        session=20007,
        router=20008,
        status=20009,
        nats=20010,
    )


def test_without_base_the_usual_ports_are_used() -> None:
    assert plan_ports(None, 1) == Ports(
        edges=(EdgePorts(tcp=1883, tls=8883, ws=8083, wss=8084),),
        status_http=8080,
        token_http=8081,
        auth=7001,
        session=7002,
        router=7003,
        status=7004,
        nats=4222,
    )


@pytest.mark.parametrize("base", [None, 1, 30000], ids=str)
@pytest.mark.parametrize("edges", [1, 2, MAX_EDGES], ids=str)
@pytest.mark.parametrize("nats_nodes", [1, 3, MAX_NATS_NODES], ids=str)
def test_no_port_is_used_twice(base: int | None, edges: int, nats_nodes: int) -> None:
    ports = all_ports(plan_ports(base, edges, nats_nodes))
    assert len(ports) == len(set(ports))
    assert all(0 < port < 65536 for port in ports)


@pytest.mark.parametrize(
    ("base", "edges"), [(0, 1), (-1, 1), (65536, 1), (65526, 1), (65510, 2), (None, 0), (None, MAX_EDGES + 1)], ids=str
)
def test_ports_that_do_not_fit_are_wrong_use(base: int | None, edges: int) -> None:
    with pytest.raises(CliError) as caught:
        plan_ports(base, edges)
    assert caught.value.status == 2


def test_highest_base_fits() -> None:
    assert max(all_ports(plan_ports(65525, 1))) == 65535


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_every_port_in_use_is_named_with_its_cure(taken: str) -> None:
    with pytest.raises(CliError) as caught:
        check_free([("edge-0", taken), ("auth", taken), ("nats", "127.0.0.1:0")])
    assert f"edge-0 can't listen on {taken}: the port is in use." in caught.value.cause
    assert f"auth can't listen on {taken}" in caught.value.cause
    assert "nats" not in caught.value.cause
    assert "--port-base" in caught.value.cure


def test_port_that_two_processes_want_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(CliError, match=r"edge-1 can't listen on .*: edge-0 does"):
        check_free([("edge-0", address), ("edge-1", address)])


def test_free_ports_are_accepted() -> None:
    check_free([("a", "127.0.0.1:0"), ("b", "0.0.0.0:0"), ("c", "localhost:0")])


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:x", "host:65536", "host:-1"], ids=repr)
def test_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(address)
    check_free([("edge-0", address)])  # the edge says what is wrong with it, and with its other settings


def test_address_is_split() -> None:
    assert split_address("127.0.0.1:1883") == ("127.0.0.1", 1883)
    assert split_address("[::1]:1883") == ("::1", 1883)
