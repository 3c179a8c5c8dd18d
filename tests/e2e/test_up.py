"""What `weimq up` prints."""

from __future__ import annotations

import pytest

from services import compiled
from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e


def test_it_tells_when_the_hot_path_is_not_compiled(mesh: Mesh) -> None:
    told = [line for line in mesh.output if "pure Python" in line and "make setup" in line]
    assert len(told) == (not compiled.is_active), "\n".join(mesh.output)
