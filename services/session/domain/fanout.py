"""From messages to sessions: live ones by the targets that routers name, read ones by our own matching. Pure.

A message for very many sessions is offered to them in portions, by `go_on`, so that the event loop has its turn
between. What comes meanwhile waits for its end: the order of a log stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from services.common.subjects import P2P_KEPT
from services.session.domain.interests import Interests, qos_of, since_ms_of
from services.session.domain.logs import Logs
from services.session.domain.losses import NOT_STORED, Dropped
from services.session.domain.outbox import Outbox
from services.session.domain.positions import FLAG_BITS, P2P, QOS2, pack
from services.session.domain.pump import Pump
from services.session.domain.receipts import Outcome, Report
from services.session.domain.roster import Roster
from services.session.domain.sessions import Channel, Log, Session

SKEW_MS = 1_000
"""How much older than a subscription a message may be that is read from a log: clocks of NATS and ours differ."""

PORTION = 1_000
"""Sessions that a message is offered to at once."""

Locate = Callable[[str, str], "tuple[str, Outbox[Channel], bool] | None"]
"""From instance and client id to channel id, outbox of the edge, and whether the connection is held; None: offline."""
IsOurs = Callable[[str, str], bool]
"""Whether a client of an instance belongs to this shard."""


class _Rest(NamedTuple):
    """A message that was offered to some of its sessions."""

    log: Log
    position: int
    """Without flags."""
    topic: str
    payload: bytes
    receivers: Iterator[tuple[Session, int]]
    """Those to come, with the QoS of each."""
    time_s: int
    now_ms: int


class Published(Protocol):
    """What a message says of itself."""

    @property
    def topic(self) -> str:
        """By which it is routed."""

    @property
    def shown_topic(self) -> str:
        """That clients see."""

    @property
    def qos(self) -> int:
        """Of the publication."""

    @property
    def p2p(self) -> str:
        """What its router decided about a P2P message, see `subjects.P2P_HEADER`; empty: it is none."""


def p2p_receiver(topic: str) -> str:
    """Return the client of a P2P topic, `<parent>/p2p/<client id>`; empty: it is none."""
    levels = topic.split("/", 2)
    return levels[2] if len(levels) == 3 and levels[1] == "p2p" else ""  # noqa: PLR2004 - parent, p2p, client id


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
        self.portion = PORTION
        """See `PORTION`."""
        self._rest: _Rest | None = None
        self._postponed: deque[Callable[[], None]] = deque()

    @property
    def is_midway(self) -> bool:
        """Whether a message was offered to some of its sessions: what is accounted for must not be stored now."""
        return self._rest is not None

    @property
    def is_busy(self) -> bool:
        """Whether `go_on` has something to do. Whoever has messages postpones them, or waits."""
        return self._rest is not None or bool(self._postponed)

    def postpone(self, call: Callable[[], None], *, is_next: bool = False) -> None:
        """Have messages taken when all before them have been; `is_next`: they follow the one that is under way."""
        if is_next:
            self._postponed.appendleft(call)
        else:
            self._postponed.append(call)

    def go_on(self) -> None:
        """Offer the message that is under way to a portion more of its sessions; else take what was postponed."""
        if self._rest is not None:
            self._offer_portion(self._rest)
        elif self._postponed:
            self._postponed.popleft()()

    def deliver(
        self, log: Log, sequence: int, topic: str, payload: bytes, qos: int, target_ids: Iterable[int], now_ms: int
    ) -> None:
        """Take a live message that matched targets."""
        if self.logs.meet(log, sequence):
            receivers = self._receivers(target_ids, qos, before_ms=0)
            self._offer(log, sequence, topic, payload, receivers, now_ms // 1000, now_ms)

    def deliver_p2p(
        self,
        log: Log,
        sequence: int,
        client_id: str,
        topic: str,
        payload: bytes,
        now_ms: int,
        report: Report | None = None,
    ) -> None:
        """Take a live kept P2P message, of QoS 1, for a client; `report` is told its end."""
        if self.logs.meet(log, sequence):
            self._offer_p2p(log, sequence, client_id, topic, payload, now_ms // 1000, now_ms, report)
        elif report is not None:
            if log.is_reading and not log.met.has(sequence):
                log.reports[sequence] = report
            else:
                self._report_met(log, sequence, client_id, report)

    def _report_met(self, log: Log, sequence: int, client_id: str, report: Report) -> None:
        """Have the end of a message reported that was read before it came live."""
        session, position = self._roster.find(log.instance_id, client_id), pack(log.index, sequence, P2P)
        if session is None or session.channel is None:
            report(Outcome.KEPT)
        elif session.has(position):
            self._pump.receipts.watch(session, position, report)
        else:
            report(Outcome.ACKNOWLEDGED)

    def lose(self, log: Log, topic: str, qos: int, target_ids: Iterable[int], client_id: str) -> None:
        """Announce a message that no log can store to those who are away; the others got it from their edges.

        Args:
            log: that was to have it.
            topic: that clients see.
            qos: of the publication.
            target_ids: what it matched.
            client_id: receiver of a kept P2P message; empty: it is none.
        """
        instance_id = log.instance_id
        if client_id:
            receivers = [client_id] if self._locate(instance_id, client_id) is None else []
        else:
            found = self._receivers(target_ids, qos, before_ms=0)
            receivers = [session.client_id for session in found if session.channel is None]
        delivery_id = pack(log.index, 0, 0) >> FLAG_BITS
        self._pump.dropped += [Dropped(instance_id, each, delivery_id, NOT_STORED, topic) for each in receivers]

    def read(self, log: Log, sequence: int, published: Published, payload: bytes, time_ms: int, now_ms: int) -> None:
        """Take a message that was read from a log, in order, whether or not it is for this shard.

        Args:
            log: that has it.
            sequence: in the log.
            published: what it is.
            payload: of it.
            time_ms: when the log got it.
            now_ms: the time.
        """
        if published.qos and not log.met.has(sequence):
            self._offer_read(log, sequence, published, payload, time_ms, now_ms)
        self.logs.note_read(log, sequence)

    def read_again(
        self, log: Log, sequence: int, published: Published, payload: bytes, time_ms: int, now_ms: int
    ) -> None:
        """Take a live message that had to be looked up in its log; see `read`."""
        if self.logs.meet(log, sequence):
            self._offer_read(log, sequence, published, payload, time_ms, now_ms)

    def _offer_read(
        self, log: Log, sequence: int, published: Published, payload: bytes, time_ms: int, now_ms: int
    ) -> None:
        if published.p2p:
            client_id = p2p_receiver(published.topic)
            if published.p2p == P2P_KEPT and self._is_ours(log.instance_id, client_id):
                report = log.reports.pop(sequence, None)
                topic = published.shown_topic
                self._offer_p2p(log, sequence, client_id, topic, payload, time_ms // 1000, now_ms, report)
            return
        targets = self._interests.match(log.instance_id, published.topic)
        if targets:
            receivers = self._receivers(targets, published.qos, before_ms=time_ms + self.skew_ms)
            self._offer(log, sequence, published.shown_topic, payload, receivers, time_ms // 1000, now_ms)

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
        if len(receivers) > self.portion:
            rest = _Rest(log, once, topic, payload, iter(list(receivers.items())), time_s, now_ms)
            self._offer_portion(rest)
            return
        for session, granted in receivers.items():
            if session.instance.heap is not None and not session.oldest_s:
                self._roster.bounds.note_waiting(session, time_s)
            offer(session, once | QOS2 if granted > 1 else once, time_s, topic, payload, now_ms)
        instance = self._roster.instances.get(log.instance_id)
        if instance is not None:
            self._roster.bounds.limit(instance)

    def _offer_portion(self, rest: _Rest) -> None:
        offer, sessions, bounds = self._pump.offer, self._roster.sessions, self._roster.bounds
        count = 0
        for session, granted in islice(rest.receivers, self.portion):
            count += 1
            if sessions.get(session.slot) is not session:
                continue  # deleted meanwhile
            if session.instance.heap is not None and not session.oldest_s:
                bounds.note_waiting(session, rest.time_s)
            position = rest.position | QOS2 if granted > 1 else rest.position
            offer(session, position, rest.time_s, rest.topic, rest.payload, rest.now_ms)
        self._rest = rest if count == self.portion else None
        instance = self._roster.instances.get(rest.log.instance_id)
        if instance is not None:
            bounds.limit(instance)

    def _offer_p2p(
        self,
        log: Log,
        sequence: int,
        client_id: str,
        topic: str,
        payload: bytes,
        time_s: int,
        now_ms: int,
        report: Report | None = None,
    ) -> None:
        instance_id = log.instance_id
        roster = self._roster
        session = roster.find(instance_id, client_id)
        if session is None:
            session = roster.make(roster.instance(instance_id, None), client_id)
        if session.channel is None and (found := self._locate(instance_id, client_id)) is not None:
            channel_id, outbox, is_held = found
            roster.connect(session, channel_id, outbox, is_held=is_held, session_present=False)
        if session.instance.heap is not None and not session.oldest_s:
            roster.bounds.note_waiting(session, time_s)
        position = pack(log.index, sequence, P2P)
        self._pump.offer(session, position, time_s, topic, payload, now_ms)
        if report is not None:
            self._pump.receipts.watch(session, position, report)
        roster.bounds.limit(session.instance)
