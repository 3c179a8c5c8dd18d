"""The log file of one process: kept in bounds, and read along for what the user should see."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROTATE_AT_START_BYTES = 4 << 20
"""A log longer than this becomes NAME.log.1 when its process starts."""
ROTATE_RUNNING_BYTES = 64 << 20
"""A log that grows to this while its process runs is copied to NAME.log.1 and emptied."""

_READ_BYTES = 256 << 10
_SHOWN_FIELDS = 300


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a log.

    Attributes:
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL; empty for a line of another form, such as a traceback.
        text: what it says, on one line.
    """

    level: str
    text: str


class ProcessLog:
    """The file that a process writes its standard output and error to."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}.log"
        self._old = directory / f"{name}.log.1"
        self._offset = 0
        self._partial = b""

    def open(self) -> int:
        """Return a descriptor for a new process; what was written before is not read any more."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > ROTATE_AT_START_BYTES:
                self.path.replace(self._old)
        # Appending, so that emptying the file under a running process leaves no hole.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._offset = os.fstat(descriptor).st_size
        self._partial = b""
        return descriptor

    def read(self) -> list[Entry]:
        """Return the lines that were written since the last call, at most some 256 KiB of them.

        Those about clients that came and went, which nobody is shown, are left out: a storm brings two for each.
        """
        try:
            if self.path.stat().st_size == self._offset:
                return []
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new = file.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(new)
        if self._offset > ROTATE_RUNNING_BYTES:
            with contextlib.suppress(OSError):  # a full disk: try again next time
                shutil.copyfile(self.path, self._old)
                os.truncate(self.path, 0)
                self._offset = 0
        *lines, self._partial = _QUIET.sub(b"", self._partial + new).split(b"\n")
        self._partial = self._partial[-_READ_BYTES:]
        return [parse(line.decode(errors="replace")) for line in lines if line.strip()]


_NATS_LEVELS = {"[WRN]": "WARNING", "[ERR]": "ERROR", "[FTL]": "CRITICAL", "[INF]": "INFO", "[DBG]": "DEBUG"}


_QUIET = re.compile(rb'^\{"time": "[^"]*", "level": "INFO", "service": "edge", "event": "client [^\n]*\n', re.MULTILINE)


def parse(line: str) -> Entry:
    """Return what a line of a service (JSON) or of NATS (`[pid] date time [INF] text`) says."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError, LookupError):
            fields = json.loads(line)
            text = str(fields["event"])
            exception = _last_words(str(fields.get("exception", "")))
            extra = ", ".join(f"{key}={value}" for key, value in fields.items() if key not in _ENVELOPE)
            shown = ": ".join(part for part in (text, exception) if part) + (f" ({extra})" if extra else "")
            return Entry(level=str(fields["level"]), text=_one_line(shown))
    for mark, level in _NATS_LEVELS.items():
        if mark in line[:64]:
            return Entry(level=level, text=_one_line(line.partition(mark)[2].strip()))
    return Entry(level="", text=_one_line(line))


_ENVELOPE = frozenset({"time", "level", "service", "event", "exception"})


def _last_words(traceback: str) -> str:
    """Return the line that says what was raised; of an exception group, what its last member says."""
    said = (line.strip(" |+-") for line in reversed(traceback.splitlines()))
    return next(filter(None, said), "")


def _one_line(text: str) -> str:
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= _SHOWN_FIELDS else f"{text[:_SHOWN_FIELDS]} ..."
