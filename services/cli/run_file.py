"""What a running `weimq up` leaves in its data directory for other commands: a lock and `run.json`.

The lock ends with the process that holds it, however it ends; `run.json` counts only while the lock is held.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.cli.errors import CliError
from services.cli.secrets import DataDir, write_private

_SOCKETS_PREFIX = "weimq-up-"
_LONGEST_SOCKET_PATH = 60
"""Longest directory of Unix sockets: their paths are limited to 104 bytes on some systems."""


@dataclass(kw_only=True)
class Run:
    """A running mesh.

    Attributes:
        supervisor_pid: process of `weimq up`.
        sockets: directory of Unix sockets.
        endpoints: label -> address.
        pids: process ids by name.
    """

    supervisor_pid: int
    sockets: str
    endpoints: Mapping[str, str]
    pids: dict[str, int] = field(default_factory=dict)

    def write(self, data: DataDir) -> None:
        """Store it for other commands."""
        with contextlib.suppress(OSError):  # a full disk must not end the mesh
            write_private(data.run, json.dumps(asdict(self), indent=1))


@contextlib.contextmanager
def locked(data: DataDir) -> Iterator[None]:
    """Hold the data directory; `run.json` is removed on leaving.

    Raises:
        CliError: another `weimq up` holds it.
    """
    with data.lock.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise CliError(
                f"Another `weimq up` (process {lock.read().strip() or 'unknown'}) runs on {data.path}.",
                "Stop it with Ctrl-C or SIGTERM, or use another directory: --data DIR --port-base N.",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            _clean(data)
            yield
        finally:
            data.run.unlink(missing_ok=True)


def _clean(data: DataDir) -> None:
    """Remove what a killed `weimq up` left behind."""
    run = _read(data)
    if run is not None:
        sockets = Path(run.sockets)
        if sockets.name.startswith(_SOCKETS_PREFIX) and sockets.is_dir() and sockets.stat().st_uid == os.getuid():
            shutil.rmtree(sockets, ignore_errors=True)
    data.run.unlink(missing_ok=True)


@contextlib.contextmanager
def socket_directory() -> Iterator[Path]:
    """Make a directory with a short path that only this user can enter; removed on leaving."""
    parent = tempfile.gettempdir()
    directory = tempfile.mkdtemp(prefix=_SOCKETS_PREFIX, dir=parent if len(parent) < _LONGEST_SOCKET_PATH else "/tmp")  # noqa: S108 - mkdtemp is safe there
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def read_running(data: DataDir) -> Run | None:
    """Return the mesh that runs on a data directory, or None."""
    with contextlib.suppress(OSError), data.lock.open("r", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(data)
    return None


def _read(data: DataDir) -> Run | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Run(**json.loads(data.run.read_text(encoding="utf-8")))
    return None
