"""The two directions of a connection: when its bytes are read, and what is written to it.

The client is not read from while there is a reason not to: it takes too little of what we send, too much of what it
sent is not answered yet, the routers are behind, or it is beyond its rate. What is to be written gathers until the end
of a loop turn.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Final, cast

from typing_extensions import override

from services.edge import reasons
from services.edge.hub import Hub
from services.edge.mqtt.machine import Limits, ServerConnection, State
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import PublishRun
from services.edge.persistent import KeptDeliveries
from services.edge.receipts import Receipt
from services.edge.shared import SharingClient, Token
from services.edge.transports.layer import READ_BYTES

CLOSE_S = 5.0
"""How long a peer has to read what was sent before the connection was closed."""

MAX_EARLY = 1000
"""Messages and notices that may come between the registration of a client and its CONNACK."""

_buffer: Final = bytearray(READ_BYTES)
"""For all connections: what is read is taken at once."""
_view: Final = memoryview(_buffer)


class Wire(SharingClient):
    """The transport of a client with its MQTT machine; `connection.Connection` says what the packets mean."""

    __deletable__ = ("_deliveries",)  # for mypyc

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._hub = hub
        self._loop = loop
        self._limits = limits
        now = loop.time()
        self._machine = ServerConnection(now=now, limits=limits, gathers_runs=True)
        self._admission_deadline = now + limits.connect_timeout_s
        self.look_at = self._admission_deadline
        self._transport: asyncio.Transport
        self.address = ""
        self._deliveries: KeptDeliveries
        self._early: list[Callable[[], None]] = []
        self._is_admitted = False
        self._is_dirty = False
        self._is_paused = False
        self._is_peer_slow = False
        self._waits_for_answers = False
        self._rooms_awaited = 0
        self._is_stopping = False
        self._held: asyncio.TimerHandle | None = None
        self._closed = False
        self.dropped_count = 0
        """Messages of QoS 0 that were not sent because the client read too slowly."""

    # --- transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of a new TCP connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(self._limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if peer else ""
        self._hub.connections.add(self)
        self._hub.strangers.enter(self, transport)

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Return where to read to; see `asyncio.BufferedProtocol`."""
        return _buffer

    def buffer_updated(self, size: int) -> None:
        """Take bytes of the client; there may be more than fit, which wait until others had their turn."""
        self.data_received(bytes(_view[:size]))
        if size == READ_BYTES and not self._closed:
            self._hold(0)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        raise NotImplementedError

    def eof_received(self) -> bool:
        """Close our side too."""
        return False

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than we send: answers to what it sends would only pile up."""
        self._is_peer_slow = True

    def resume_writing(self) -> None:
        """Note that the client has caught up."""
        self._is_peer_slow = False
        self.resume()

    def _hang_up(self, reason: int) -> None:
        """End the connection after what is to be sent was sent."""
        self._early.clear()
        if self._held is not None:
            self._held.cancel()
        self._machine.close()
        self.flush()
        if reason in reasons.UNREACHABLE or self._is_peer_slow:
            # It takes nothing: waiting for it to read the rest would keep socket and buffer for as long as it likes.
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._loop.call_later(CLOSE_S, self._transport.abort)

    @override
    def evict(self) -> None:
        """Close the connection; see `ports.Client`."""
        self.close(reasons.EVICTED)

    @override
    def abort(self) -> None:
        """Close the connection at once; see `Stranger`."""
        self.close(reasons.PROTOCOL_ERROR)
        self._transport.abort()

    # --- deliveries ----------------------------------------------------------------------------

    @override
    def deliver(self, message: OutboundMessage, qos: int) -> None:
        """Send a message to the client; QoS 0 is dropped while it reads too slowly."""
        if not self._is_admitted:
            if len(self._early) < MAX_EARLY:
                self._early.append(functools.partial(self.deliver, message, qos))
            return
        if qos == 0 and self._is_peer_slow:
            self.dropped_count += 1
        elif self._machine.deliver(message, qos):
            if not self._is_dirty:
                self._is_dirty = True
                self._hub.mark_dirty(self)
        elif not self._closed:
            self.close(reasons.SLOW_CONSUMER)

    @override
    def deliver_run(self, run: PublishRun, qos: int) -> None:
        """Send messages to the client; see `Receiver`."""
        if not self._is_admitted:
            if len(self._early) < MAX_EARLY:
                self._early.append(functools.partial(self.deliver_run, run, qos))
        elif self._is_peer_slow and not (run.qos and qos):
            self.dropped_count += run.count
        elif self._machine.deliver_run(run, qos):
            self._mark_dirty()
        elif not self._closed:
            self.close(reasons.SLOW_CONSUMER)

    @override
    def deliver_kept(self, message: OutboundMessage, qos: int, delivery_id: int, packet_identifier: int) -> None:
        """Send a message of the session shard; see `Receiver`."""
        if not self._is_admitted:
            # Not counted: the shard bounds what it has under way, and does not send it again to this connection.
            self._early.append(functools.partial(self.deliver_kept, message, qos, delivery_id, packet_identifier))
        elif not self._closed:
            if self._deliveries.send(message, qos, delivery_id, packet_identifier):
                self._mark_dirty()
            else:
                self.close(reasons.SLOW_CONSUMER)

    @override
    def deliver_shared(self, message: OutboundMessage, qos: int, token: Token) -> bool:
        """Send a message of a shared subscription; see `SharingClient`."""
        if qos == 0:
            self.deliver(message, 0)
            return True
        if not self._is_admitted:
            # A restored session. It is sent with CONNACK, and returned when the connection ends before that.
            session = self._machine.session
            if session.queued_count >= MAX_EARLY:
                return False
            session.push_queued((message, qos, token))
            return True
        if not self._machine.deliver(message, qos, token):
            self.close(reasons.SLOW_CONSUMER)
            return False
        self._mark_dirty()
        return True

    @override
    def deliver_watched(self, message: OutboundMessage, qos: int, receipt: Receipt) -> None:
        """Send a message that wants a receipt; see `Receiver`."""
        if not self._is_admitted:
            if len(self._early) < MAX_EARLY:
                self._early.append(functools.partial(self.deliver_watched, message, qos, receipt))
        elif self._machine.deliver(message, qos, receipt):
            self._mark_dirty()
        elif not self._closed:
            self.close(reasons.SLOW_CONSUMER)

    @override
    def notify(self, topic: str, payload: bytes) -> None:
        """Send a message of the server; see `ports.Client`."""
        if not self._is_admitted:
            if len(self._early) < MAX_EARLY:
                self._early.append(functools.partial(self.notify, topic, payload))
        elif not self._closed:
            self._machine.deliver(OutboundMessage(topic.encode(), payload, False), 0)  # noqa: FBT003 - RETAIN
            self._mark_dirty()

    def _deliver_early(self) -> None:
        """Send what came before CONNACK."""
        early, self._early = self._early, []
        for deliver in early:
            deliver()

    # --- writing and reading -------------------------------------------------------------------

    def _mark_dirty(self) -> None:
        if not self._is_dirty:
            self._is_dirty = True
            self._hub.mark_dirty(self)

    @override
    def flush(self) -> None:
        """Write all that has gathered, at once."""
        self._is_dirty = False
        output = self._machine.take_output()
        if output and not self._transport.is_closing():
            self._transport.write(b"".join(output))

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        if self._hub.router.is_congested:
            self._hub.pause(self)

    def _hold(self, seconds: float) -> None:
        """Read no more for a while: the client is beyond its rate; 0: it had its part of this loop turn."""
        if self._held is None:
            self._held = self._loop.call_later(seconds, self._release)
            self._pause()

    def _release(self) -> None:
        self._held = None
        self.resume()

    @override
    def resume(self) -> None:
        """Read again, unless there still is a reason not to."""
        if self._closed or self._is_stopping or not self._is_paused or self._held is not None:
            return
        if self._is_peer_slow or self._machine.wants_pause or self._machine.state is State.CONNECTING:
            return
        if self._rooms_awaited:
            return
        if self._waits_for_answers:
            if self._machine.outstanding_received:
                return
            self._waits_for_answers = False
        if self._hub.router.is_congested:
            self._hub.pause(self)
            return
        self._is_paused = False
        self._transport.resume_reading()

    @override
    def stop_reading(self) -> None:
        """Read no more: the edge is stopping."""
        self._is_stopping = True
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    @override
    def wait_for_answers(self) -> None:
        """Read no more until all publications are answered; see `ports.Client`."""
        self._waits_for_answers = True

    @override
    def wait_for_room(self) -> None:
        """Read no more for now; see `ports.Client`."""
        self._rooms_awaited += 1

    @override
    def have_room(self) -> None:
        """Go on; see `ports.Client`."""
        self._rooms_awaited -= 1
        self.resume()

    def _answered(self) -> None:
        if self._is_paused:
            self.resume()
        self._mark_dirty()
