"""A disk that can be filled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE = 96 << 20
PIECE = 64 << 10


class SmallDisk:
    """A file system in memory, of `SIZE` bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @property
    def free(self) -> int:
        """Bytes that are free."""
        return shutil.disk_usage(self.path).free

    def fill(self) -> None:
        """Leave not a byte."""
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(min(PIECE, self.free) or 1))

    def make_room(self) -> None:
        """Take away what `fill` wrote."""
        self._ballast.unlink()


@contextlib.contextmanager
def mounted(path: Path) -> Iterator[SmallDisk]:
    """Mount a disk; without the right to do so the test is skipped."""
    path.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("there is no mount(8), so no disk can be full here")
    command = [mount, "-t", "tmpfs", "-o", f"size={SIZE},mode=0700,uid={os.getuid()}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be full here, mount is not allowed: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run([umount, "--lazy", str(path)], check=True, timeout=10)
