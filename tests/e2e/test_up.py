"""What `weimq up` prints, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from services import compiled
from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e


def test_it_tells_when_the_hot_path_is_not_compiled(mesh: Mesh) -> None:
    told = [line for line in mesh.output if "pure Python" in line and "make setup" in line]
    assert len(told) == (not compiled.is_active), "\n".join(mesh.output)


def test_it_stops_on_sigint_when_a_script_has_started_it_in_the_background(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path / "mesh")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell without job control does for `weimq up &`
    try:
        mesh.start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert mesh.stop() == 0
