"""What changed since the last checkpoint, so that one transaction can store it. Pure."""

from __future__ import annotations

import dataclasses

from services.session.domain.losses import LossChanges
from services.session.domain.sessions import Carried, Log, Session

REMOVED = -1
"""In `Checkpoint.positions`: the position is not kept any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is stored."""

    slot: int
    instance_id: str
    client_id: str
    ended_ms: int
    carried: Carried | None


@dataclasses.dataclass(frozen=True, slots=True)
class LogRow:
    """A log as it is stored."""

    index: int
    name: str
    created: str
    read_through: int
    top: int
    bits: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that changed."""

    removed_slots: list[int]
    sessions: list[SessionRow]
    logs: list[LogRow]
    positions: dict[tuple[int, int], int]
    """(slot, position) -> when it came, in seconds; or `REMOVED`."""
    removed_logs: list[int] = dataclasses.field(default_factory=list)
    """Indexes that logs had before they were made anew."""
    losses: LossChanges = dataclasses.field(default_factory=LossChanges)
    """To be announced, and announced."""


class Changes:
    """Gathers changes. What comes and goes between two checkpoints is never stored."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._removed_slots: list[int] = []
        self._logs: dict[int, Log] = {}
        self._removed_logs: list[int] = []
        self._positions: dict[tuple[int, int], int] = {}

    @property
    def size(self) -> int:
        """About how many rows a checkpoint would write."""
        return len(self._positions) + len(self._sessions) + len(self._removed_slots)

    @property
    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not (self._positions or self._sessions or self._removed_slots or self._logs)

    def add_position(self, slot: int, position: int, time_s: int) -> None:
        """Note a position that a session has from now on."""
        self._positions[slot, position] = time_s

    def remove_position(self, slot: int, position: int) -> None:
        """Note a position that a session does not have any more."""
        if self._positions.pop((slot, position), REMOVED) == REMOVED:
            self._positions[slot, position] = REMOVED

    def touch_session(self, session: Session) -> None:
        """Note that the row of a session changed."""
        self._sessions[session.slot] = session

    def remove_session(self, session: Session) -> None:
        """Note that a session is gone, with its positions."""
        self._sessions.pop(session.slot, None)
        self._removed_slots.append(session.slot)

    def touch_log(self, log: Log) -> None:
        """Note that messages of a log were met."""
        self._logs[log.index] = log

    def remove_log(self, log: Log) -> None:
        """Note that nothing has the index of a log any more; it gets another one."""
        self._logs.pop(log.index, None)
        self._removed_logs.append(log.index)

    def take(self) -> Checkpoint:
        """Return what changed, once; it shares nothing that changes on."""
        checkpoint = Checkpoint(
            self._removed_slots,
            [
                SessionRow(each.slot, each.instance.instance_id, each.client_id, each.ended_ms, each.carried)
                for each in self._sessions.values()
            ],
            [
                LogRow(log.index, log.name, log.created, log.met.read_through, log.met.top, log.met.bits)
                for log in self._logs.values()
            ],
            self._positions,
            self._removed_logs,
        )
        self._sessions, self._removed_slots, self._logs, self._positions = {}, [], {}, {}
        self._removed_logs = []
        return checkpoint
