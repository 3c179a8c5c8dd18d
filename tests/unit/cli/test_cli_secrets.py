"""The data directory: made once, private, never overwritten."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from services.cli.errors import CliError
from services.cli.secrets import DataDir, write_private


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "weimq")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_secret_is_private(data: DataDir) -> None:
    data.initialize()
    assert mode(data.path) == mode(data.secrets) == 0o700
    files = sorted(path.name for path in data.secrets.iterdir())
    assert files == ["bootstrap.json", "cluster.token", "master.key", "nats-system.password", "nats.json"]
    assert {mode(data.secrets / name) for name in files} == {0o600}


def test_secrets_have_the_form_that_services_expect(data: DataDir) -> None:
    data.initialize()
    assert len(data.read_text(data.cluster_token)) >= 32
    assert len(base64.b64decode(data.read_text(data.master_key), validate=True)) == 32
    bootstrap = json.loads(data.bootstrap.read_text())
    assert list(bootstrap) == ["instance", "access_key", "secret", "group", "topic"]
    assert (bootstrap["instance"], bootstrap["group"], bootstrap["topic"]) == ("mqtt-demo", "GID_demo", "demo")
    assert len(bootstrap["secret"]) >= 32
    assert set(data.read_nats_passwords().backend) <= set("0123456789abcdef")


def test_second_start_changes_nothing(data: DataDir) -> None:
    data.initialize()
    before = {path.name: path.read_bytes() for path in data.secrets.iterdir()}
    data.initialize()
    assert {path.name: path.read_bytes() for path in data.secrets.iterdir()} == before


def test_secrets_differ_between_meshes(data: DataDir, tmp_path: Path) -> None:
    other = DataDir(tmp_path / "other")
    data.initialize()
    other.initialize()
    for path in (data.cluster_token, data.master_key, data.bootstrap, data.nats_passwords):
        assert path.read_bytes() != (other.secrets / path.name).read_bytes()


def test_permissions_that_were_opened_are_closed_again(data: DataDir) -> None:
    data.initialize()
    data.secrets.chmod(0o755)
    data.cluster_token.chmod(0o644)
    data.initialize()
    assert (mode(data.secrets), mode(data.cluster_token)) == (0o700, 0o600)


def test_missing_data_directory_is_explained(data: DataDir) -> None:
    with pytest.raises(CliError, match=r"bootstrap\.json is missing") as caught:
        data.read_bootstrap()
    assert "weimq up" in caught.value.cure


@pytest.mark.parametrize("text", ["", "{", "[]", '{"instance": "x"}'], ids=["empty", "cut", "list", "fields"])
def test_damaged_bootstrap_file_is_explained(data: DataDir, text: str) -> None:
    data.initialize()
    data.bootstrap.write_text(text)
    with pytest.raises(CliError, match="damaged"):
        data.read_bootstrap()


def test_unusable_directory_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match="Can't use"):
        DataDir(tmp_path / "file").initialize()


def test_private_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert mode(path) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
