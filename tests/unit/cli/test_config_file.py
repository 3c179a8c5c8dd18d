"""`weimq up --config`: tables and keys become environment variables; every fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli import config_file
from services.cli.config_file import Environments
from services.cli.errors import CliError


def read(tmp_path: Path, text: str) -> Environments:
    path = tmp_path / "weimq.toml"
    path.write_text(text, encoding="utf-8")
    return config_file.read(path)


def faults(tmp_path: Path, text: str) -> CliError:
    with pytest.raises(CliError) as caught:
        read(tmp_path, text)
    assert caught.value.status == 2
    return caught.value


def test_keys_become_variables_of_their_service(tmp_path: Path) -> None:
    environments = read(
        tmp_path,
        '[edge]\nmax_inflight = 7\nratio = 0.5\nstrict = true\nname = "a b"\nmany = ["a", "b"]\n[router]\nx = 1\n',
    )
    assert environments["edge"] == {
        "EDGE_MAX_INFLIGHT": "7",
        "EDGE_RATIO": "0.5",
        "EDGE_STRICT": "true",
        "EDGE_NAME": "a b",
        "EDGE_MANY": "a,b",
    }
    assert environments["router"] == {"ROUTER_X": "1"}
    assert environments["auth"] == {}


def test_settings_of_every_service_keep_their_shared_prefix(tmp_path: Path) -> None:
    environments = read(tmp_path, '[edge]\ndrain_s = 3\nlog_level = "DEBUG"\n')
    assert environments["edge"] == {"WEIMQ_DRAIN_S": "3", "WEIMQ_LOG_LEVEL": "DEBUG"}
    assert environments["router"] == {}


@pytest.mark.parametrize(
    "text",
    ["[weimq]\ndrain_s = 1\n[edge]\ndrain_s = 2\n", "[edge]\ndrain_s = 2\n[weimq]\ndrain_s = 1\n"],
    ids=["shared first", "own first"],
)
def test_own_table_wins_over_the_shared_one(tmp_path: Path, text: str) -> None:
    environments = read(tmp_path, text)
    assert environments["edge"] == {"WEIMQ_DRAIN_S": "2"}
    assert {environments[name]["WEIMQ_DRAIN_S"] for name in ("auth", "session", "router", "status")} == {"1"}


def test_all_faults_are_listed_together(tmp_path: Path) -> None:
    cause = faults(
        tmp_path,
        "drain_s = 3\nedge = 1\n[broker]\nport = 1\n[router]\nGRPC = 1\ngrpc_listen = ['x']\nwhen = 2026-01-01\n"
        "[weimq]\nmax_inflight = 1\ncluster_token = 'x'\n[auth]\nmaster_key_file = 'x'\n",
    ).cause
    for wanted in (
        "9 fault(s)",
        "drain_s is in no table",
        "edge must be a table",
        "[broker] is not a service",
        "[router] GRPC: setting names are lower case",
        "[router] grpc_listen: is set by `weimq up` itself",
        "[router] when: must be a text",
        "[weimq] max_inflight: is not a setting that every service has",
        "[weimq] cluster_token: is set by",
        "[auth] master_key_file: is set by",
    ):
        assert wanted in cause, cause


def test_file_that_is_not_toml_is_explained(tmp_path: Path) -> None:
    assert "is not TOML" in faults(tmp_path, "[edge\n").cause


def test_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="Can't read"):
        config_file.read(tmp_path / "none.toml")
