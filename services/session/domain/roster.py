"""Who has a session on this shard: sessions by instance, client and slot, and the connections they have. Pure."""

from __future__ import annotations

from collections.abc import Callable

from services.session.domain.bounds import Bounds
from services.session.domain.outbox import Outbox
from services.session.domain.pump import Pump
from services.session.domain.rules import DEFAULT, Rules
from services.session.domain.sessions import Channel, Instance, Session


class Roster:
    """Sessions and instances. The inner part of `Shard`.

    Args:
        pump: has the queues and connections.
        count: of shards; each keeps its part of what an instance may have.
        expire_session: deletes a session that outlived its last connection for too long.
    """

    def __init__(self, pump: Pump, *, count: int, expire_session: Callable[[Session], None]) -> None:
        self._pump = pump
        self._count = count
        self.next_slot = 1
        """Above all slots that were given."""
        self._rules: dict[Rules, Rules] = {}
        self.instances: dict[str, Instance] = {}
        self.sessions: dict[int, Session] = {}
        """By slot, in the order of their making."""
        self.bounds = Bounds(pump, self.sessions, expire_session)

    def find(self, instance_id: str, client_id: str) -> Session | None:
        """Return the session of a client."""
        instance = self.instances.get(instance_id)
        return instance.sessions.get(client_id) if instance is not None else None

    def instance(self, instance_id: str, rules: Rules | None) -> Instance:
        """Return an instance, made when it is new; `rules`: those that an opening brought."""
        instance = self.instances.get(instance_id)
        if instance is None:
            instance = self.instances[instance_id] = Instance(instance_id, self.intern(rules or DEFAULT))
        elif rules is not None and rules != instance.rules:
            instance.rules = self.intern(rules)
        instance.limit = max(1, instance.rules.max_offline_messages // self._count)
        return instance

    def make(self, instance: Instance, client_id: str, slot: int = 0) -> Session:
        """Make a session; `slot`: that of the last checkpoint, 0: a new one."""
        session = Session(slot or self.next_slot, instance, client_id, instance.rules)
        self.next_slot = max(self.next_slot, session.slot + 1)
        self.sessions[session.slot] = session
        instance.sessions[client_id] = session
        if not slot:
            self._pump.changes.touch_session(session)
        return session

    def drop_if_empty(self, session: Session) -> None:
        """Forget a session that there is no reason to keep."""
        if session.is_empty:
            del self.sessions[session.slot]
            del session.instance.sessions[session.client_id]
            self._pump.changes.remove_session(session)

    def connect(
        self, session: Session, channel_id: str, outbox: Outbox[Channel], *, is_held: bool, session_present: bool
    ) -> None:
        """Give a session its connection."""
        channel = Channel(channel_id, session, outbox)
        channel.is_held = is_held
        channel.session_present = session_present
        if session.ended_ms:
            session.ended_ms = 0
            self._pump.changes.touch_session(session)
        self._pump.connect(channel)

    def disconnect(self, channel: Channel) -> None:
        """Take the connection of a session away."""
        session = channel.session
        self._pump.disconnect(channel)
        if session.queue:
            self.bounds.note_waiting(session, session.oldest_s)

    def intern(self, rules: Rules) -> Rules:
        """Return the one object that stands for equal rules."""
        return self._rules.setdefault(rules, rules)
