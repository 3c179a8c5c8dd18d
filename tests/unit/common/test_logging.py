"""Lines of logs: what they hold, and when they are written."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import Generator
from typing import Any

import pytest
from typing_extensions import override

from services.common import logging as json_logging
from services.common.logging import JsonFormatter, LineHandler, tell


class Stream(io.StringIO):
    """Counts writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    @override
    def write(self, text: str, /) -> int:
        self.writes += 1
        return super().write(text)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().split("\n") if line]


@pytest.fixture
def stream() -> Stream:
    return Stream()


@contextlib.contextmanager
def lines_to(stream: Stream) -> Generator[logging.Logger]:
    """Yield a logger whose lines go to a stream, as those of a service; without the handlers of pytest."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [LineHandler(stream, JsonFormatter('the "service"'))]
    root.setLevel(logging.INFO)
    try:
        yield logging.getLogger("tests.lines")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


ODD = {
    "text": 'a "quoted"\n\\ line \u2028 \x01 é',
    "number": 7,
    "yes": True,
    "none": None,
    "list": ["a", 1.5],
    "other": 1 + 2j,
}


def test_both_ways_write_the_same_line(stream: Stream) -> None:
    with lines_to(stream) as logger:
        logger.info('it "happened"', extra=ODD)
        tell(logger, 'it "happened"', ODD)
        first, second = stream.lines
        assert list(first) == ["time", "level", "service", "event", *ODD]
        assert first | {"time": ""} == second | {"time": ""}
        assert first | {"time": ""} == {
            **ODD, "time": "", "level": "INFO", "service": 'the "service"', "event": 'it "happened"', "other": "(1+2j)",
        }  # fmt: skip
        assert len(first["time"]) == len(second["time"]) == len("2026-01-01T00:00:00.000")


def test_what_is_below_the_level_is_not_written(stream: Stream) -> None:
    with lines_to(stream) as logger:
        logging.getLogger().setLevel(logging.WARNING)
        tell(logger, "quiet", {})
        assert not stream.lines


def test_an_exception_is_in_its_line(stream: Stream) -> None:
    with lines_to(stream) as logger:
        logger.error("failed", extra={"n": 1}, exc_info=ValueError("bad"))
        (line,) = stream.lines
        assert line["exception"].splitlines()[-1] == "ValueError: bad"
        assert line["level"] == "ERROR"


@pytest.mark.asyncio
async def test_the_lines_of_a_loop_turn_are_written_together(stream: Stream) -> None:
    with lines_to(stream) as logger:
        for number in range(3):
            tell(logger, "one of many", {"n": number})
        logger.info("another", extra={"n": 3})
        assert not stream.getvalue()
        await asyncio.sleep(0)
        assert stream.writes == 1
        assert [line["n"] for line in stream.lines] == [0, 1, 2, 3]


@pytest.mark.asyncio
async def test_a_warning_is_written_at_once_and_in_order(stream: Stream) -> None:
    with lines_to(stream) as logger:
        tell(logger, "first", {})
        logger.warning("second")
        assert [line["event"] for line in stream.lines] == ["first", "second"]
        await asyncio.sleep(0)
        assert stream.writes == 1


def test_lines_outlive_the_loop_that_was_to_write_them(stream: Stream) -> None:
    with lines_to(stream) as logger:
        for number in range(2):
            loop = asyncio.new_event_loop()
            loop.call_soon(loop.stop)  # at the end of this turn
            loop.call_soon(tell, logger, "said", {"n": number})
            loop.run_forever()
            loop.close()
        tell(logger, "said", {"n": 2})
        assert [line["n"] for line in stream.lines] == [0, 1, 2]


@pytest.mark.asyncio
async def test_lines_that_wait_are_bounded(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    with lines_to(stream) as logger:
        monkeypatch.setattr(json_logging, "MAX_HELD", 10)
        for number in range(25):
            tell(logger, "many", {"n": number})
        assert len(stream.lines) == 20
        await asyncio.sleep(0)
        assert [line["n"] for line in stream.lines] == list(range(25))


def test_a_stream_that_is_gone_costs_nothing_but_the_lines(stream: Stream) -> None:
    with lines_to(stream) as logger:
        stream.close()
        tell(logger, "nobody reads", {})
        logger.error("nobody reads")


def test_without_the_handler_of_a_service_it_is_an_ordinary_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tell(logging.getLogger("tests.lines"), "seen", {"client_id": "c"})
    (record,) = caplog.records
    assert (record.message, vars(record)["client_id"]) == ("seen", "c")
