"""The server's side of one MQTT 3.1.1 connection, as a machine without I/O.

State table (`states.TRANSITIONS` holds it as data; what it does not list ends the connection):

    state              input                                              next state
    -----------------  -------------------------------------------------  ----------------
    AWAITING_CONNECT   CONNECT of a level we speak                        CONNECTING
    AWAITING_CONNECT   CONNECT of another level (CONNACK 1 is queued)     CLOSED
    AWAITING_CONNECT   connect timeout                                    CLOSED
    CONNECTING         any bytes: kept, not decoded                       CONNECTING
    CONNECTING         accept()                                           CONNECTED
    CONNECTING         refuse()                                           CLOSED
    CONNECTED          PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP,
                       SUBSCRIBE, UNSUBSCRIBE, PINGREQ                    CONNECTED
    CONNECTED          DISCONNECT                                         CLOSED
    CONNECTED          silence for 1.5 x keep alive                       CLOSED
    any                malformed bytes, any other packet, close()         CLOSED
    CLOSED             anything: ignored                                  CLOSED

The driver, after every call: write `take_output()` in one go, re-arm its timer with
`next_deadline()`, and stop reading while `wants_pause` holds or its own write buffer is full.
Calls are serialised by the driver; `feed` never raises on the peer's bytes, it ends with `Failed`.
A driver that stopped reading for a reason of its own calls `feed(b"", now)` before `on_deadline`,
since what it did not read is no silence of the peer.
"""

from __future__ import annotations

from typing import Final

from services.edge.mqtt.answers import AnswerRun, PubRelRun
from services.edge.mqtt.codec import Decoder, encode
from services.edge.mqtt.errors import LocalUseError, ProtocolError, ProtocolViolationError
from services.edge.mqtt.events import Event, Failed
from services.edge.mqtt.first_bytes import PUBACK, PUBCOMP, PUBREC
from services.edge.mqtt.inflight import SessionState
from services.edge.mqtt.packets import (
    ConnAck,
    Connect,
    ConnectReturnCode,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PublishRun,
    PubRec,
    PubRel,
    Subscribe,
    Unsubscribe,
)
from services.edge.mqtt.receiving import Receiving
from services.edge.mqtt.states import TRANSITIONS, Limits, State

__all__ = ["TRANSITIONS", "Limits", "ServerConnection", "State"]

_MAX_CONNECT_BYTES = 16 + 5 * 65_537
"""Longest CONNECT there can be: headers, client id, will topic, will payload, user name, password."""

_MAX_READ_BYTES = 512 * 1024
"""Larger than what one read of a socket brings (uvloop: 256 KiB) while CONNECT is being checked."""

_KEEP_ALIVE_FACTOR = 1.5  # [MQTT-3.1.2-24]

_LEVEL_OF_31 = 3
_SPOKEN_LEVELS = (_LEVEL_OF_31, 4)

_PING_RESPONSE = encode(PingResp())

_CONNECTED: Final = State.CONNECTED


class ServerConnection(Receiving):
    """One client connection: bytes in, events and bytes out."""

    __slots__ = (
        "_allowance_s",
        "_decoder",
        "_is_clean",
        "_keep_alive_s",
        "_last_received",
    )

    def __init__(self, *, now: float, limits: Limits, gathers_runs: bool = False) -> None:
        """Start waiting for CONNECT.

        Args:
            now: Monotonic seconds, like every `now` here.
            limits: What the peer may make us hold.
            gathers_runs: Whether the driver takes `PublishRun`.
        """
        super().__init__(limits)
        self._decoder = Decoder(
            # A stranger may make us hold no more than a CONNECT needs.
            min(limits.max_packet_bytes, _MAX_CONNECT_BYTES),
            pause_after_connect=True,
        )
        self._decoder.gathers_runs = gathers_runs
        self._last_received = now
        self._allowance_s = 0.0
        self._keep_alive_s = 0
        self._is_clean = True

    # What the driver looks at

    @property
    def pending_bytes(self) -> int:
        """Received bytes that make no whole packet yet, or wait for `accept`."""
        return self._decoder.pending_bytes

    def next_deadline(self) -> float | None:
        """Return when `on_deadline` is due; it moves with every `feed`."""
        if self.state is State.AWAITING_CONNECT:
            return self._last_received + self._limits.connect_timeout_s
        if self.state is _CONNECTED and self._allowance_s:
            return self._last_received + self._allowance_s
        return None  # the check of a CONNECT has the driver's own deadline

    def on_deadline(self, now: float) -> list[Event]:
        """End the connection if its deadline has passed; calling it early does nothing."""
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return []
        events: list[Event] = []
        if self.state is State.AWAITING_CONNECT:
            self._fail(ProtocolViolationError("MQTT-3.1.0-1", "no CONNECT in time"), events)
        elif self._was_paused:
            # Bytes that we asked the driver not to read are no silence.
            self._was_paused = self.wants_pause
            self._last_received = now
        else:
            self._fail(ProtocolViolationError("MQTT-3.1.2-24", "silence for 1.5 x keep alive"), events)
        return events

    # Received from the client

    def feed(self, data: bytes, now: float) -> list[Event]:
        """Take bytes of the client and return what the driver has to act on."""
        if self.state is State.CLOSED:
            return []
        if self.state is not State.AWAITING_CONNECT:
            # Any byte is a sign of life: a large packet on a slow link takes its time.
            self._last_received = now
        return self._handle(self._decoder.feed(data))

    def _handle(self, packets: list[Packet]) -> list[Event]:
        events: list[Event] = []
        is_connected = self.state is _CONNECTED
        try:
            for packet in packets:
                if is_connected and self._receive_frequent(packet, events):
                    continue
                next_state = TRANSITIONS[self.state].get(type(packet))
                if next_state is None:
                    raise self._violation(packet)
                if next_state is not _CONNECTED:
                    self._change_state(packet, next_state, events)
                    if next_state is State.CLOSED:
                        return events  # [MQTT-3.14.4-2] nothing may follow DISCONNECT
                else:
                    self._receive(packet, events)
        except ProtocolError as error:
            self._fail(error, events)
            return events
        if self._decoder.error is not None:
            self._fail(self._decoder.error, events)
        elif (
            self.state is State.CONNECTING
            and self._decoder.pending_bytes > self._limits.max_packet_bytes + _MAX_READ_BYTES
        ):
            self._fail(ProtocolViolationError("MQTT-4.8.0-1", "too many bytes before CONNACK"), events)
        return events

    def _receive_frequent(self, packet: Packet, events: list[Event]) -> bool:
        """Take what nearly all packets are, if it is that; the table of transitions says the same."""
        if isinstance(packet, Publish):
            if packet.qos == 0:
                events.append(packet)
            else:
                self._receive_publish(packet, events)
            return True
        if isinstance(packet, PublishRun):
            if packet.identifiers is None:
                events.append(packet)
            else:
                self._receive_run(packet, packet.identifiers, events)
            return True
        if isinstance(packet, AnswerRun):
            self._receive_answers(packet.first_byte, packet.packet_identifier, packet.count, events)
            return True
        if isinstance(packet, PubRelRun):
            self._receive_releases(packet.identifiers)
            return True
        return False

    def _violation(self, packet: Packet) -> ProtocolViolationError:
        if self.state is State.AWAITING_CONNECT:
            return ProtocolViolationError("MQTT-3.1.0-1", "the first packet is not CONNECT")
        if isinstance(packet, Connect):
            return ProtocolViolationError("MQTT-3.1.0-2", "a second CONNECT")
        return ProtocolViolationError("MQTT-4.8.0-1", "a packet that only a server sends")

    def _change_state(self, packet: Packet, next_state: State, events: list[Event]) -> None:
        if isinstance(packet, Connect):
            if packet.protocol_level not in _SPOKEN_LEVELS:
                self._refuse_level()
                raise ProtocolViolationError(
                    "MQTT-3.1.2-2", f"protocol level {packet.protocol_level} is not spoken here"
                )
            self._decoder.ignores_flags = packet.protocol_level == _LEVEL_OF_31
            self._keep_alive_s = packet.keep_alive_s
            self._is_clean = packet.clean_session
            events.append(packet)
        elif isinstance(packet, Disconnect):
            events.append(packet)
        self.state = next_state

    def _refuse_level(self) -> None:
        """Queue the answer to a protocol level that is not spoken [MQTT-3.1.2-2]."""
        code = ConnectReturnCode.UNACCEPTABLE_PROTOCOL_VERSION
        self._output.append(encode(ConnAck(session_present=False, return_code=code)))

    def _receive(self, packet: Packet, events: list[Event]) -> None:
        if isinstance(packet, PubAck):
            self._receive_answers(PUBACK, packet.packet_identifier, 1, events)
        elif isinstance(packet, PubRec):
            self._receive_answers(PUBREC, packet.packet_identifier, 1, events)
        elif isinstance(packet, PubComp):
            self._receive_answers(PUBCOMP, packet.packet_identifier, 1, events)
        elif isinstance(packet, PubRel):
            self._receive_releases([packet.packet_identifier])
        elif isinstance(packet, PingReq):
            self._output.append(_PING_RESPONSE)  # [MQTT-3.12.4-1]
        elif isinstance(packet, (Subscribe, Unsubscribe)):
            self._pending_requests += 1
            events.append(packet)
            if self.wants_pause:
                self._was_paused = True
        else:
            # TRANSITIONS lets no other packet through.
            raise AssertionError(repr(packet))  # noqa: TRY004 - not the caller's mistake

    def _fail(self, error: ProtocolError, events: list[Event]) -> None:
        self.state = State.CLOSED
        events.append(Failed(error))

    # Answers of the driver

    def accept(
        self,
        now: float,
        *,
        session_present: bool,
        keep_alive_s: int | None = None,
        session: SessionState | None = None,
    ) -> list[Event]:
        """Let the client in and return the events of what it has sent meanwhile.

        Args:
            now: Monotonic seconds.
            session_present: Told to the client in CONNACK.
            keep_alive_s: Replaces the client's keep alive; 0 is none.
            session: State of an earlier connection; its unfinished deliveries are repeated.

        Raises:
            LocalUseError: no CONNECT waits, or a clean session is said to be present.
        """
        if self.state is State.CLOSED:
            return []  # the connection ended while the driver was deciding
        if self.state is not State.CONNECTING:
            raise LocalUseError(f"accept() while {self.state.value}")
        if session_present and self._is_clean:
            raise LocalUseError("a clean session is never present")  # [MQTT-3.2.2-1]
        self.state = _CONNECTED
        self._last_received = now
        if keep_alive_s is None:
            keep_alive_s = self._keep_alive_s
        self._allowance_s = keep_alive_s * _KEEP_ALIVE_FACTOR
        accepted = ConnectReturnCode.ACCEPTED
        # MQTT 3.1 has no such flag: its byte is reserved.
        self._output.append(encode(ConnAck(session_present and not self._decoder.ignores_flags, accepted)))
        if session is not None:
            self._session = session
            session.resume(self._output)
        self._decoder.max_packet_bytes = self._limits.max_packet_bytes
        return self._handle(self._decoder.resume())

    def refuse(self, return_code: int) -> None:
        """Answer CONNECT with a return code other than 0 and end the connection.

        Raises:
            LocalUseError: no CONNECT waits, or the code would accept.
        """
        if self.state is State.CLOSED:
            return
        if self.state is not State.CONNECTING:
            raise LocalUseError(f"refuse() while {self.state.value}")
        if return_code == ConnectReturnCode.ACCEPTED:
            raise LocalUseError("refuse() with the code of acceptance")
        self._output.append(encode(ConnAck(session_present=False, return_code=return_code)))
        self.state = State.CLOSED  # [MQTT-3.2.2-5]; what came after CONNECT stays unread

    def close(self) -> None:
        """End the connection from our side, or note that the transport is gone."""
        self.state = State.CLOSED
