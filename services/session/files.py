"""Files of a session shard: what waits for which session, and how far each log is accounted for. SQLite, WAL.

They follow from the logs and from the bucket `sessions`, so they may be deleted. One transaction for each checkpoint
keeps positions, logs and losses in step: after a crash the logs are read on from there. Not synchronised to the disk at
each checkpoint: a machine that crashes loses the last ones, whole, and reads a little more.

`Files` blocks; call it from a thread, one call at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from services.session.domain.changes import REMOVED, Checkpoint, LogRow, SessionRow
from services.session.domain.losses import Loss
from services.session.domain.sessions import Carried

logger = logging.getLogger(__name__)

VERSION = 1
NAME = "sessions.sqlite"
SLICE = 2_000
"""Rows written by one call to SQLite; the interpreter's other threads have their turn between them."""

_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
BEGIN;
CREATE TABLE IF NOT EXISTS place (shard TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS logs (
  log INTEGER PRIMARY KEY, name TEXT NOT NULL, created TEXT NOT NULL, read_through INTEGER NOT NULL,
  top INTEGER NOT NULL, bits BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sessions (
  slot INTEGER PRIMARY KEY, instance TEXT NOT NULL, client TEXT NOT NULL, ended_ms INTEGER NOT NULL, carried BLOB
);
CREATE TABLE IF NOT EXISTS positions (
  slot INTEGER NOT NULL, position INTEGER NOT NULL, time_s INTEGER NOT NULL, PRIMARY KEY (slot, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS losses (
  number INTEGER PRIMARY KEY, event TEXT NOT NULL, instance TEXT NOT NULL, client TEXT NOT NULL, reason TEXT NOT NULL,
  log TEXT NOT NULL, topic TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, messages INTEGER NOT NULL
);
PRAGMA user_version = {VERSION};
COMMIT;
"""

T = TypeVar("T")


class Files:
    """The database of one shard in a directory, made when it does not exist.

    Args:
        directory: of the files.
        shard: names the shard and the number of shards; files of another one are deleted.

    Raises:
        OSError: the directory can't be used.
        sqlite3.Error: nor can the database, though it was made anew.
    """

    def __init__(self, directory: Path, shard: str) -> None:
        self._lock = threading.Lock()  # a write goes on when whoever waited for it was cancelled
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / NAME
        try:
            self._database = self._open(shard)
        except (sqlite3.DatabaseError, ValueError) as error:
            logger.warning("files of sessions are made anew", extra={"path": str(self._path), "error": str(error)})
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(NAME + suffix).unlink(missing_ok=True)
            self._database = self._open(shard)

    def _open(self, shard: str) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database, shard)
        except (sqlite3.DatabaseError, ValueError):
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def logs(self) -> list[LogRow]:
        """Return the logs, in the order of their indexes."""
        rows = self._database.execute("SELECT log, name, created, read_through, top, bits FROM logs ORDER BY log")
        return [
            LogRow(index, name, created, read_through, top, zlib.decompress(bits))
            for index, name, created, read_through, top, bits in rows
        ]

    def sessions(self) -> Iterator[list[SessionRow]]:
        """Yield the sessions in slices."""
        rows = self._database.execute("SELECT slot, instance, client, ended_ms, carried FROM sessions")
        while batch := rows.fetchmany(SLICE):
            yield [
                SessionRow(slot, instance_id, client_id, ended_ms, _carried(carried))
                for slot, instance_id, client_id, ended_ms, carried in batch
            ]

    def positions(self) -> Iterator[list[tuple[int, int, int]]]:
        """Yield (slot, position, time) in slices, those of a session in the order of delivery."""
        rows = self._database.execute("SELECT slot, position, time_s FROM positions ORDER BY slot, time_s, position")
        while batch := rows.fetchmany(SLICE):
            yield batch

    def losses(self) -> list[Loss]:
        """Return the losses that were not announced, by number."""
        return [Loss(*row) for row in self._database.execute("SELECT * FROM losses ORDER BY number")]

    def write(self, checkpoint: Checkpoint) -> None:
        """Store what changed, all or nothing.

        Raises:
            sqlite3.Error: nothing was stored.
        """
        with self._lock:
            self._write(checkpoint)

    def _write(self, checkpoint: Checkpoint) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            removed = set(checkpoint.removed_slots)
            self._run("DELETE FROM sessions WHERE slot = ?", ((slot,) for slot in removed))
            self._run("DELETE FROM positions WHERE slot = ?", ((slot,) for slot in removed))
            self._run(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?)",
                ((s.slot, s.instance_id, s.client_id, s.ended_ms, _blob(s.carried)) for s in checkpoint.sessions),
            )
            positions = checkpoint.positions.items()
            self._run(
                "DELETE FROM positions WHERE slot = ? AND position = ?",
                (key for key, time_s in positions if time_s == REMOVED and key[0] not in removed),
            )
            self._run(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                ((*key, time_s) for key, time_s in positions if time_s != REMOVED and key[0] not in removed),
            )
            self._run("DELETE FROM logs WHERE log = ?", ((index,) for index in checkpoint.removed_logs))
            self._run(
                "INSERT OR REPLACE INTO logs VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (log.index, log.name, log.created, log.read_through, log.top, zlib.compress(log.bits, 1))
                    for log in checkpoint.logs
                ),
            )
            self._run("INSERT OR REPLACE INTO losses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", checkpoint.losses.stored)
            self._run("DELETE FROM losses WHERE number = ?", ((number,) for number in checkpoint.losses.forgotten))
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise

    def _run(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        for batch in _slices(rows):
            self._database.executemany(statement, batch)


def _prepare(database: sqlite3.Connection, shard: str) -> None:
    """Make the tables.

    Raises:
        ValueError: those that are there are of another version or shard.
    """
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, VERSION):
        raise ValueError(f"they have version {version}")
    database.executescript(_SCHEMA)
    row = database.execute("SELECT shard FROM place").fetchone()
    if row is None:
        database.execute("INSERT INTO place VALUES (?)", (shard,))
    elif row[0] != shard:
        raise ValueError(f"they are of shard {row[0]}")


def _slices(rows: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, SLICE)):
        yield batch


def _blob(carried: Carried | None) -> bytes | None:
    """Return packet identifiers as text: a delivery a line, those received, then retained messages if there are any."""
    if carried is None:
        return None
    lines = [
        f"{delivery_id} {packet_identifier} {stage}" for delivery_id, packet_identifier, stage in carried.deliveries
    ]
    lines.append(" ".join(map(str, carried.received)))
    if carried.retained:
        lines.append(json.dumps(carried.retained))
    return "\n".join(lines).encode()


def _carried(blob: bytes | None) -> Carried | None:
    if blob is None:
        return None
    *lines, last = blob.decode().split("\n")
    retained: list[tuple[str, int]] = []
    if last.startswith("["):
        retained = [(topic_filter, qos) for topic_filter, qos in json.loads(last)]
        last = lines.pop()
    deliveries = []
    for line in lines:
        delivery_id, packet_identifier, stage = map(int, line.split())
        deliveries.append((delivery_id, packet_identifier, stage))
    return Carried(deliveries, [int(each) for each in last.split()], retained)
