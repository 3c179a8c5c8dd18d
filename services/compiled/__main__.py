"""Builds the hot-path modules with mypyc into `services/_compiled`: `python -m services.compiled [--strict]`.

Needs mypy, setuptools and a C compiler. Does nothing when the build is up to date. Without `--strict` a missing
compiler or a failure is told in one line and is no error, since pure Python does the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from services.compiled import DIRECTORY, PURE_VARIABLE, ROOT, SUFFIX, check, fingerprint
from services.compiled.modules import sources

# Not strict: whether the types hold is for `make check`, with stubs that building does without.
CONFIGURATION = """
[mypy]
explicit_package_bases = true
namespace_packages = true
ignore_missing_imports = true
"""

BUILD = """
import sys
from setuptools import setup
from mypyc.build import mypycify
setup(
    name="weimq-hot-path",
    packages=[],
    ext_modules=mypycify(
        ["--config-file", sys.argv[1] + "/mypy.ini", "--cache-dir", sys.argv[1] + "/cache", *sys.argv[2:]],
        opt_level="2", debug_level="0", multi_file=True, target_dir=sys.argv[1] + "/c",
    ),
    script_args=["-q", "build_ext", "--build-lib", sys.argv[1] + "/lib", "--build-temp", sys.argv[1] + "/temp"],
)
"""


def build() -> None:
    """Compile, and replace the build of before.

    Raises:
        subprocess.CalledProcessError: with the compiler's output.
    """
    files = sources(ROOT)
    before = fingerprint()
    with tempfile.TemporaryDirectory(prefix="weimq-compiled-", dir=DIRECTORY.parent) as name:
        work = Path(name)
        (work / "mypy.ini").write_text(CONFIGURATION)
        (work / "build.py").write_text(BUILD)
        subprocess.run(  # noqa: S603 - our own arguments
            [sys.executable, str(work / "build.py"), str(work), *(str(path.relative_to(ROOT)) for path in files)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "MYPYPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen"))), "PYTHONPATH": ""},
        )
        library = work / "lib"
        built = {
            ".".join(path.relative_to(library).parts).removesuffix(SUFFIX): str(path.relative_to(library))
            for path in sorted(library.rglob(f"*{SUFFIX}"))
        }
        manifest = {"suffix": SUFFIX, "sources": before, "files": built}
        (library / "manifest.json").write_text(json.dumps(manifest, indent=1))
        # Processes that run keep the files they have open; one that starts right now finds none and is pure.
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        library.rename(DIRECTORY)


def main() -> int:
    """Build when it is needed; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.compiled", description=__doc__)
    parser.add_argument("--strict", action="store_true", help="fail when it can't be built")
    strict = parser.parse_args().strict
    _, why = check()
    if not why or (os.environ.get(PURE_VARIABLE) and not strict):
        return 0
    compiler = os.environ.get("CC", "cc").split()[0]
    if shutil.which(compiler) is None:
        print(f"No C compiler ({compiler}): the hot path runs in pure Python.")
        return int(strict)
    print(f"Compiling the hot path ({why}), a minute or two ...", flush=True)
    try:
        build()
    except subprocess.CalledProcessError as error:
        lines = (error.output or "").strip().splitlines()
        faults = [line for line in lines if "error" in line.lower()] or lines[-1:]
        shown = lines if strict else faults[:3]
        print("\n".join(["The hot path does not compile, it runs in pure Python:", *shown]))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(DIRECTORY)
        return int(strict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
