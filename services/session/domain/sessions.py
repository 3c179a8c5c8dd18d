"""Records of a session shard: sessions, the connections that get their messages, and logs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.session.domain.outbox import Outbox
from services.session.domain.positions import FLAG_BITS, Met, Queue
from services.session.domain.rules import Rules

if TYPE_CHECKING:  # it knows sessions
    from services.session.domain.receipts import Report

WAITS_ACKNOWLEDGEMENT = 0
"""Stage of a delivery: PUBACK or PUBREC is missing."""
UNKEPT = 0
"""In the place of a delivery id: a message of QoS 2 that nobody keeps. Its identifier is to be released."""
WAITS_COMPLETION = 1
"""Stage of a delivery of QoS 2: PUBCOMP is missing; the message itself is not sent again."""


class Carried:
    """Packet identifiers of a connection that ended, for the next one [MQTT-4.4.0-1].

    Attributes:
        deliveries: delivery id, packet identifier and stage, in the order of sending.
        received: packet identifiers of publications of QoS 2 that were not released.
        retained: retained messages that are to be sent again: topic, or topic filter, and QoS.
    """

    __slots__ = ("deliveries", "received", "retained")

    def __init__(
        self, deliveries: list[tuple[int, int, int]], received: list[int], retained: list[tuple[str, int]] | None = None
    ) -> None:
        self.deliveries = deliveries
        self.received = received
        self.retained = retained or []

    def __bool__(self) -> bool:
        return bool(self.deliveries or self.received or self.retained)

    def give_up(self, delivery_id: int, qos: int) -> bool:
        """Note that a message is gone; says whether it is one of these.

        At QoS 2 its identifier stays in use until the client has released it: the client may have the message, and
        would take another one under that identifier for a repeat.
        """
        for index, (each, packet_identifier, _) in enumerate(self.deliveries):
            if each == delivery_id:
                completion = [(each, packet_identifier, WAITS_COMPLETION)] if qos == 2 else []  # noqa: PLR2004 - QoS
                self.deliveries[index : index + 1] = completion
                return True
        return False


class Inflight:
    """A delivery that the edge has, and the client has not completed."""

    __slots__ = ("is_late", "position", "sent_ms", "size", "time_s")

    def __init__(self, position: int, time_s: int, sent_ms: int, size: int) -> None:
        self.position = position
        self.time_s = time_s
        self.sent_ms = sent_ms
        self.size = size
        self.is_late = False  # counts as offline


class Fetch:
    """A message on its way from its log."""

    __slots__ = ("is_done", "is_live", "payload", "position", "time_s", "topic")

    def __init__(self, position: int, time_s: int, *, is_live: bool) -> None:
        self.position = position
        self.time_s = time_s
        self.is_live = is_live  # of the live lane
        self.is_done = False
        self.topic = ""  # once done; still empty: the log does not have it any more
        self.payload = b""


class Channel:
    """The connection that gets the messages of a session."""

    __slots__ = (
        "awaited", "batch_left", "carried", "channel_id", "fetches", "had_turn", "inflight", "inflight_bytes",
        "is_held", "is_redelivered", "last_change", "live", "live_fetches", "next_batch_ms", "outbox",
        "packet_identifiers", "pulls", "session", "session_present", "timer_ms",
    )  # fmt: skip

    def __init__(self, channel_id: str, session: Session, outbox: Outbox[Channel]) -> None:
        self.channel_id = channel_id
        self.session = session
        self.outbox = outbox
        self.is_held = False
        self.session_present = False  # what CONNACK said
        self.inflight: dict[int, Inflight] = {}  # by delivery id, in the order of sending
        self.inflight_bytes = 0
        self.fetches: dict[int, Fetch] = {}  # by delivery id, in the order of delivery
        self.live = Queue()  # live messages that found no room, not in strict order
        self.live_fetches = 0
        self.had_turn = False  # something of what waited was fetched
        self.batch_left = 0  # messages of the batch under way that were not fetched
        self.next_batch_ms = 0
        self.timer_ms = 0  # when `pump` is to be called; 0: no timer runs
        self.last_change = 0  # number of the last change of subscriptions
        self.carried: Carried | None = None  # what it was told of the connection before
        self.packet_identifiers: dict[int, int] = {}  # by delivery id, of what the connection before was sent
        self.awaited: set[int] = set()  # delivery ids of those that were not found yet
        self.is_redelivered = False  # they were looked for
        self.pulls: list[int] = []  # times of the last active pulls, milliseconds


class Session:
    """What is kept for one client."""

    __slots__ = (
        "carried", "channel", "client_id", "ended_ms", "instance", "is_persistent", "queue", "rules", "slot",
        "subscriptions",
    )  # fmt: skip

    def __init__(self, slot: int, instance: Instance, client_id: str, rules: Rules) -> None:
        self.slot = slot
        self.instance = instance
        self.client_id = client_id
        self.rules = rules
        self.is_persistent = False
        self.subscriptions: dict[str, int] | None = None  # topic filter -> packed subscription
        self.queue: Queue | None = None  # what waits, oldest first
        self.channel: Channel | None = None
        self.carried: Carried | None = None
        self.ended_ms = 0  # when its last connection ended; 0: it has one, or never had

    @property
    def oldest_s(self) -> int:
        """When the oldest message that waits came; 0: there is none."""
        times = [self.queue.first_time_s()] if self.queue else []
        if self.channel is not None and self.channel.live:
            times.append(self.channel.live.first_time_s())
        return min(times, default=0)

    @property
    def is_empty(self) -> bool:
        """Whether there is no reason to keep it."""
        return not (self.is_persistent or self.queue or self.channel)

    def has(self, position: int) -> bool:
        """Say whether a message waits, or is under way."""
        channel, delivery_id = self.channel, position >> FLAG_BITS
        if channel is not None and (delivery_id in channel.inflight or delivery_id in channel.fetches):
            return True
        waiting = [self.queue] if self.queue else []
        if channel is not None:
            waiting.append(channel.live)
        return any(each == position for queue in waiting for each, _ in queue)

    @property
    def inflight_count(self) -> int:
        """Deliveries that are under way and not late."""
        if self.channel is None:
            return 0
        return sum(1 for each in self.channel.inflight.values() if not each.is_late) + len(self.channel.fetches)

    @property
    def offline_count(self) -> int:
        """Messages that wait, and those that were not acknowledged in time."""
        count = len(self.queue) if self.queue else 0
        if self.channel is not None:
            count += len(self.channel.live)
            count += sum(1 for each in self.channel.inflight.values() if each.is_late)
        return count


class Instance:
    """The sessions of one instance."""

    __slots__ = ("count", "heap", "instance_id", "limit", "rules", "sessions")

    def __init__(self, instance_id: str, rules: Rules) -> None:
        self.instance_id = instance_id
        self.rules = rules  # the latest that an opening brought
        self.sessions: dict[str, Session] = {}  # by client id
        self.count = 0  # messages that are not completed
        self.limit = rules.max_offline_messages
        self.heap: list[tuple[int, int]] | None = None  # (time of the oldest or earlier, slot); once it was needed


class Log:
    """A stream that messages come from."""

    __slots__ = ("created", "index", "instance_id", "is_checked", "is_reading", "met", "name", "reports", "skipped")

    def __init__(self, index: int, name: str, instance_id: str, created: str = "") -> None:
        self.index = index
        self.name = name
        self.instance_id = instance_id
        self.created = created  # when the stream was made: another one of that name starts anew
        self.met = Met()
        self.is_checked = True  # which stream it is was looked at since something came live from it
        self.is_reading = False  # it is being read; what comes live is left to that
        self.skipped = 0  # highest sequence left so
        self.reports: dict[int, Report] = {}  # by sequence, those that P2P messages left so are to be told their end
