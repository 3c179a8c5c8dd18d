"""What npm brings, for the clients in JavaScript."""

from __future__ import annotations

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
    lock, stamp = (HERE / "package-lock.json").read_bytes(), installed / ".installed"
    if not stamp.exists() or stamp.read_bytes() != lock:
        done = subprocess.run([npm, "ci"], cwd=HERE, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        assert done.returncode == 0, f"npm ci failed:\n{done.stderr}"
        stamp.write_bytes(lock)
    return installed
