"""Logs as one JSON object per line on standard error.

Lines of one turn of the event loop are written together, at its end; a warning or worse at once, with those before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from typing_extensions import override

from services.common.log_lines import Lines

MAX_HELD = 1_000
"""Lines that wait for the end of a loop turn; then all are written."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; `extra` fields become keys."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.line = Lines(service).line

    @override
    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return self.line(record.created, record.levelname, record.getMessage(), fields)


class LineHandler(logging.Handler):
    """Writes lines to a stream."""

    def __init__(self, stream: TextIO, formatter: JsonFormatter) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._line = formatter.line
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that writes what waits
        self.setFormatter(formatter)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(self.format(record))
            if record.levelno >= logging.WARNING:
                self._write()
        except Exception:  # noqa: BLE001 - as in `logging.StreamHandler`
            self.handleError(record)

    def tell(self, event: str, fields: Mapping[str, object]) -> None:
        """Write a line at level INFO, without the cost of a record."""
        with self.lock or contextlib.nullcontext():
            self._put(self._line(time.time(), "INFO", event, fields))

    @override
    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._write()

    def _put(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) > 1 and self._loop is not None and self._loop.is_running():  # it will write them
            if len(self._lines) >= MAX_HELD:
                self._write()
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # none runs in this thread
            self._write()
            return
        self._loop = loop
        loop.call_soon(self.flush)

    def _write(self) -> None:
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        with contextlib.suppress(OSError, ValueError):  # the stream is closed: nobody is left to be told
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def configure(service: str, level: str) -> None:
    """Send every record of this process at `level` and above to standard error."""
    handler = LineHandler(sys.stderr, JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What no line shows, and what finding it out costs; see "Optimization" in the documentation of `logging`.
    logging._srcfile = ""  # noqa: SLF001 - the documented switch
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def tell(logger: logging.Logger, event: str, fields: Mapping[str, object]) -> None:
    """Do as `logger.info(event, extra=fields)`, for lines of which thousands are written in a second."""
    if not logger.isEnabledFor(logging.INFO):
        return
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(handler := handlers[0], LineHandler):
        handler.tell(event, fields)
    else:  # not that of a service: in tests
        logger.info(event, extra=dict(fields))
