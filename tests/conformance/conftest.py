"""The totals of the statement table at the end of a run."""

from __future__ import annotations

import pytest

from tests.conformance.manifest import load_statements, totals


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the totals."""
    terminalreporter.write_line(totals(load_statements()))
