"""The choice between the build and pure Python."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from services import compiled
from services.common import topics
from services.compiled.modules import sources
from services.edge.mqtt import codec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source, and a build of it."""
    source = tmp_path / "services" / "edge" / "hot.py"
    source.parent.mkdir(parents=True)
    source.write_text("X = 1\n")
    build = tmp_path / "build"
    build.mkdir()
    file = f"hot{compiled.SUFFIX}"
    (build / file).write_bytes(b"")
    manifest = {
        "suffix": compiled.SUFFIX,
        "sources": compiled.fingerprint(tmp_path),
        "files": {"services.hot": file},
    }
    (build / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def _check(root: Path) -> tuple[dict[str, Path], str]:
    return compiled.check(root / "build", root)


def test_a_build_of_the_sources_is_used(root: Path) -> None:
    assert _check(root) == ({"services.hot": root / "build" / f"hot{compiled.SUFFIX}"}, "")


def test_an_edited_source_turns_the_build_off(root: Path) -> None:
    (root / "services" / "edge" / "hot.py").write_text("X = 2\n")
    assert _check(root) == ({}, "sources were changed after the build")


def test_a_source_that_comes_or_goes_turns_the_build_off(root: Path) -> None:
    new = root / "services" / "edge" / "new.py"
    new.write_text("")
    assert _check(root) == ({}, "sources were changed after the build")
    new.unlink()
    assert not _check(root)[1]
    (root / "services" / "edge" / "hot.py").unlink()
    assert _check(root) == ({}, "sources were changed after the build")


def test_a_build_for_another_python_is_not_used(root: Path) -> None:
    manifest = root / "build" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(compiled.SUFFIX, ".cpython-39.so"))
    assert _check(root) == ({}, "built for Python .cpython-39.so")


def test_half_a_build_is_not_used(root: Path) -> None:
    (root / "build" / f"hot{compiled.SUFFIX}").unlink()
    files, why = _check(root)
    assert not files
    assert why.endswith("is missing")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 1}'])
def test_a_manifest_that_is_none_is_told(root: Path, text: str) -> None:
    (root / "build" / "manifest.json").write_text(text)
    files, why = _check(root)
    assert not files
    assert why.startswith("the build can't be read")


def test_nothing_built_is_told(tmp_path: Path) -> None:
    assert compiled.check(tmp_path, tmp_path) == ({}, "not built")


def test_classes_on_both_sides_of_an_inheritance_are_compiled() -> None:
    names = {str(path.relative_to(compiled.ROOT)) for path in sources(compiled.ROOT)}
    assert "services/edge/mqtt/codec.py" in names
    assert "services/edge/shared.py" in names  # its client is the base of the connection


def test_all_or_none_of_the_hot_path_is_compiled() -> None:
    for module in (codec, topics):
        assert Path(str(module.__file__)).name.endswith(".so") == compiled.is_active


def test_the_variable_turns_it_off() -> None:
    code = "from services import compiled; print(compiled.describe())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"WEIMQ_PURE": "1"},
        cwd=compiled.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "pure Python (WEIMQ_PURE is set)"


def test_compiled_classes_say_themselves_whether_they_are_true() -> None:
    """Compiled, an optional object that has a length and no `__bool__` is true even when it is empty."""
    never_optional = {"Backoff", "ReceivedIds", "SentWindow", "Strangers"}
    found = set()
    for path in sources(compiled.ROOT):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef):
                methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                if "__len__" in methods and "__bool__" not in methods:
                    found.add(node.name)
    assert found <= never_optional
