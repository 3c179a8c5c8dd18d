"""What the server sends on one connection: deliveries, and answers to the client. `machine` has the rest of it."""

from __future__ import annotations

from typing import Final

from services.edge.mqtt.encoding import encode
from services.edge.mqtt.errors import LocalUseError
from services.edge.mqtt.first_bytes import PUBACK, PUBREC
from services.edge.mqtt.inflight import AnswerOrder, SessionState
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import SUBACK_FAILURE, PublishRun, SubAck, UnsubAck
from services.edge.mqtt.primitives import IDENTIFIERS
from services.edge.mqtt.states import Limits, State
from services.edge.mqtt.window import Delivery

_PUBACK_HEAD = bytes((PUBACK, 2))
PUBREC_HEAD = bytes((PUBREC, 2))
"""PUBREC up to its packet identifier."""

_CONNECTED: Final = State.CONNECTED


class Sending:
    """The state of a connection, and the bytes that it is to send."""

    __slots__ = (
        "_limits",
        "_order_qos1",
        "_order_qos2",
        "_output",
        "_pending_requests",
        "_received_qos1",
        "_session",
        "state",
    )

    def __init__(self, limits: Limits) -> None:
        self.state = State.AWAITING_CONNECT
        """Read by the driver, written by the machine alone."""
        self._limits = limits
        self._session = SessionState(limits.max_inflight)
        self._output: list[bytes] = []
        self._received_qos1 = 0
        # Made when they are first needed: most connections never publish at QoS 1 or 2.
        self._order_qos1: AnswerOrder | None = None
        self._order_qos2: AnswerOrder | None = None
        self._pending_requests = 0

    @property
    def session(self) -> SessionState:
        """State that a later connection may resume; the driver decides whether to keep it."""
        return self._session

    @property
    def queued_count(self) -> int:
        """Deliveries that wait for the window."""
        return self._session.queued_count

    @property
    def has_output(self) -> bool:
        """Whether `take_output` would return anything."""
        return bool(self._output)

    def take_output(self) -> list[bytes]:
        """Hand over the bytes to send, in order; pieces are not packets."""
        output = self._output
        self._output = []
        return output

    def acknowledge(self, packet_identifier: int, qos: int) -> None:
        """Tell the client that the mesh has taken over its publication of QoS 1 or 2, when its turn has come."""
        if qos == 1:
            if self._received_qos1 and self._is_connected():
                self._received_qos1 -= 1
                if self._order_qos1 is not None:
                    self._order_qos1.answer(packet_identifier, _PUBACK_HEAD, self._output)
        # After the connection is gone it still counts for the session: PUBREC then comes at once.
        elif self._session.received.record(packet_identifier) and self._is_connected():
            if self._order_qos2 is None:
                self._order_qos2 = AnswerOrder()
            self._order_qos2.answer(packet_identifier, PUBREC_HEAD, self._output)

    def acknowledge_run(self, run: PublishRun) -> None:
        """Tell the client that the mesh has taken over its publications of QoS 1 or 2, as `acknowledge` does."""
        identifiers = run.identifiers
        if identifiers is None:
            return
        if run.qos == 1:
            if self._received_qos1 >= run.count and self._is_connected():
                self._received_qos1 -= run.count
                if self._order_qos1 is not None:
                    self._order_qos1.answer_run(run, identifiers, _PUBACK_HEAD, self._output)
        elif self._session.received.record_run(identifiers):
            if self._is_connected() and self._order_qos2 is not None:
                self._order_qos2.answer_run(run, identifiers, PUBREC_HEAD, self._output)
        else:
            for packet_identifier in identifiers:
                self.acknowledge(packet_identifier, 2)

    def suback(self, packet_identifier: int, return_codes: list[int]) -> None:
        """Answer SUBSCRIBE; one code per filter, in request order."""
        for return_code in return_codes:
            if return_code not in (0, 1, 2, SUBACK_FAILURE):
                raise LocalUseError(f"SUBACK code {return_code} is reserved")  # [MQTT-3.9.3-2]
        if self._is_connected():
            self._pending_requests = max(0, self._pending_requests - 1)
            self._output.append(encode(SubAck(packet_identifier, return_codes)))

    def unsuback(self, packet_identifier: int) -> None:
        """Answer UNSUBSCRIBE."""
        if self._is_connected():
            self._pending_requests = max(0, self._pending_requests - 1)
            self._output.append(encode(UnsubAck(packet_identifier)))

    def deliver(self, message: OutboundMessage, qos: int, token: object | None = None) -> bool:
        """Send a message to the client, or queue it when the window is full.

        Args:
            message: Shared with other connections.
            qos: 0, 1 or 2: of this delivery.
            token: Comes back in `Acknowledged`; never for QoS 0.

        Returns:
            False if it was dropped: the queue is full or the connection closed.
        """
        if self.state is not _CONNECTED:
            return self._is_connected()
        if qos == 0:
            self._output.append(message.frame_qos0)
            return True
        session = self._session
        sent = session.sent
        if sent.has_room:
            # The window never has room while something is queued, so nothing is overtaken.
            head = message.head(qos)
            packet_identifier = sent.add(message, qos, token)
            self._output += (head, IDENTIFIERS[packet_identifier], message.payload)
            return True
        return self._queue((message, qos, token))

    def deliver_run(self, run: PublishRun, qos: int) -> bool:
        """Send the messages of a run, at most at `qos`; see `deliver`."""
        if self.state is not _CONNECTED:
            return self._is_connected()
        if not run.qos:
            self._output.append(run.frames)
            return True
        if qos >= run.qos:
            first = self._session.sent.add_run(run)
            if first:
                self._output.append(run.renumbered(first))
                return True
            qos = run.qos
        for message in run.messages():  # noqa: SIM110 - `all` would make a generator of it
            if not self.deliver(message, qos):
                return False
        return True

    def deliver_again(self, message: OutboundMessage, qos: int, token: object, packet_identifier: int) -> bool:
        """Send a message under the packet identifier that it had on an earlier connection of the session.

        Args:
            message: Shared with other connections.
            qos: 1 or 2: of this delivery.
            token: That of the earlier delivery.
            packet_identifier: Of the earlier delivery.

        Returns:
            False if the identifier is not kept for it: `SessionState.restore` named another token, or none, or the
            client has completed the delivery meanwhile.
        """
        if self.state is not _CONNECTED:
            return self._is_connected()
        return self._session.send_expected(packet_identifier, message, qos, token, self._output)

    def give_up(self, qos: int, token: object, packet_identifier: int) -> None:
        """Free the packet identifier of a delivery of an earlier connection whose message will not come again."""
        if self.state is _CONNECTED:
            self._session.give_up(packet_identifier, qos, token, self._output)

    def _queue(self, delivery: Delivery) -> bool:
        session = self._session
        if session.queued_count >= self._limits.max_queued:
            return False
        size = session.queued_bytes + len(delivery[0].payload)
        if size > self._limits.max_queued_bytes and session.queued_count:
            return False
        session.push_queued(delivery)
        return True

    def _is_connected(self) -> bool:
        """Say whether sending makes sense; CLOSED is no misuse, it happens between two awaits."""
        if self.state in (State.AWAITING_CONNECT, State.CONNECTING):
            raise LocalUseError(f"sending while {self.state.value}")
        return self.state is _CONNECTED
