"""Parts of the simulation of a shard: messages, files, and clients with their edges."""

from __future__ import annotations

from services.session.domain.changes import REMOVED, Checkpoint, LogRow, SessionRow
from services.session.domain.outbox import Outbox
from services.session.domain.rules import Rules
from services.session.domain.sessions import Channel


class Message:
    """A message in a log."""

    def __init__(self, topic: str, qos: int, time_ms: int, *, is_kept: bool = False) -> None:
        self.topic = self.shown_topic = topic
        self.qos = qos
        self.time_ms = time_ms
        self.p2p = ("kept" if is_kept else "online") if self.receiver else ""  # what the router decided

    @property
    def receiver(self) -> str:
        """Client that a P2P message is for, kept or not; empty: it is none."""
        return self.topic.split("/")[2] if "/p2p/" in self.topic else ""


class Database:
    """What checkpoints wrote."""

    def __init__(self) -> None:
        self.logs: dict[int, LogRow] = {}
        self.sessions: dict[int, SessionRow] = {}
        self.positions: dict[tuple[int, int], int] = {}

    def write(self, checkpoint: Checkpoint) -> None:
        for slot in checkpoint.removed_slots:
            self.sessions.pop(slot, None)
            self.positions = {key: time_s for key, time_s in self.positions.items() if key[0] != slot}
        for row in checkpoint.sessions:
            self.sessions[row.slot] = row
        for key, time_s in checkpoint.positions.items():
            if key[0] in checkpoint.removed_slots:
                continue
            if time_s == REMOVED:
                self.positions.pop(key, None)
            else:
                self.positions[key] = time_s
        for log in checkpoint.logs:
            self.logs[log.index] = log


class Client:
    """A device, with the part of its edge that belongs to it."""

    def __init__(self, client_id: str, rules: Rules, *, clean_session: bool) -> None:
        self.client_id = client_id
        self.rules = rules
        self.clean_session = clean_session
        self.channel_id = ""
        self.outbox: Outbox[Channel] | None = None
        self.unacknowledged: dict[int, int] = {}  # delivery id -> packet identifier
        self.kept_acknowledgements: list[int] = []  # not confirmed by a checkpoint
        self.orphans: list[int] = []  # such ones of connections that ended
        self.packet_identifier = 0
        self.changes = 0
        self.subscribed: dict[str, int] = {}  # QoS by topic filter
        self.received: list[tuple[str, int]] = []  # log and sequence
        self.completed: set[tuple[str, int]] = set()
        self.repeats: list[tuple[str, int]] = []  # what came again after it was completed
        self.seen: dict[int, tuple[str, int]] = {}  # log and sequence of all that was given to it
        self.given: dict[int, tuple[str, int]] = {}  # log and sequence of what this connection gave to the client
        self.expected: set[tuple[str, int]] = set()
