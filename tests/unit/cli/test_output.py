"""Tests of `services.cli.output`."""

from __future__ import annotations

import pytest

from services.cli.output import print_record


def test_a_time_that_never_was_is_no_time_of_1970(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"oldest_message_time_ms": 0, "disconnect_time_ms": 1_000})
    printed = capsys.readouterr().out
    assert printed.count("1970") == 1
    assert "oldest message time" in printed
