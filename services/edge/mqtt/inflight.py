"""Acknowledged deliveries under way, one structure per direction, and the session that holds both.

Packet identifiers of the two directions are independent (MQTT 3.1.1 section 2.3.1), so they never
share a table.

Sent, QoS 1:      PUBLISH -> unacknowledged -PUBACK-> free
Sent, QoS 2:      PUBLISH -> unacknowledged -PUBREC-> released (payload forgotten) -PUBCOMP-> free
Received, QoS 2:  PUBLISH -> forwarded -mesh has it, PUBREC-> recorded -PUBREL-> free

A session outlives its connection. Whoever resumes it sends what is unacknowledged again with DUP,
and PUBREL for what is released. [MQTT-4.4.0-1] Where messages are kept elsewhere, only identifiers
outlive the connection (`Identifiers`): those of unacknowledged deliveries are then *expected*, taken
and without a message, until the message comes again. What is sent is in `window`.
"""

from __future__ import annotations

import collections

from services.edge.mqtt.first_bytes import PUBREL
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import PublishRun
from services.edge.mqtt.primitives import IDENTIFIERS
from services.edge.mqtt.window import EXPECTED, Delivery, SentWindow

PUBREL_HEAD = bytes((PUBREL, 2))
"""PUBREL up to its packet identifier."""

_MAX_ANSWERED = 1024
"""Answered publications that `AnswerOrder` keeps at the most."""


UNKEPT = 0
"""Token of a delivery of QoS 2, of an earlier connection, whose message nobody keeps: the client is to release it."""


class Identifiers:
    """Packet identifiers in use when a connection ended, and retained messages that were under way."""

    __slots__ = ("received", "released", "retained", "unacknowledged")

    def __init__(
        self,
        unacknowledged: list[tuple[int, object]],
        released: list[tuple[int, object]],
        received: list[int],
        retained: list[tuple[str, int]] | None = None,
    ) -> None:
        self.unacknowledged = unacknowledged
        """Identifier and token of deliveries that wait for PUBACK or PUBREC, in the order of sending."""
        self.released = released
        """Identifier and token of those that wait for PUBCOMP, in the order of their PUBREC."""
        self.received = received
        """Identifiers of received publications of QoS 2 that were answered PUBREC and not released."""
        self.retained = retained or []
        """Topic and QoS of retained messages that the client has not acknowledged."""

    def __bool__(self) -> bool:
        return bool(self.unacknowledged or self.released or self.received or self.retained)


class ReceivedIds:
    """Identifiers of received QoS 2 publications until their PUBREL."""

    __slots__ = ("_recorded", "forwarded_count")

    def __init__(self) -> None:
        # True once PUBREC was sent, False while the mesh has not taken the publication over.
        self._recorded: dict[int, bool] = {}
        self.forwarded_count = 0
        """Publications that the mesh has not taken over yet."""

    def __len__(self) -> int:
        return len(self._recorded)

    def add(self, packet_identifier: int) -> bool:
        """Take PUBLISH; say whether it is a new publication [MQTT-4.3.3-2]."""
        if packet_identifier in self._recorded:
            return False
        self._recorded[packet_identifier] = False
        self.forwarded_count += 1
        return True

    def add_run(self, identifiers: list[int], limit: int) -> bool:
        """Take PUBLISH packets, if all are new publications and then no more than `limit` are there, or none."""
        added = dict.fromkeys(identifiers, False)
        recorded = self._recorded
        if (
            len(added) < len(identifiers)
            or len(recorded) + len(identifiers) > limit
            or (recorded and not recorded.keys().isdisjoint(identifiers))
        ):
            return False
        recorded.update(added)
        self.forwarded_count += len(identifiers)
        return True

    def record_run(self, identifiers: list[int]) -> bool:
        """Note that the mesh took over publications, if it had not taken over any of them; else do nothing."""
        recorded = self._recorded
        for packet_identifier in identifiers:
            if recorded.get(packet_identifier) is not False:
                return False
        recorded.update(dict.fromkeys(identifiers, True))
        self.forwarded_count -= len(identifiers)
        return True

    def release(self, identifiers: list[int]) -> int:
        """Take PUBREL packets up to the first whose publication the mesh has yet to take over; return how many."""
        recorded = self._recorded
        count = 0
        for packet_identifier in identifiers:
            if recorded.pop(packet_identifier, None) is False:
                recorded[packet_identifier] = False
                break
            count += 1
        return count

    def is_forwarded(self, packet_identifier: int) -> bool:
        """Say whether the mesh has yet to take this publication over."""
        return self._recorded.get(packet_identifier) is False

    def is_recorded(self, packet_identifier: int) -> bool:
        """Say whether PUBREC was sent and PUBREL has not come."""
        return self._recorded.get(packet_identifier) is True

    def record(self, packet_identifier: int) -> bool:
        """Note that the mesh took over; say whether PUBREC is due."""
        if self._recorded.get(packet_identifier) is not False:
            return False
        self._recorded[packet_identifier] = True
        self.forwarded_count -= 1
        return True

    def restore(self, packet_identifier: int) -> None:
        """Note a publication that was answered PUBREC on an earlier connection."""
        self._recorded[packet_identifier] = True

    def recorded(self) -> list[int]:
        """Return the identifiers that were answered PUBREC."""
        return [packet_identifier for packet_identifier, is_recorded in self._recorded.items() if is_recorded]

    def discard(self, packet_identifier: int) -> None:
        """Take PUBREL: the identifier is free for a new publication."""
        if self._recorded.pop(packet_identifier, None) is False:  # too many: the connection ends
            self.forwarded_count -= 1


class AnswerOrder:
    """Packet identifiers of received publications of one QoS, so that answers go out in their order [MQTT-4.6.0-2]."""

    __slots__ = ("_early", "_next", "_waiting")

    def __init__(self) -> None:
        # In the order of their coming; those before `_next` are answered. A list: a deque costs several times as much.
        self._waiting: list[int] = []
        self._next = 0
        # Answered before their turn; how often, since a client may send a QoS 1 identifier again.
        self._early: dict[int, int] = {}

    def received(self, packet_identifier: int) -> None:
        """Note a publication that will be answered."""
        self._waiting.append(packet_identifier)

    def received_run(self, identifiers: list[int]) -> None:
        """Note publications that will be answered."""
        self._waiting.extend(identifiers)

    def answer(self, packet_identifier: int, head: bytes, output: list[bytes]) -> None:
        """Append to `output` the answers, each `head` and an identifier, whose turn it is now."""
        waiting = self._waiting
        turn = self._next
        if turn < len(waiting) and waiting[turn] == packet_identifier:
            turn += 1
            output.append(head + IDENTIFIERS[packet_identifier])
            if self._early:
                turn = self._answer_early(turn, head, output)
            if turn == len(waiting) or turn >= _MAX_ANSWERED:
                del waiting[:turn]
                turn = 0
            self._next = turn
        elif packet_identifier in waiting[turn:]:
            self._early[packet_identifier] = self._early.get(packet_identifier, 0) + 1
        else:  # of an earlier connection of the session: nothing here waits for it
            output.append(head + IDENTIFIERS[packet_identifier])

    def answer_run(self, run: PublishRun, identifiers: list[int], head: bytes, output: list[bytes]) -> None:
        """Answer all publications of a run, whose packet identifiers are given, as `answer` does each."""
        waiting = self._waiting
        turn = self._next
        stop = turn + len(identifiers)
        if not self._early and waiting[turn:stop] == identifiers:
            output.append(run.acknowledgements())
            if stop == len(waiting) or stop >= _MAX_ANSWERED:
                del waiting[:stop]
                stop = 0
            self._next = stop
        else:
            for packet_identifier in identifiers:
                self.answer(packet_identifier, head, output)

    def _answer_early(self, turn: int, head: bytes, output: list[bytes]) -> int:
        waiting = self._waiting
        early = self._early
        while early and turn < len(waiting) and waiting[turn] in early:
            following = waiting[turn]
            turn += 1
            output.append(head + IDENTIFIERS[following])
            if early[following] == 1:
                del early[following]
            else:
                early[following] -= 1
        return turn


class SessionState:
    """What survives a connection: both directions, and deliveries that wait for the window."""

    __slots__ = ("_queued", "queued_bytes", "received", "sent")

    def __init__(self, max_inflight: int) -> None:
        self.sent = SentWindow(max_inflight)
        self.received = ReceivedIds()
        self._queued: collections.deque[Delivery] | None = None  # few sessions ever need one
        self.queued_bytes = 0
        """Payload bytes of the queue, shared payloads counted each time."""

    @property
    def queued_count(self) -> int:
        """Deliveries that wait for the window."""
        return 0 if self._queued is None else len(self._queued)

    def queued(self) -> list[Delivery]:
        """Return what waits for the window, oldest first."""
        return list(self._queued or ())

    def take_queued(self) -> list[Delivery]:
        """Empty the queue and return what was in it, oldest first."""
        queued = self.queued()
        self._queued = None
        self.queued_bytes = 0
        return queued

    def push_queued(self, delivery: Delivery) -> None:
        """Add to the end of the queue; the caller has checked its limits."""
        if self._queued is None:
            self._queued = collections.deque()
        self._queued.append(delivery)
        self.queued_bytes += len(delivery[0].payload)

    def send(self, delivery: Delivery, output: list[bytes]) -> None:
        """Put a delivery under way; the window has room."""
        message, qos, token = delivery
        head = message.head(qos)
        packet_identifier = self.sent.add(message, qos, token)
        output += (head, IDENTIFIERS[packet_identifier], message.payload)

    def send_queued(self, output: list[bytes]) -> None:
        """Put under way what was queued, as far as the window has room."""
        while self._queued and self.sent.has_room:
            delivery = self._queued.popleft()
            self.queued_bytes -= len(delivery[0].payload)
            self.send(delivery, output)

    def resume(self, output: list[bytes]) -> None:
        """Repeat on a new connection what the client has not completed [MQTT-4.4.0-1]."""
        output += [PUBREL_HEAD + IDENTIFIERS[packet_identifier] for packet_identifier, _ in self.sent.released()]
        for packet_identifier, (message, qos, _) in self.sent.unacknowledged():
            if qos != EXPECTED:
                self._repeat(packet_identifier, message, qos, output)
        self.send_queued(output)

    def _repeat(self, packet_identifier: int, message: OutboundMessage, qos: int, output: list[bytes]) -> None:
        output += (
            message.head_dup(qos),  # [MQTT-3.3.1-1]
            IDENTIFIERS[packet_identifier],
            message.payload,
        )

    def send_expected(
        self, packet_identifier: int, message: OutboundMessage, qos: int, token: object, output: list[bytes]
    ) -> bool:
        """Send a message again under the identifier it had on an earlier connection.

        Returns:
            False: the identifier is not kept for it; the client has completed it, or it never was.
        """
        if not self.sent.fulfil(packet_identifier, message, qos, token):
            return False
        self._repeat(packet_identifier, message, qos, output)
        return True

    def give_up(self, packet_identifier: int, qos: int, token: object, output: list[bytes]) -> None:
        """Free an identifier that is kept for a message of QoS 1 or 2 which will not come."""
        if self.sent.abandon(packet_identifier, qos, token):
            output.append(PUBREL_HEAD + IDENTIFIERS[packet_identifier])
        self.send_queued(output)

    def restore(self, identifiers: Identifiers) -> None:
        """Go on with the identifiers of an earlier connection; `resume` follows."""
        for packet_identifier, token in identifiers.unacknowledged:
            self.sent.expect(packet_identifier, token)
        for packet_identifier, token in identifiers.released:
            self.sent.expect_completion(packet_identifier, token)
        for packet_identifier in identifiers.received:
            self.received.restore(packet_identifier)

    def identifiers(self) -> Identifiers:
        """Return the identifiers in use.

        Of deliveries those whose token is a number: their messages are kept elsewhere. Others of QoS 2 become `UNKEPT`:
        the client may have one, and would take the next message under its identifier for a repeat.
        """
        unacknowledged: list[tuple[int, object]] = []
        unkept: list[tuple[int, object]] = []
        retained: list[tuple[str, int]] = []
        for packet_identifier, (message, qos, token) in self.sent.unacknowledged():
            if isinstance(token, int):
                unacknowledged.append((packet_identifier, token))
                continue
            if qos == 2:  # noqa: PLR2004 - QoS
                unkept.append((packet_identifier, UNKEPT))
            if message.retain:
                retained.append((message.topic.decode(), qos))
        retained += [(message.topic.decode(), qos) for message, qos, _ in self.queued() if message.retain]
        released = [
            (packet_identifier, token if isinstance(token, int) else UNKEPT)
            for packet_identifier, token in self.sent.released()
        ]
        return Identifiers(unacknowledged, [*released, *unkept], self.received.recorded(), retained)
