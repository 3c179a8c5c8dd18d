"""The logs that messages come from, and what of them is accounted for. Pure."""

from __future__ import annotations

from zlib import crc32

from services.common.subjects import LOG_STREAM, stream_names
from services.session.domain.losses import LOG_DELETED
from services.session.domain.positions import FLAG_BITS, MAX_LOGS, WINDOW, Met, log_index_of
from services.session.domain.pump import Pump
from services.session.domain.sessions import Log, Session


class Logs:
    """Logs by name and by index.

    An index follows from the name, so that delivery ids mean the same to the process after this one, with files or not;
    but for the second of two names that agree in it, which is a matter of chance: 1 in 500,000 for each pair.

    Args:
        pump: is told which logs changed.
    """

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._by_name: dict[str, Log] = {}
        self._by_index: dict[int, Log] = {}
        self.doubted: set[Log] = set()
        """Logs that may be another stream by now, or are not known to be one: `services/session/catch_up.py` asks."""

    def restore(self, index: int, name: str, instance_id: str, created: str, met: Met) -> None:
        """Enter a log that was stored."""
        log = Log(index, name, instance_id, created)
        log.met = met
        self._by_name[name] = self._by_index[index] = log

    def get(self, name: str) -> Log | None:
        """Return a log that is known."""
        return self._by_name.get(name)

    def of(self, delivery_id: int) -> Log | None:
        """Return the log of a delivery id."""
        return self._by_index.get(log_index_of(delivery_id))

    def reading(self) -> list[Log]:
        """Return the logs whose live messages are left to reading."""
        return [log for log in self._by_name.values() if log.is_reading]

    def open(self, name: str, instance_id: str) -> Log:
        """Return a log, which may be new."""
        log = self._by_name.get(name)
        if log is None:
            log = Log(self._free_index(crc32(name.encode()) % MAX_LOGS), name, instance_id)
            self._by_name[name] = self._by_index[log.index] = log
            self._pump.changes.touch_log(log)
        return log

    def meet(self, log: Log, sequence: int) -> bool:
        """Account for a live message; says whether it is to be delivered now."""
        if log.is_reading:
            log.skipped = max(log.skipped, sequence)
            self.doubted.add(log)
            return False
        met = log.met
        is_new = met.add(sequence)
        if not is_new or not log.is_checked or sequence <= met.top - WINDOW:
            log.is_checked = True
            self.doubted.add(log)
        if not is_new:  # a repeat; should the log be another stream, one that has yet to be read
            log.skipped = max(log.skipped, sequence)
            return False
        self._pump.changes.touch_log(log)
        return True

    def begin_reading(self, log: Log) -> int:
        """Leave what comes live to reading; returns the sequence after which to read."""
        log.is_reading = True
        return log.met.resume_after

    def note_read(self, log: Log, through: int) -> None:
        """Note that a log was read through a sequence."""
        log.met.read_to(through)
        self._pump.changes.touch_log(log)

    def end_reading(self, log: Log) -> bool:
        """Go on with what comes live, unless some of it was left out and has yet to be read."""
        if log.skipped > log.met.read_through:
            return False
        log.is_reading = False
        if log.skipped:  # of the stream that was read?
            self.doubted.add(log)
        log.skipped = 0
        log.reports.clear()
        return True

    def identify(self, log: Log, created: str, last: int, sessions: dict[int, Session]) -> bool:
        """Note when the stream of a log was made, and its last sequence; says whether it is another one than before."""
        is_other = created != log.created if log.created else last < log.met.resume_after
        if is_other:
            self.begin_anew(log, created, sessions)
        elif not log.created:
            log.created = created
            self._pump.changes.touch_log(log)
        return is_other

    def begin_anew(self, log: Log, created: str, sessions: dict[int, Session]) -> None:
        """Note that a stream was deleted, and another one made under its name: drop what waits of the old one.

        The new one has another index: an edge or a fetch that still has a delivery of the old one must not take it for
        one of the new.
        """
        old_index = log.index
        self._pump.changes.remove_log(log)
        log.index = self._free_index(old_index)
        del self._by_index[old_index]
        self._by_index[log.index] = log
        log.created = created
        log.met = Met()
        log.reports.clear()
        self._pump.changes.touch_log(log)
        topic = stream_names(log.name)[1] if log.name.startswith(LOG_STREAM) else ""
        for session in sessions.values():
            queue = session.queue
            if not queue:
                continue
            # Nothing knows that index any more, so the announcement gets what the name says.
            gone = {id_ for position, _ in queue if log_index_of(id_ := position >> FLAG_BITS) == old_index}
            for position, _ in queue.take(gone) if gone else ():
                self._pump.forget(session, position)
                self._pump.note_dropped(session, position, LOG_DELETED, topic)

    def _free_index(self, index: int) -> int:
        """Return an index that no log has, from `index` on."""
        while index in self._by_index:
            index = (index + 1) % MAX_LOGS
        return index
