"""The plan of `weimq up`: processes, environments, endpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.cli import mesh
from services.cli.config_file import SERVICES, Environments
from services.cli.mesh import Mesh, Process
from services.cli.ports import plan_ports
from services.cli.secrets import DataDir


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan as without `WEIMQ_PURE`, with which the gate runs the unit tests once."""
    monkeypatch.delenv("WEIMQ_PURE", raising=False)


def plan(tmp_path: Path, edges: int = 1, config: Environments | None = None, default_instance: str = "") -> Mesh:
    return mesh.plan(
        data=DataDir(tmp_path / "data"),
        ports=plan_ports(20000, edges),
        sockets=Path("/s"),
        nats_server="/bin/nats-server",
        config=config,
        default_instance=default_instance,
    )


def environ(made: Mesh, name: str) -> dict[str, str]:
    """Return the settings of a process, without what it inherits."""
    process = next(process for process in made.processes if process.name == name)
    prefixes = (f"{name.partition('-')[0].upper()}_", "WEIMQ_")
    return {key: value for key, value in process.environ.items() if key.startswith(prefixes)}


def test_every_process_is_planned_once(tmp_path: Path) -> None:
    names = [process.name for process in plan(tmp_path, edges=3).processes]
    assert sorted(names) == ["auth", "backends", "edge-0", "edge-1", "edge-2", "nats", "router", "session", "status"]


def test_nats_collects_garbage_seldom_but_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nats = next(process for process in plan(tmp_path).processes if process.name == "nats")
    assert nats.environ["GOGC"] == "200"
    assert int(nats.environ["GOMEMLIMIT"]) > 64 << 20
    monkeypatch.setenv("GOGC", "50")
    nats = next(process for process in plan(tmp_path).processes if process.name == "nats")
    assert nats.environ["GOGC"] == "50"


def test_nats_leaves_processors_to_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, share in ((1, "1"), (2, "1"), (8, "4")):
        monkeypatch.setattr(os, "cpu_count", lambda count=processors: count)
        (nats,) = (process for process in plan(tmp_path).processes if process.name == "nats")
        assert nats.environ["GOMAXPROCS"] == share


def test_environment_of_each_service(tmp_path: Path) -> None:
    made, secrets = plan(tmp_path, edges=2), f"{tmp_path}/data/secrets"
    token = {"WEIMQ_CLUSTER_TOKEN_FILE": f"{secrets}/cluster.token"}
    assert environ(made, "auth") == token | {
        "AUTH_NATS_URL_FILE": f"{secrets}/nats.url",
        "AUTH_MASTER_KEY_FILE": f"{secrets}/master.key",
        "AUTH_BOOTSTRAP_FILE": f"{secrets}/bootstrap.json",
        "AUTH_GRPC_LISTEN": "127.0.0.1:20006,unix:/s/auth.sock",
        "AUTH_HTTP_LISTEN": "127.0.0.1:20005",
    }
    assert environ(made, "session") == token | {
        "SESSION_NATS_URL_FILE": f"{secrets}/nats.url",
        "SESSION_GRPC_LISTEN": "127.0.0.1:20007,unix:/s/session.sock",
        "SESSION_ROUTER": "unix:/s/router.sock",
        "SESSION_DATA_DIR": f"{tmp_path}/data/session",
    }
    assert environ(made, "router") == token | {
        "ROUTER_NATS_URL_FILE": f"{secrets}/nats.url",
        "ROUTER_GRPC_LISTEN": "127.0.0.1:20008,unix:/s/router.sock",
        "ROUTER_AUTH": "unix:/s/auth.sock",
        "ROUTER_SHARD_COUNT": "1",
    }
    assert environ(made, "status") == token | {
        "STATUS_GRPC_LISTEN": "127.0.0.1:20009,unix:/s/status.sock",
        "STATUS_HTTP_LISTEN": "127.0.0.1:20004",
        "STATUS_AUTH": "unix:/s/auth.sock",
        "STATUS_SESSION": "unix:/s/session.sock",
    }
    assert environ(made, "edge-1") == token | {
        "EDGE_ID": "edge-1",
        "EDGE_TCP_LISTEN": "127.0.0.1:20020",
        "EDGE_TLS_LISTEN": "127.0.0.1:20021",
        "EDGE_WS_LISTEN": "127.0.0.1:20022",
        "EDGE_WSS_LISTEN": "127.0.0.1:20023",
        "EDGE_TLS_CERTIFICATE_FILE": f"{tmp_path}/data/tls/certificate.pem",
        "EDGE_TLS_KEY_FILE": f"{tmp_path}/data/tls/key.pem",
        "EDGE_GRPC_LISTEN": "unix:/s/edge-1.sock",
        "EDGE_AUTH": "unix:/s/auth.sock",
        "EDGE_SESSION": "unix:/s/session.sock",
        "EDGE_ROUTER": "unix:/s/router.sock",
    }


def test_replicas_know_their_place_and_everybody_lists_them_in_order(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    made = mesh.plan(
        data=data, ports=plan_ports(20000, 1), sockets=Path("/s"), nats_server="nats", routers=2, sessions=3
    )
    names = [process.name for process in made.processes]
    assert sorted(names) == [
        "auth", "backends", "edge-0", "nats", "router-0", "router-1", "session-0", "session-1", "session-2", "status",
    ]  # fmt: skip
    routers, sessions = (
        "unix:/s/router-0.sock,unix:/s/router-1.sock",
        ",".join(f"unix:/s/session-{n}.sock" for n in range(3)),
    )
    edge, status, last = environ(made, "edge-0"), environ(made, "status"), environ(made, "session-2")
    assert (edge["EDGE_ROUTER"], edge["EDGE_SESSION"], status["STATUS_SESSION"]) == (routers, sessions, sessions)
    assert (last["SESSION_ROUTER"], last["SESSION_SHARD_INDEX"], last["SESSION_SHARD_COUNT"]) == (routers, "2", "3")
    assert last["SESSION_GRPC_LISTEN"] == "unix:/s/session-2.sock"
    assert environ(made, "session-0")["SESSION_GRPC_LISTEN"] == "127.0.0.1:20007,unix:/s/session-0.sock"
    assert last["SESSION_DATA_DIR"] == f"{tmp_path}/data/session-2"
    second = environ(made, "router-1")
    assert (second["ROUTER_INDEX"], second["ROUTER_COUNT"], second["ROUTER_SHARD_COUNT"]) == ("1", "2", "3")
    assert made.endpoints["router"] == "127.0.0.1:20008"


def test_services_accept_what_is_planned(tmp_path: Path) -> None:
    """A setting that a service does not know would stop the mesh: asked of the services themselves."""
    auth = pytest.importorskip("services.auth.settings").AuthSettings
    edge = pytest.importorskip("services.edge.settings").EdgeSettings
    router = pytest.importorskip("services.router.settings").RouterSettings
    session = pytest.importorskip("services.session.settings").SessionSettings
    status = pytest.importorskip("services.status.settings").StatusSettings
    from services.cli import nats_config  # noqa: PLC0415
    from services.common.settings import load  # noqa: PLC0415

    data = DataDir(tmp_path / "data")
    data.initialize()
    nats_config.write_files(data, listen="127.0.0.1:20010", address="127.0.0.1:20010", store=data.nats_store)
    made = plan(tmp_path, default_instance="mqtt-demo")
    replicated = mesh.plan(
        data=data, ports=plan_ports(20000, 2), sockets=Path("/s"), nats_server="nats", routers=2, sessions=2
    )
    forms = {"auth": auth, "edge": edge, "router": router, "session": session, "status": status}
    for process in (*made.processes, *replicated.processes):
        if process.name not in {"backends", "nats"}:
            load(forms[process.name.partition("-")[0]], process.environ)


def test_nodes_of_nats_are_a_cluster_with_three_replicas(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    ports = plan_ports(20000, 2, 3)
    made = mesh.plan(data=data, ports=ports, sockets=Path("/s"), nats_server="nats", nats_nodes=3)
    nodes = {process.name: process for process in made.processes if process.name.startswith("nats")}
    assert {name: node.listens for name, node in nodes.items()} == {
        "nats-0": ("127.0.0.1:20010", "127.0.0.1:20015"),
        "nats-1": ("127.0.0.1:20011", "127.0.0.1:20016"),
        "nats-2": ("127.0.0.1:20012", "127.0.0.1:20017"),
    }
    assert nodes["nats-2"].environ["WEIMQ_NATS_STORE"] == f'"{tmp_path}/data/nats-2"'
    assert {node.health for node in nodes.values()} == {f"nats://127.0.0.1:{20010 + n}" for n in range(3)}
    assert environ(made, "router")["WEIMQ_NATS_REPLICAS"] == "3"
    assert "WEIMQ_NATS_REPLICAS" not in environ(plan(tmp_path), "router")


def test_endpoints_are_those_that_listen(tmp_path: Path) -> None:
    made = plan(tmp_path, edges=2)
    assert made.endpoints == {
        "mqtt": "127.0.0.1:20000",
        "mqtts": "127.0.0.1:20001",
        "ws": "127.0.0.1:20002",
        "wss": "127.0.0.1:20003",
        "mqtt-1": "127.0.0.1:20020",
        "mqtts-1": "127.0.0.1:20021",
        "ws-1": "127.0.0.1:20022",
        "wss-1": "127.0.0.1:20023",
        "status_http": "127.0.0.1:20004",
        "auth_http": "127.0.0.1:20005",
        "auth": "127.0.0.1:20006",
        "session": "127.0.0.1:20007",
        "router": "127.0.0.1:20008",
        "status": "127.0.0.1:20009",
        "nats": "127.0.0.1:20010",
    }
    assert {address for process in made.processes for address in process.listens} == set(made.endpoints.values())


def test_everything_listens_on_loopback_only(tmp_path: Path) -> None:
    for process in plan(tmp_path, edges=2).processes:
        for key, value in process.environ.items():
            if key.endswith("_LISTEN"):
                assert all(part.startswith(("127.0.0.1:", "unix:")) for part in value.split(",")), (key, value)


def test_default_instance_reaches_every_edge(tmp_path: Path) -> None:
    made = plan(tmp_path, edges=2, default_instance="plain")
    for name in ("edge-0", "edge-1"):
        assert environ(made, name)["EDGE_DEFAULT_INSTANCE"] == "plain"
    assert "EDGE_DEFAULT_INSTANCE" not in environ(plan(tmp_path), "edge-0")


def test_configuration_wins_and_moves_endpoints(tmp_path: Path) -> None:
    given: Environments = {service: {} for service in SERVICES} | {
        "edge": {"EDGE_TCP_LISTEN": "0.0.0.0:1884", "EDGE_WS_LISTEN": "", "WEIMQ_DRAIN_S": "30"},
        "status": {"STATUS_HTTP_LISTEN": "127.0.0.1:9000"},
    }
    made = plan(tmp_path, config=given)
    edge = next(process for process in made.processes if process.name == "edge-0")
    assert edge.environ["EDGE_TCP_LISTEN"] == made.endpoints["mqtt"] == "0.0.0.0:1884"
    assert edge.listens == ("0.0.0.0:1884", "127.0.0.1:20001", "127.0.0.1:20003")
    assert "ws" not in made.endpoints
    assert edge.stop_s > 30
    assert made.endpoints["status_http"] == "127.0.0.1:9000"


def test_processes_stop_edges_first_and_nats_last(tmp_path: Path) -> None:
    stages = {process.name: process.stage for process in plan(tmp_path, edges=2).processes}
    assert stages["edge-0"] == stages["edge-1"] < stages["auth"] == stages["router"] == stages["session"]
    assert stages["status"] < stages["nats"]


def test_environment_of_the_user_does_not_leak_into_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGE_TCP_LISTEN", "AUTH_MASTER_KEY", "WEIMQ_LOG_LEVEL", "http_proxy", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "from outside")
    monkeypatch.setenv("LANG", "C.UTF-8")
    for process in plan(tmp_path).processes:
        assert "from outside" not in process.environ.values()
        assert process.environ["LANG"] == "C.UTF-8"
        assert "PATH" in process.environ


def test_services_run_from_where_this_code_is(tmp_path: Path) -> None:
    process: Process = next(process for process in plan(tmp_path).processes if process.name == "auth")
    assert process.argv[1:] == ("-P", "-m", "services.auth")
    root = str(Path(mesh.__file__).parents[2])
    assert root in process.environ["PYTHONPATH"].split(":")
