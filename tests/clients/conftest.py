"""What npm brings, for the clients in JavaScript."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest

from tests.support.tools import need

HERE = Path(__file__).parent / "node"
INSTALL_S = 120.0


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The directory of what `package-lock.json` names; installed when it is not there yet."""
    need("node", "nodejs")
    npm = need("npm", "npm")
    installed = HERE / "node_modules"
    wanted, stamp = (HERE / "package-lock.json").read_bytes(), installed / ".installed"
    with (HERE / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be about to install it, too
        if not stamp.exists() or stamp.read_bytes() != wanted:
            done = subprocess.run([npm, "ci"], cwd=HERE, capture_output=True, text=True, timeout=INSTALL_S, check=False)
            assert done.returncode == 0, f"npm ci failed:\n{done.stderr}"
            stamp.write_bytes(wanted)
    return installed
