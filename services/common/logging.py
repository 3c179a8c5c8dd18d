"""Logs as one JSON object per line on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time

from typing_extensions import override

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; `extra` fields become keys."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service
        self._encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
        self._second = 0
        self._text = ""  # of that second

    @override
    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second))
        line: dict[str, object] = {
            "time": f"{self._text}.{int(record.msecs):03d}",
            "level": record.levelname,
            "service": self._service,
            "event": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._encode(line)


def configure(service: str, level: str) -> None:
    """Send every record of this process at `level` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What no line shows, and what finding it out costs; see "Optimization" in the documentation of `logging`.
    logging._srcfile = ""  # noqa: SLF001 - the documented switch
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
