"""What a client sends in exchanges of QoS 1 and 2: publications, and answers to deliveries. See `machine`."""

from __future__ import annotations

from services.edge.mqtt.answers import answers, answers_in_order
from services.edge.mqtt.errors import ProtocolViolationError
from services.edge.mqtt.events import Acknowledged, Event
from services.edge.mqtt.first_bytes import PUBACK, PUBCOMP, PUBREC
from services.edge.mqtt.inflight import PUBREL_HEAD, AnswerOrder
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.mqtt.primitives import IDENTIFIERS
from services.edge.mqtt.sending import PUBREC_HEAD, Sending
from services.edge.mqtt.states import Limits

_PUBCOMP_HEAD = bytes((PUBCOMP, 2))


class Receiving(Sending):
    """The part of a connection that takes messages and answers.

    Packets that came together are taken together where that is the same as one by one, and one by one elsewhere.
    """

    __slots__ = ("_was_paused",)

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._was_paused = False

    @property
    def outstanding_received(self) -> int:
        """Received publications of QoS 1 and 2 that `acknowledge` has not answered."""
        return self._received_qos1 + self._session.received.forwarded_count

    @property
    def wants_pause(self) -> bool:
        """Whether the driver shall stop reading until answers from the mesh have come."""
        unanswered = self.outstanding_received + self._pending_requests
        return unanswered >= self._limits.receive_maximum

    def _receive_publish(self, packet: Publish, events: list[Event]) -> None:
        packet_identifier = packet.packet_identifier
        if packet.qos == 1:
            # Repeated identifiers are new publications, too: at least once. [MQTT-4.3.2-2]
            self._received_qos1 += 1
            if self._order_qos1 is None:
                self._order_qos1 = AnswerOrder()
            self._order_qos1.received(packet_identifier)
            events.append(packet)
        else:
            received = self._session.received
            if received.add(packet_identifier):
                if len(received) > self._limits.max_unreleased:
                    received.discard(packet_identifier)
                    raise ProtocolViolationError("MQTT-4.8.0-1", "too many QoS 2 without PUBREL")
                if self._order_qos2 is None:
                    self._order_qos2 = AnswerOrder()
                self._order_qos2.received(packet_identifier)
                events.append(packet)
            elif received.is_recorded(packet_identifier):
                # The mesh has it and our PUBREC got lost. [MQTT-4.3.3-2]
                self._output.append(PUBREC_HEAD + IDENTIFIERS[packet_identifier])
        if self.wants_pause:
            self._was_paused = True

    def _receive_run(self, run: PublishRun, identifiers: list[int], events: list[Event]) -> None:
        """Take publications of QoS 1 or 2 that came together; as in `_receive_publish`."""
        if run.qos == 1:
            self._received_qos1 += len(identifiers)
            if self._order_qos1 is None:
                self._order_qos1 = AnswerOrder()
            self._order_qos1.received_run(identifiers)
            events.append(run)
        elif self._session.received.add_run(identifiers, self._limits.max_unreleased):
            if self._order_qos2 is None:
                self._order_qos2 = AnswerOrder()
            self._order_qos2.received_run(identifiers)
            events.append(run)
        else:
            for packet in run.publications():
                self._receive_publish(packet, events)
        if self.wants_pause:
            self._was_paused = True

    def _receive_releases(self, identifiers: list[int]) -> None:
        """Take PUBREL packets."""
        released = self._session.received.release(identifiers)
        if released:
            self._output.append(answers(_PUBCOMP_HEAD, identifiers[:released]))
        if released < len(identifiers):
            # Its PUBREC was not sent. Freeing the identifier would let the mesh's late answer
            # acknowledge the next publication that has it.
            raise ProtocolViolationError("MQTT-4.3.3-1", "PUBREL before PUBREC")

    def _receive_answers(self, first_byte: int, packet_identifier: int, count: int, events: list[Event]) -> None:
        """Take PUBACK, PUBREC or PUBCOMP packets for an identifier and those that follow it."""
        if first_byte == PUBACK:
            self._receive_acknowledgements(packet_identifier, count, events)
        elif first_byte == PUBREC:
            self._receive_receipts(packet_identifier, count)
        else:
            self._receive_completions(packet_identifier, count, events)

    def _receive_receipts(self, packet_identifier: int, count: int) -> None:
        """Take PUBREC packets; even one for an identifier that is not under way is answered.

        A client that kept it from a session that we lost would otherwise repeat PUBREC for ever.
        """
        sent = self._session.sent
        released = sent.release_in_order(packet_identifier, count)
        if released:
            self._output.append(answers_in_order(PUBREL_HEAD, packet_identifier, released))
        for identifier in range(packet_identifier + released, packet_identifier + count):
            if not sent.release(identifier) and sent.is_under_way(identifier):
                raise ProtocolViolationError("MQTT-4.8.0-1", "PUBREC for a delivery of QoS 1")
            self._output.append(PUBREL_HEAD + IDENTIFIERS[identifier])

    def _receive_completions(self, packet_identifier: int, count: int, events: list[Event]) -> None:
        """Take PUBCOMP packets; those for identifiers that are not under way are ignored."""
        session = self._session
        sent = session.sent
        completed = sent.complete_released_in_order(packet_identifier, count)
        for identifier in range(packet_identifier + completed, packet_identifier + count):
            if sent.is_released(identifier):
                token = sent.complete_qos2(identifier)
                if token is not None:
                    events.append(Acknowledged(token))
            elif sent.is_under_way(identifier):
                raise ProtocolViolationError("MQTT-4.8.0-1", "PUBCOMP before PUBREC, or for a delivery of QoS 1")
        session.send_queued(self._output)

    def _receive_acknowledgements(self, packet_identifier: int, count: int, events: list[Event]) -> None:
        """Take PUBACK packets for an identifier and those that follow it."""
        session = self._session
        sent = session.sent
        completed = sent.complete_in_order(packet_identifier, count)
        for identifier in range(packet_identifier + completed, packet_identifier + count):
            delivery = sent.complete_qos1(identifier)
            if delivery is None:
                if sent.is_under_way(identifier):
                    raise ProtocolViolationError("MQTT-4.8.0-1", "PUBACK for a delivery of QoS 2")
            elif delivery[2] is not None:
                events.append(Acknowledged(delivery[2]))
        session.send_queued(self._output)
