"""From queues to connections: what a client is sent, when, and what becomes of it. Pure, hot path.

| Rule | Backlog | Live messages |
|---|---|---|
| by the clock (`lmq`) | a batch at once, the next after the interval each | at once, beside it, in their own order |
| strict order | a batch when everything before is acknowledged; 0: as room allows | behind the backlog |

At its first turn a connection gets one message, so that of very many that come at once each has something soon.
Either way a connection has at most `MAX_INFLIGHT` messages and about 4 MiB under way. What finds no room stays a
position and is fetched from its log when there is room, so a slow client, or a slow edge, costs no memory for payloads.
"""

from __future__ import annotations

import heapq
from itertools import count

from services.session.domain.changes import Changes
from services.session.domain.fetching import Fetching, release
from services.session.domain.losses import EXPIRED, NOT_PERMITTED, Dropped
from services.session.domain.outbox import DUP, Outbox
from services.session.domain.positions import FLAG_BITS, QOS2, Queue, in_order
from services.session.domain.receipts import Outcome, Receipts
from services.session.domain.sessions import Channel, Inflight, Session

MAX_INFLIGHT = 128
"""Messages under way to one connection: twice what an edge has unacknowledged by default, so that it never waits."""
MAX_INFLIGHT_BYTES = 4 << 20
"""Payload under way to one connection; the message that passes it is the last for now."""
MAX_PULLED = 30
MAX_PULLS = 5
PULL_WINDOW_MS = 1_000
"""Active pulls: messages of each, and pulls of a connection in a second; more are ignored."""
MAX_EARLY = 100_000
"""Completed deliveries that are remembered until the logs are read."""
FIRST_TURN = 1
"""Messages that a connection takes at its first turn, before others have theirs; see `lines.py`."""


class Pump:
    """Queues and connections of the sessions. Owned by one event loop; `flush` after each round of calls."""

    def __init__(self) -> None:
        self.receipts = Receipts()
        self.changes = Changes()
        self.channels: dict[str, Channel] = {}
        """Connections by channel id."""
        self.fetching = Fetching()
        self.dropped: list[Dropped] = []
        """What was dropped and not announced yet."""
        self.early: dict[tuple[str, str, int], bool] = {}
        """Ends of deliveries of the process before whose messages have yet to be read again: by instance, client and
        delivery id, whether the client completed it."""
        self.is_rebuilding = True
        """Whether there may be such."""
        self.late = 0
        """Deliveries that were not acknowledged in time."""
        self._late_ends: dict[Session, dict[int, bool]] = {}  # of deliveries that this process has not sent
        self._ready: dict[Channel, None] = {}
        self._crowded: dict[Outbox[Channel], None] = {}  # edges without room that somebody waits for
        self._timers: list[tuple[int, int, Channel]] = []
        self._timer_count = count()

    # In

    def offer(self, session: Session, position: int, time_s: int, topic: str, payload: bytes, now_ms: int) -> None:
        """Take a message for a session: send it, or keep its position."""
        channel = session.channel
        if self.early and self._ended_early(session, position):
            return
        session.instance.count += 1
        self.changes.add_position(session.slot, position, time_s)
        if channel is not None and channel.awaited:
            channel.awaited.discard(position >> FLAG_BITS)
        if channel is None or channel.is_held:
            _queue_of(session).append(position, time_s)
            return
        is_strict = session.rules.strict_order
        waits = (session.queue or channel.fetches) if is_strict else (channel.live or channel.live_fetches)
        if not waits and _room(channel) > 0 and channel.outbox.has_room:
            self._send(channel, position, time_s, topic, payload, now_ms)
        elif is_strict:
            _queue_of(session).append(position, time_s)
            self._ready[channel] = None
        else:
            channel.live.append(position, time_s)
            self._ready[channel] = None

    def acknowledge(self, channel_id: str, delivery_id: int, *, completed: bool) -> bool:
        """Take the end of a delivery; says whether the connection is one of these."""
        channel = self.channels.get(channel_id)
        if channel is None:
            return False
        self.end(channel.session, delivery_id, completed=completed)
        return True

    def end(self, session: Session, delivery_id: int, *, completed: bool) -> None:
        """Take the end of a delivery to a client, by whatever connection."""
        channel = session.channel
        if channel is not None and (inflight := channel.inflight.pop(delivery_id, None)) is not None:
            channel.inflight_bytes -= inflight.size
            self._end(session, inflight.position, completed=completed)
        elif channel is not None and (fetch := channel.fetches.pop(delivery_id, None)) is not None:
            release(channel, fetch)
            self._end(session, fetch.position, completed=completed)
        else:  # sent by the process before this one; looked up together, since backlogs may be long
            self._late_ends.setdefault(session, {})[delivery_id] = completed

    def note_early(self, instance_id: str, client_id: str, delivery_id: int, *, completed: bool) -> None:
        """Note the end of a delivery whose message may have yet to be read again."""
        if self.is_rebuilding and len(self.early) < MAX_EARLY:
            self.early[instance_id, client_id, delivery_id] = completed

    def pull(self, channel_id: str, max_messages: int, now_ms: int, *, descending: bool) -> None:
        """Send a part of the backlog now, whatever the clock says."""
        channel = self.channels.get(channel_id)
        if channel is None or channel.is_held:
            return
        channel.pulls = [each for each in channel.pulls if each > now_ms - PULL_WINDOW_MS]
        if len(channel.pulls) >= MAX_PULLS:
            return
        channel.pulls.append(now_ms)
        queue = channel.session.queue
        for _ in range(min(max_messages, MAX_PULLED, _room(channel), len(queue) if queue else 0)):
            if queue:
                self.fetching.fetch(channel, *(queue.pop_newest() if descending else queue.pop()), is_live=False)

    def fetched(self, delivery_id: int, topic: str, payload: bytes, now_ms: int) -> None:
        """Take a message that was wanted; an empty topic: the log does not have it any more."""
        for channel in self.fetching.take(delivery_id, topic, payload):
            self._send_fetched(channel, now_ms)

    # Connections

    def connect(self, channel: Channel) -> None:
        """Let a connection get the messages of its session, redelivering first what the one before had under way."""
        session = channel.session
        session.channel = channel
        self.channels[channel.channel_id] = channel
        carried, session.carried = session.carried, None
        channel.carried = carried
        if carried is not None:
            self.changes.touch_session(session)
            channel.packet_identifiers = {each[0]: each[1] for each in carried.deliveries if not each[2]}
            channel.awaited = set(channel.packet_identifiers)
            received = {each[0] for each in carried.deliveries if each[2]}
            for position, time_s in session.queue.take(received) if received and session.queue else ():
                inflight = channel.inflight[position >> FLAG_BITS] = Inflight(position, time_s, 0, 0)
                inflight.is_late = True
        self._ready[channel] = None

    def disconnect(self, channel: Channel) -> None:
        """Put what a connection has under way back into the queue of its session."""
        session = channel.session
        del self.channels[channel.channel_id]
        session.channel = None
        self.receipts.disconnected(session)
        self._ready.pop(channel, None)
        channel.outbox.line.discard(channel)
        items = [(each.position, each.time_s) for each in channel.inflight.values()]
        for fetch in channel.fetches.values():
            release(channel, fetch)
            items.append((fetch.position, fetch.time_s))
        channel.fetches.clear()  # what comes for them finds nobody
        items.extend(channel.live)
        if not items:
            return
        queue = _queue_of(session)
        if not session.rules.strict_order:
            items = in_order(items)
        if not session.rules.strict_order and queue:
            first_s = queue.first_time_s()
            older = [item for item in items if item[1] <= first_s]
            for position, time_s in items[len(older) :]:
                queue.append(position, time_s)
            items = older
        queue.put_first(items)

    def release(self, channel: Channel) -> None:
        """Let a connection that was held get its messages."""
        channel.is_held = False
        self._ready[channel] = None

    def end_rebuilding(self) -> None:
        """Note that every log has been read."""
        self.is_rebuilding = False
        self.early.clear()
        self._ready.update((channel, None) for channel in self.channels.values() if channel.awaited)

    # Out

    def flush(self, now_ms: int) -> None:
        """Send what can be sent."""
        if self._late_ends:
            self._take_late_ends()
        self._pump_ready(now_ms)
        for outbox in list(self._crowded):
            while outbox.line and outbox.may_fetch:
                self._pump(outbox.line.pop(), now_ms, has_turn=True)
                self._pump_ready(now_ms)
            if not outbox.line:
                del self._crowded[outbox]

    @property
    def is_timing(self) -> bool:
        """Whether a batch waits for its time."""
        return bool(self._timers)

    def expire(self, now_ms: int) -> None:
        """Do what is due: batches by the clock, and deliveries that become late."""
        timers = self._timers
        while timers and timers[0][0] <= now_ms:
            channel = heapq.heappop(timers)[2]
            channel.timer_ms = 0
            if channel.session.channel is channel:
                self._ready[channel] = None

    def note_late(self, now_ms: int) -> None:
        """Count deliveries that were not acknowledged in time as offline. Looks at every connection."""
        for channel in self.channels.values():
            timeout_ms = channel.session.rules.acknowledgement_timeout_ms
            for inflight in channel.inflight.values():
                if inflight.sent_ms > now_ms - timeout_ms:
                    break
                if not inflight.is_late:
                    inflight.is_late = True
                    self.late += 1

    def forget(self, session: Session, position: int) -> None:
        """Count a position out that is in no queue any more."""
        session.instance.count -= 1
        self.changes.remove_position(session.slot, position)

    def note_dropped(self, session: Session, position: int, reason: str, topic: str = "") -> None:
        """Have the loss of a message announced; `topic`: empty when its log knows."""
        self.receipts.end(session, position, Outcome.NOT_KEPT)
        self._give_up(session, position)
        instance_id = session.instance.instance_id
        self.dropped.append(Dropped(instance_id, session.client_id, position >> FLAG_BITS, reason, topic))

    def _pump_ready(self, now_ms: int) -> None:
        while self._ready:
            ready, self._ready = self._ready, {}
            for channel in ready:
                self._pump(channel, now_ms, has_turn=False)

    def _pump(self, channel: Channel, now_ms: int, *, has_turn: bool) -> None:
        session = channel.session
        if channel.is_held or session.channel is not channel:
            return
        if channel.fetches:
            self._send_fetched(channel, now_ms)
        queue = session.queue
        if not (queue or channel.live or channel.awaited):
            return
        outbox = channel.outbox
        if not has_turn and (outbox.line or not outbox.may_fetch):
            self._get_in_line(channel)
            return
        if channel.awaited:
            self._redeliver(channel)
        room = _room(channel)
        live = channel.live
        while live and room > 0:
            self.fetching.fetch(channel, *live.pop(), is_live=True)
            room -= 1
        if queue and room > 0:
            self._pump_queue(channel, queue, room, now_ms)

    def _pump_queue(self, channel: Channel, queue: Queue, room: int, now_ms: int) -> None:
        rules = channel.session.rules
        wanted = min(room, len(queue), self._start_batch(channel, now_ms) if rules.batch_messages else room)
        count = wanted if channel.had_turn else min(wanted, FIRST_TURN)
        for _ in range(count):
            self.fetching.fetch(channel, *queue.pop(), is_live=False)
        channel.had_turn = channel.had_turn or count > 0
        if rules.batch_messages:
            channel.batch_left = channel.batch_left - count if queue else 0
            if count:
                channel.next_batch_ms = now_ms + rules.batch_interval_ms
            if queue and not channel.batch_left and not rules.strict_order:
                self._set_timer(channel)
        if count < wanted:
            self._get_in_line(channel)

    def _start_batch(self, channel: Channel, now_ms: int) -> int:
        """Return how much there is left of the batch under way, after beginning one if it is time."""
        rules = channel.session.rules
        is_time = not (channel.inflight or channel.fetches) if rules.strict_order else now_ms >= channel.next_batch_ms
        if not channel.batch_left and is_time:
            channel.batch_left = rules.batch_messages
        return channel.batch_left

    def _get_in_line(self, channel: Channel) -> None:
        channel.outbox.line.add(channel, is_first=not channel.had_turn)
        self._crowded[channel.outbox] = None

    def _end(self, session: Session, position: int, *, completed: bool) -> None:
        if completed:
            self.receipts.end(session, position, Outcome.ACKNOWLEDGED)
        self.forget(session, position)
        if not completed:
            self.note_dropped(session, position, NOT_PERMITTED)
        if session.channel is not None:
            self._ready[session.channel] = None

    def _take_late_ends(self) -> None:
        """Look ends up that came for what waits, one pass for each session."""
        ends, self._late_ends = self._late_ends, {}
        for session, by_id in ends.items():
            for queue in (session.queue, session.channel.live if session.channel is not None else None):
                for position, _ in queue.take(by_id) if queue else ():
                    self._end(session, position, completed=by_id.pop(position >> FLAG_BITS))
            for delivery_id, completed in by_id.items():
                self.note_early(session.instance.instance_id, session.client_id, delivery_id, completed=completed)

    def _ended_early(self, session: Session, position: int) -> bool:
        """Say whether a client had completed a message before it was read again."""
        completed = self.early.get((session.instance.instance_id, session.client_id, position >> FLAG_BITS))
        if completed is False:
            self.note_dropped(session, position, NOT_PERMITTED)
        return completed is not None

    def _set_timer(self, channel: Channel) -> None:
        if not channel.timer_ms:
            channel.timer_ms = channel.next_batch_ms
            heapq.heappush(self._timers, (channel.timer_ms, next(self._timer_count), channel))

    def _redeliver(self, channel: Channel) -> None:
        """Send what the connection before had under way, in its order [MQTT-4.4.0-1]."""
        session = channel.session
        if not channel.is_redelivered:
            channel.is_redelivered = True
            found = session.queue.take(channel.awaited) if session.queue else []
            items = {position >> FLAG_BITS: (position, time_s) for position, time_s in found}
            for delivery_id in channel.packet_identifiers:
                if delivery_id in items:
                    channel.awaited.discard(delivery_id)
                    self.fetching.fetch(channel, *items[delivery_id], is_live=False)
        if not self.is_rebuilding:  # else they may have yet to be read again
            for delivery_id in list(channel.awaited):
                self._give_up(session, delivery_id << FLAG_BITS | (QOS2 if session.rules.keeps_qos2 else 0))
            channel.awaited.clear()

    def _give_up(self, session: Session, position: int) -> None:
        """Free the packet identifier of a message that will not come; see `Carried.give_up`."""
        delivery_id = position >> FLAG_BITS
        channel = session.channel
        carried = channel.carried if channel is not None else session.carried
        qos = 2 if position & QOS2 else 1
        if carried is not None and carried.give_up(delivery_id, qos) and channel is None:
            self.changes.touch_session(session)
        if channel is not None and (packet_identifier := channel.packet_identifiers.pop(delivery_id, 0)):
            channel.awaited.discard(delivery_id)
            channel.outbox.add(channel.channel_id, delivery_id, "", b"", qos, packet_identifier)

    def _send_fetched(self, channel: Channel, now_ms: int) -> None:
        """Send what has been fetched as far as it is in order."""
        fetches = channel.fetches
        while fetches:
            delivery_id, fetch = next(iter(fetches.items()))
            if not fetch.is_done:
                return
            del fetches[delivery_id]
            release(channel, fetch)
            if fetch.topic:
                self._send(channel, fetch.position, fetch.time_s, fetch.topic, fetch.payload, now_ms)
            else:
                self.forget(channel.session, fetch.position)
                self.note_dropped(channel.session, fetch.position, EXPIRED)
            self._ready[channel] = None

    def _send(self, channel: Channel, position: int, time_s: int, topic: str, payload: bytes, now_ms: int) -> None:
        delivery_id = position >> FLAG_BITS
        size = len(payload)
        channel.inflight[delivery_id] = Inflight(position, time_s, now_ms, size)
        channel.inflight_bytes += size
        flags = 2 if position & QOS2 else 1
        packet_identifier = 0
        if channel.packet_identifiers:
            packet_identifier = channel.packet_identifiers.pop(delivery_id, 0)
            if packet_identifier:
                flags |= DUP
        channel.outbox.add(channel.channel_id, delivery_id, topic, payload, flags, packet_identifier)


def _room(channel: Channel) -> int:
    """Return how many messages more may be under way."""
    if channel.inflight_bytes >= MAX_INFLIGHT_BYTES:
        return 0
    return MAX_INFLIGHT - len(channel.inflight) - len(channel.fetches)


def _queue_of(session: Session) -> Queue:
    if session.queue is None:
        session.queue = Queue()
    return session.queue
