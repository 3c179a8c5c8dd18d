"""Messages that clients will never get, and why; kept until they are announced. Pure.

A loss is stored by the checkpoint that stores what is lost, announced after that, and forgotten by a checkpoint after
its announcement is stored. A shard that is killed in between announces again what it had not forgotten, under the same
message id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from services.session.domain.positions import sequence_of

EXPIRED = "expired"
"""Kept for longer than the retention, or deleted by the log's."""
OVER_LIMIT = "over_limit"
"""The oldest of an instance with too many."""
NOT_PERMITTED = "not_permitted"
"""The client may not have it any more."""
SESSION_EXPIRED = "session_expired"
"""The session outlived its last connection for too long."""
SESSION_DELETED = "session_deleted"
"""An operator deleted the session."""
LOG_DELETED = "log_deleted"
"""The stream that had it was deleted."""
NOT_STORED = "not_stored"
"""No log could store it: it is too large, or its topic was deleted meanwhile."""

MAX_WAITING = 100_000
"""Losses that wait to be announced one by one."""
BATCH = 100
"""Losses in one event."""


class Dropped(NamedTuple):
    """A message that a client will never get."""

    instance_id: str
    client_id: str
    delivery_id: int
    reason: str
    topic: str = ""
    """Empty: its log knows."""


class Loss(NamedTuple):
    """Losses of one client in one log, for one reason, as they are stored."""

    number: int
    """Rises with each."""
    event_id: str
    """Of its event; empty: it has none yet, and more may be added."""
    instance_id: str
    client_id: str
    reason: str
    log: str
    topic: str
    """Empty: to be looked up."""
    sequence: int
    """Of the first."""
    last: int
    """Sequence of the last."""
    messages: int
    """How many they are."""

    @property
    def place(self) -> tuple[str, int]:
        """Log and sequence of the first."""
        return self.log, self.sequence

    def entry(self, topic: str) -> dict[str, str | int]:
        """Return what the announcement says."""
        entry: dict[str, str | int] = {
            "clientId": self.client_id,
            "topic": self.topic or topic,
            "log": self.log,
            "sequence": self.sequence,
        }
        if self.messages > 1:
            entry |= {"count": self.messages, "lastSequence": self.last}
        return entry


class Event(NamedTuple):
    """Losses of one instance, for one reason, that are announced together."""

    event_id: str
    losses: list[Loss]


class LossChanges(NamedTuple):
    """What a checkpoint has to store of losses."""

    stored: Sequence[Loss] = ()
    """New, or with another content than before."""
    forgotten: Sequence[int] = ()
    """Numbers of those that were announced."""


class Losses:
    """Losses from being noticed to being announced. Owned by one event loop.

    When very many wait, further ones of a client, log and reason become one, so that what waits is bounded by the
    sessions and nothing goes unannounced.

    Args:
        log_name: returns the stream of a delivery id; empty: it is unknown.
        incarnation: of this process, for the ids of events.
    """

    def __init__(self, log_name: Callable[[int], str], incarnation: str) -> None:
        self._log_name = log_name
        self._incarnation = incarnation
        self._next_number = 1
        self._fresh: list[Loss] = []  # since the last checkpoint
        self._gathered: dict[tuple[str, str, str, str], Loss] = {}  # by instance, client, log and reason
        self._changed: set[tuple[str, str, str, str]] = set()  # of those gathered
        self._forgotten: list[int] = []
        self._storing: list[Event] = []
        self.count = 0
        """Losses that are in events."""
        self.ready: deque[Event] = deque()
        """Events that may be announced."""

    @property
    def has_changes(self) -> bool:
        """Whether `take` has something for a checkpoint."""
        return bool(self._fresh or self._changed or self._forgotten or self._may_move)

    @property
    def is_empty(self) -> bool:
        """Whether everything was announced."""
        return not (self.count or self._fresh or self._gathered)

    @property
    def _may_move(self) -> bool:
        return bool(self._gathered) and not self.count

    def restore(self, losses: Iterable[Loss]) -> None:
        """Enter what was stored and not forgotten, by number."""
        by_event: dict[str, list[Loss]] = {}
        for loss in losses:
            self._next_number = max(self._next_number, loss.number + 1)
            if loss.event_id:
                by_event.setdefault(loss.event_id, []).append(loss)
            else:
                self._gathered[loss.instance_id, loss.client_id, loss.log, loss.reason] = loss
        self.ready.extend(Event(*each) for each in by_event.items())
        self.count += sum(len(each) for each in by_event.values())

    def add(self, dropped: Iterable[Dropped]) -> None:
        """Take losses; at once, since a log that is made anew gets another index."""
        for instance_id, client_id, delivery_id, reason, topic in dropped:
            log, sequence = self._log_name(delivery_id), sequence_of(delivery_id)
            number = self._next_number
            self._next_number += 1
            loss = Loss(number, "", instance_id, client_id, reason, log, topic, sequence, sequence, 1)
            if self.count + len(self._fresh) < MAX_WAITING and not self._gathered:
                self._fresh.append(loss)
                continue
            key = (instance_id, client_id, log, reason)
            known = self._gathered.get(key)
            self._gathered[key] = loss if known is None else known._replace(last=sequence, messages=known.messages + 1)
            self._changed.add(key)

    def take(self) -> LossChanges:
        """Return what is to be stored, once; `note_stored` follows before the next call."""
        losses, self._fresh = self._fresh, []
        if self._may_move and not losses:
            losses = list(self._gathered.values())
            self._gathered.clear()
            self._changed.clear()
        losses.sort(key=lambda loss: (loss.instance_id, loss.reason, loss.number))
        stored = [self._gathered[key] for key in self._changed]
        self._changed.clear()
        for _, group in groupby(losses, lambda loss: (loss.instance_id, loss.reason)):
            together = list(group)
            for start in range(0, len(together), BATCH):
                first = together[start]
                event_id = f"{self._incarnation}-{first.number}"
                event = Event(event_id, [each._replace(event_id=event_id) for each in together[start : start + BATCH]])
                self._storing.append(event)
                stored += event.losses
        self.count += len(losses)
        forgotten, self._forgotten = self._forgotten, []
        return LossChanges(stored, forgotten)

    def note_stored(self) -> None:
        """Note that what was taken is stored: it may be announced."""
        self.ready.extend(self._storing)
        self._storing.clear()

    def forget(self, event: Event) -> None:
        """Note that an event was announced."""
        self.count -= len(event.losses)
        self._forgotten += [each.number for each in event.losses]
