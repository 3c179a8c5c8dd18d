"""Programs that no Python package brings."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str, package: str) -> str:
    """Return the path of `program`; without it the test is skipped, and fails when `CI=true`."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is missing: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path
