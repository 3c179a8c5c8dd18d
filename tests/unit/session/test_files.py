"""The files of a shard: what a checkpoint wrote is read again, and what can't be used is made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.session.domain.changes import REMOVED, Checkpoint, LogRow, SessionRow
from services.session.domain.sessions import Carried
from services.session.files import NAME, Files


def checkpoint(
    positions: dict[tuple[int, int], int], *, removed: list[int] | None = None, sessions: list[SessionRow] | None = None
) -> Checkpoint:
    log = LogRow(5, "MQ_i_a", "2026", 17, 40, bytes(range(256)) * 4)
    return Checkpoint(removed or [], sessions or [], [log], positions)


def test_a_checkpoint_is_read_again(tmp_path: Path) -> None:
    session = SessionRow(3, "i", "c", 9, Carried([(1, 2, 0), (3, 4, 1)], [7, 8], [("a/\n#", 1)]))
    plain = SessionRow(4, "i", "ü", 0, None)
    files = Files(tmp_path / "new", "0 of 1")
    files.write(checkpoint({(3, 30): 2, (3, 20): 2, (3, 40): 1, (4, 1): 5}, sessions=[session, plain]))
    files.write(checkpoint({(3, 20): REMOVED, (4, 1): REMOVED, (4, 2): 6}))
    files.close()
    files = Files(tmp_path / "new", "0 of 1")
    [log] = files.logs()
    assert log == checkpoint({}).logs[0]
    [[first, second]] = files.sessions()
    assert (first.slot, first.instance_id, first.client_id, first.ended_ms) == (3, "i", "c", 9)
    assert first.carried is not None
    assert (first.carried.deliveries, first.carried.received) == ([(1, 2, 0), (3, 4, 1)], [7, 8])
    assert first.carried.retained == [("a/\n#", 1)]
    assert second == plain
    assert list(files.positions()) == [[(3, 40, 1), (3, 30, 2), (4, 2, 6)]]
    files.write(checkpoint({(3, 50): 1}, removed=[3]))
    assert list(files.positions()) == [[(4, 2, 6)]]
    assert [[each.slot for each in rows] for rows in files.sessions()] == [[4]]
    files.write(Checkpoint([], [], [], {}, [log.index]))
    assert files.logs() == []
    files.close()


@pytest.mark.parametrize("content", [b"no database, but long enough to look at it" * 100, b""])
def test_files_that_are_none_are_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    files = Files(tmp_path, "0 of 1")
    assert files.logs() == []
    files.write(checkpoint({(1, 1): 1}))
    files.close()


def test_files_of_another_shard_are_not_used(tmp_path: Path) -> None:
    files = Files(tmp_path, "0 of 1")
    files.write(checkpoint({(1, 1): 1}))
    files.close()
    files = Files(tmp_path, "0 of 2")
    assert list(files.positions()) == []
    files.close()


def test_a_checkpoint_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    files = Files(tmp_path, "0 of 1")
    wrong = checkpoint({(1, 1): 1, (1, 1 << 70): 1})  # more than SQLite takes
    with pytest.raises(OverflowError):
        files.write(wrong)
    assert list(files.positions()) == []
    assert files.logs() == []
    files.write(checkpoint({(1, 1): 1}))
    assert list(files.positions()) == [[(1, 1, 1)]]
    files.close()
