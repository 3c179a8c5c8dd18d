"""The list of normative statements, and what the tests claim to prove; also the pytest plugin that finds it out."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STATEMENTS = HERE / "statements.toml"
GAPS = HERE / "gaps.txt"

TESTED = "tested"
NOT_APPLICABLE = "not-applicable"
GAP = "gap"
STATUSES = (TESTED, NOT_APPLICABLE, GAP)
SIDES = ("client", "server", "both")

COLLECT_S = 300.0
"""How long listing all tests may take: seconds on a quiet machine, minutes on one that does other work."""

_OUTPUT_VARIABLE = "CONFORMANCE_CLAIMS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """One normative statement of MQTT 3.1.1; the fields are those of `statements.toml`."""

    id: str
    section: str
    side: str
    text: str
    status: str
    reason: str = ""
    tests: tuple[str, ...] = ()


def load_statements() -> list[Statement]:
    """Return the list in its order."""
    raw = tomllib.loads(STATEMENTS.read_text())["statement"]
    return [Statement(**{**entry, "tests": tuple(entry.get("tests", ()))}) for entry in raw]


def load_gaps() -> list[str]:
    """Return the ids of `gaps.txt` in their order."""
    lines = [line.strip() for line in GAPS.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def totals(statements: list[Statement]) -> str:
    """Return how many statements there are of each status."""
    counts = {status: sum(one.status == status for one in statements) for status in STATUSES}
    return (
        f"MQTT 3.1.1: {len(statements)} normative statements, {counts[TESTED]} tested, "
        f"{counts[NOT_APPLICABLE]} not applicable, {counts[GAP]} gaps"
    )


# --- what the tests claim ---------------------------------------------------------------------


def collect_claims(output: Path) -> dict[str, list[str]]:
    """Return every test function under tests/ with the ids of its `spec` markers, those of its parameters included.

    Another pytest collects them: markers may come from parameters, and the running pytest may have been asked for a
    part of the tests.

    Args:
        output: a file that may be written.
    """
    command = [
        sys.executable, "-m", "pytest", "tests", "--collect-only", "-qq", "--continue-on-collection-errors",
        "-p", "tests.conformance.manifest", "-p", "no:cacheprovider",
    ]  # fmt: skip
    subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, _OUTPUT_VARIABLE: str(output), "PYTEST_ADDOPTS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COLLECT_S,
        check=False,  # a file of somebody else that can't be imported has no tests, and breaks nothing here
    )
    claims: dict[str, list[str]] = json.loads(output.read_text())
    return claims


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write what was collected, when this module is the plugin of `collect_claims`."""
    output = os.environ.get(_OUTPUT_VARIABLE)
    if not output:
        return
    claims: dict[str, set[str]] = {}
    for item in session.items:
        function = item.nodeid.partition("[")[0]
        claims.setdefault(function, set()).update(str(mark.args[0]) for mark in item.iter_markers("spec"))
    Path(output).write_text(json.dumps({function: sorted(ids) for function, ids in claims.items()}))
