"""Decides whether hot-path modules run as machine code: from `_compiled/`, if that was built from the sources here.

`python -m services.compiled` builds them with mypyc (`make setup` and the image do); pure Python is the fallback, and
`WEIMQ_PURE=1` chooses it. The build is used whole or not at all: when Python is another one, or one of the files that
it was made from has changed, every module is read from its source. Runs before any other import of a service.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType

from typing_extensions import override

PURE_VARIABLE = "WEIMQ_PURE"
ROOT = Path(__file__).parents[2]
"""Directory that holds the package `services`."""
DIRECTORY = Path(__file__).parents[1] / "_compiled"
"""Extension modules and their `manifest.json`."""
PACKAGES = ("auth", "common", "compiled", "edge", "router", "session")
"""Of `services`, those whose sources a build depends on."""
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
"""End of the names of extension modules; names version and platform of Python."""

is_active = False
"""Whether the build is in use."""
reason = ""
"""Why not, in words for the log; empty when it is in use."""


class _Finder(MetaPathFinder):
    """Finds the extension modules of a build ahead of their sources."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module of the build is; see `importlib.abc.MetaPathFinder`."""
        del path, target
        file = self._files.get(fullname)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, str(file)))


def fingerprint(root: Path = ROOT) -> str:
    """Return what tells these sources from all others: of every package that has a part in the hot path.

    Files that are not compiled count, too: a type that changes, or a new class derived from a compiled one.
    """
    found = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted(root.joinpath("services", package).glob("**/*.py")):
            found.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def check(directory: Path = DIRECTORY, root: Path = ROOT) -> tuple[dict[str, Path], str]:
    """Return the modules of a build with their files, or none and why it can't be used."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        files = {name: directory / file for name, file in manifest["files"].items()}
        if manifest["suffix"] != SUFFIX:
            return {}, f"built for Python {manifest['suffix']}"
        if manifest["sources"] != fingerprint(root):
            return {}, "sources were changed after the build"
        if missing := [str(file) for file in files.values() if not file.exists()]:
            return {}, f"{missing[0]} is missing"
    except FileNotFoundError as error:
        return {}, "not built" if error.filename == str(directory / "manifest.json") else f"{error.filename} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return {}, f"the build can't be read: {error}"
    return files, ""


def install(environ: Mapping[str, str] = os.environ) -> None:
    """Use the build for what is imported from now on, if it fits."""
    global is_active, reason  # noqa: PLW0603 - one decision for the process
    if environ.get(PURE_VARIABLE, "") not in {"", "0"}:
        reason = f"{PURE_VARIABLE} is set"
        return
    files, reason = check()
    if files:
        is_active = True
        sys.meta_path.insert(0, _Finder(files))


def describe() -> str:
    """Return which way is in use, for logs and `weimq --version`."""
    return "compiled" if is_active else f"pure Python ({reason})"
