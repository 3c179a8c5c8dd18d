"""Lock and run.json of a data directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.errors import CliError
from services.cli.run_file import Run, locked, read_running, socket_directory
from services.cli.secrets import DataDir


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path)
    made.initialize()
    return made


def test_running_mesh_is_found_until_it_stops(data: DataDir) -> None:
    run = Run(supervisor_pid=os.getpid(), sockets="/tmp/x", endpoints={"auth": "127.0.0.1:1"})
    assert read_running(data) is None
    with locked(data):
        assert read_running(data) is None
        run.pids = {"auth": 7}
        run.write(data)
        assert data.run.stat().st_mode & 0o777 == 0o600
        assert read_running(data) == run
    assert not data.run.exists()
    assert read_running(data) is None


def test_second_mesh_on_a_directory_is_refused_with_the_first_ones_pid(data: DataDir) -> None:
    with locked(data):
        with pytest.raises(CliError, match=str(os.getpid())) as caught, locked(data):
            pass
        assert "--data" in caught.value.cure
    with locked(data):
        pass


def test_what_a_killed_mesh_left_counts_for_nothing_and_is_cleaned(data: DataDir) -> None:
    with socket_directory() as kept:
        leftover = kept.parent / f"{kept.name}-left"
    leftover.mkdir()
    Run(supervisor_pid=1, sockets=str(leftover), endpoints={"auth": "127.0.0.1:1"}).write(data)
    assert read_running(data) is None
    with locked(data):
        assert not leftover.exists()
        assert not data.run.exists()


def test_lock_ends_with_a_killed_process(data: DataDir) -> None:
    program = (
        f"import sys, time; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path; from services.cli.run_file import locked; from services.cli.secrets import DataDir\n"
        f"with locked(DataDir(Path({str(data.path)!r}))): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CliError, match=str(holder.pid)), locked(data):
            pass
        holder.kill()
    with locked(data):
        pass


def test_socket_directory_is_short_and_private_and_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    with socket_directory() as directory:
        assert len(str(directory / "session.sock")) < 100
        assert directory.stat().st_mode & 0o777 == 0o700
    assert not directory.exists()
