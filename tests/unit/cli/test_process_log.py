"""Logs of children: bounded, and read along."""

from __future__ import annotations

import io
import json
import os
import traceback
from pathlib import Path

import pytest

from services.cli import process_log
from services.cli.process_log import Entry, ProcessLog, parse
from services.common.logging import JsonFormatter, LineHandler


def write(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode())


def test_lines_are_read_once_and_only_when_complete(tmp_path: Path) -> None:
    log = ProcessLog(tmp_path, "edge-0")
    output = log.open()
    write(output, "one\ntw")
    assert [entry.text for entry in log.read()] == ["one"]
    assert log.read() == []
    write(output, "o\n\nthree\n")
    assert [entry.text for entry in log.read()] == ["two", "three"]
    os.close(output)


def test_lines_about_clients_are_left_out(tmp_path: Path) -> None:
    stream = io.StringIO()
    line = LineHandler(stream, JsonFormatter("edge")).tell  # at once: no event loop runs
    line("client connected", {"client_id": "GID@@@\n1"})
    line("service starting", {"pid": 1})
    line("client disconnected", {"client_id": "GID@@@1"})
    text = stream.getvalue()
    log = ProcessLog(tmp_path, "edge-0")
    output = log.open()
    write(output, text[:-5])  # its last line is not complete
    assert [entry.text for entry in log.read()] == ["service starting (pid=1)"]
    write(output, text[-5:])
    assert log.read() == []
    os.close(output)


def test_lines_of_the_process_before_are_not_read(tmp_path: Path) -> None:
    log = ProcessLog(tmp_path, "edge-0")
    first = log.open()
    write(first, "old\nhalf a line")
    os.close(first)
    second = log.open()
    write(second, "new\n")
    os.close(second)
    assert [entry.text for entry in log.read()] == ["new"]
    assert log.path.read_text() == "old\nhalf a linenew\n"


def test_long_log_is_rotated_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_log, "ROTATE_AT_START_BYTES", 10)
    log = ProcessLog(tmp_path, "nats")
    for text in ("first start\n", "second start\n"):
        output = log.open()
        write(output, text)
        os.close(output)
    assert log.path.read_text() == "second start\n"
    assert (tmp_path / "nats.log.1").read_text() == "first start\n"


def test_log_of_a_running_process_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_log, "ROTATE_RUNNING_BYTES", 100)
    log = ProcessLog(tmp_path, "nats")
    output = log.open()
    seen = []
    for number in range(100):
        write(output, f"line {number:04}\n")
        seen += [entry.text for entry in log.read()]
        assert log.path.stat().st_size <= 110
    os.close(output)
    assert seen == [f"line {number:04}" for number in range(100)]


def test_log_is_private(tmp_path: Path) -> None:
    log = ProcessLog(tmp_path, "nats")
    os.close(log.open())
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_record_of_a_service() -> None:
    line = {"time": "t", "level": "WARNING", "service": "edge", "event": "link down", "peer": "router", "code": 3}
    assert parse(json.dumps(line)) == Entry(level="WARNING", text="link down (peer=router, code=3)")
    line["exception"] = "Traceback:\n  file\nValueError: bad\n"
    assert parse(json.dumps(line)).text.startswith("link down: ValueError: bad (")


def test_group_of_exceptions_says_what_its_last_member_says() -> None:
    group = ExceptionGroup("unhandled errors", [ExceptionGroup("inner", [OSError(98, "address already in use")])])
    exception = "".join(traceback.format_exception(group))
    line = {"level": "ERROR", "event": "service failed", "exception": exception}
    assert parse(json.dumps(line)).text == "service failed: OSError: [Errno 98] address already in use"


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("[12] 2026/11/22 22:15:00.123 [INF] Server is ready", "INFO", "Server is ready"),
        ("[12] 2026/11/22 22:15:00.123 [WRN] slow", "WARNING", "slow"),
        ("[12] 2026/11/22 22:15:00.123 [FTL] no port", "CRITICAL", "no port"),
        ("Traceback (most recent call last):", "", "Traceback (most recent call last):"),
        ("{not json", "", "{not json"),
        ('{"level": "INFO"}', "", '{"level": "INFO"}'),
        ("[1]", "", "[1]"),
        ("a\x1b[31mb\x07", "", "a [31mb "),
    ],
    ids=["info", "warning", "fatal", "traceback", "broken", "no event", "short", "escapes"],
)
def test_line_of_any_form(line: str, level: str, text: str) -> None:
    assert parse(line) == Entry(level=level, text=text)


def test_long_line_is_cut() -> None:
    assert len(parse("x" * 100_000).text) < 400
