"""From messages to sessions: live ones by the targets that routers name, read ones by our own matching. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.session.domain.interests import Interests, qos_of, since_ms_of
from services.session.domain.logs import Logs
from services.session.domain.outbox import Outbox
from services.session.domain.positions import P2P, QOS2, pack
from services.session.domain.pump import Pump
from services.session.domain.roster import Roster
from services.session.domain.sessions import Channel, Log, Session

SKEW_MS = 1_000
"""How much older than a subscription a message may be that is read from a log: clocks of NATS and ours differ."""

Locate = Callable[[str, str], "tuple[str, Outbox[Channel], bool] | None"]
"""From instance and client id to channel id, outbox of the edge, and whether the connection is held; None: offline."""
IsOurs = Callable[[str, str], bool]
"""Whether a client of an instance belongs to this shard."""


class Fanout:
    """Offers messages to the sessions that are to get them.

    Args:
        roster: the sessions.
        interests: their topic filters.
        pump: takes the messages.
        locate: finds the connection of a client, for kept P2P messages to clients without a session.
        is_ours: says which clients this shard serves.
    """

    def __init__(
        self, roster: Roster, interests: Interests[Session], pump: Pump, *, locate: Locate, is_ours: IsOurs
    ) -> None:
        self._roster = roster
        self._interests = interests
        self._pump = pump
        self._locate = locate
        self._is_ours = is_ours
        self.logs = Logs(pump)
        self.skew_ms = SKEW_MS
        """See `SKEW_MS`."""

    def deliver(
        self, log: Log, sequence: int, topic: str, payload: bytes, qos: int, target_ids: Iterable[int], now_ms: int
    ) -> None:
        """Take a live message that matched targets."""
        if self.logs.meet(log, sequence):
            receivers = self._receivers(target_ids, qos, before_ms=0)
            self._offer(log, sequence, topic, payload, receivers, now_ms // 1000, now_ms)

    def deliver_p2p(self, log: Log, sequence: int, topic: str, payload: bytes, now_ms: int) -> None:
        """Take a live kept P2P message, of QoS 1."""
        if self.logs.meet(log, sequence):
            self._offer_p2p(log, sequence, topic, payload, now_ms // 1000, now_ms)

    def read(
        self,
        log: Log,
        sequence: int,
        topic: str,
        payload: bytes,
        qos: int,
        time_ms: int,
        now_ms: int,
        *,
        clean_session: bool,
    ) -> None:
        """Take a message that was read from a log, in order, whether or not it is for this shard.

        Args:
            log: that has it.
            sequence: in the log.
            topic: it was published to.
            payload: of it.
            qos: of the publication.
            time_ms: when the log got it.
            now_ms: the time.
            clean_session: flag of the publisher.
        """
        if qos and not log.met.has(sequence):
            levels = topic.split("/", 2)
            # Plain MQTT has no P2P: the `standard` profile, which keeps QoS 2.
            instance = self._roster.instances.get(log.instance_id)
            is_plain = instance is not None and instance.rules.keeps_qos2
            if len(levels) == 3 and levels[1] == "p2p" and not is_plain:  # noqa: PLR2004 - parent, p2p, client id
                if qos == 1 and not clean_session and self._is_ours(log.instance_id, levels[2]):
                    self._offer_p2p(log, sequence, topic, payload, time_ms // 1000, now_ms)
            else:
                targets = self._interests.match(log.instance_id, topic)
                if targets:
                    receivers = self._receivers(targets, qos, before_ms=time_ms + self.skew_ms)
                    self._offer(log, sequence, topic, payload, receivers, time_ms // 1000, now_ms)
        self.logs.note_read(log, sequence)

    def _receivers(self, target_ids: Iterable[int], qos: int, *, before_ms: int) -> dict[Session, int]:
        """Return the subscribers of targets and their QoS; those since `before_ms` or later not, 0: all."""
        receivers: dict[Session, int] = {}
        by_target = self._interests.by_target
        for target_id in target_ids:
            interest = by_target.get(target_id)
            if interest is None:
                continue  # removed meanwhile
            for session, subscription in interest.subscribers.items():
                if before_ms and since_ms_of(subscription) > before_ms:
                    continue
                granted = min(qos, qos_of(subscription))
                if granted > receivers.get(session, 0):
                    receivers[session] = granted
        return receivers

    def _offer(
        self,
        log: Log,
        sequence: int,
        topic: str,
        payload: bytes,
        receivers: dict[Session, int],
        time_s: int,
        now_ms: int,
    ) -> None:
        once = pack(log.index, sequence, 0)
        offer = self._pump.offer
        for session, granted in receivers.items():
            if session.instance.heap is not None and not session.oldest_s:
                self._roster.bounds.note_waiting(session, time_s)
            offer(session, once | QOS2 if granted > 1 else once, time_s, topic, payload, now_ms)
        instance = self._roster.instances.get(log.instance_id)
        if instance is not None:
            self._roster.bounds.limit(instance)

    def _offer_p2p(self, log: Log, sequence: int, topic: str, payload: bytes, time_s: int, now_ms: int) -> None:
        instance_id, client_id = log.instance_id, topic.split("/", 2)[2]
        roster = self._roster
        session = roster.find(instance_id, client_id)
        if session is None:
            session = roster.make(roster.instance(instance_id, None), client_id)
        if session.channel is None and (found := self._locate(instance_id, client_id)) is not None:
            channel_id, outbox, is_held = found
            roster.connect(session, channel_id, outbox, is_held=is_held, session_present=False)
        if session.instance.heap is not None and not session.oldest_s:
            roster.bounds.note_waiting(session, time_s)
        self._pump.offer(session, pack(log.index, sequence, P2P), time_s, topic, payload, now_ms)
        roster.bounds.limit(session.instance)
