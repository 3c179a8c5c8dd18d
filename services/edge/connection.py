"""One client connection: drives the MQTT machine with a transport on one side and the services on the other.

`entrance` lets it in, `wire` reads and writes; here is what its packets mean, and its end. `close` is final: answers
that come later are ignored, and the session service is told exactly once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping

from typing_extensions import override

from services.common.logging import tell
from services.edge import liveness, reasons
from services.edge.commands import CommandError
from services.edge.entrance import Entrance
from services.edge.hub import Hub
from services.edge.mqtt.events import Acknowledged, Event, Failed
from services.edge.mqtt.machine import Limits, State
from services.edge.mqtt.packets import (
    Connect,
    ConnectReturnCode,
    Disconnect,
    Publish,
    PublishRun,
    Subscribe,
    Unsubscribe,
    Will,
)
from services.edge.persistent import Ending, left_in_use
from services.edge.purge import purge
from services.edge.receipts import Receipt
from services.edge.stall import SLOW_QUEUE, StallClock
from services.edge.throttle import throttle_of
from services.edge.tokens import READ, UPLOAD_TOKEN, WRITE
from services.edge.transports.layer import CLOSED_TRANSPORT

logger = logging.getLogger(__name__)

MAX_LOOK_S = 5.0
"""How long a connection may go without a look at its rates and its stalled deliveries."""
KEEP_ALIVE_REQUIREMENT = "MQTT-3.1.2-24"


class Connection(Entrance):
    """A client of this edge; an asyncio protocol by its methods."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__(hub, loop, limits)
        self._stall_clock: StallClock | None = None
        self._ending: Ending | None = None
        self.oversized_count = 0
        """Publications that were acknowledged and dropped because their payload is too large."""

    @property
    @override
    def subscriptions(self) -> Mapping[str, int]:
        """What the client subscribed to; see `hub.Receiver`."""
        return self._subscriptions.granted

    # --- transport -----------------------------------------------------------------------------

    @override
    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        now = self._loop.time()
        events = self._machine.feed(data, now)
        self._handle(events)
        if self._throttle is not None and not self._closed:
            pause_s = self._throttle.take(len(data), events, now)
            if pause_s:
                self._hold(pause_s)
        if self._is_admitted or self._closed:
            return
        if not self._hub.strangers.may_hold(self, self._machine.pending_bytes):
            logger.warning("too many large CONNECT packets at once", extra={"address": self.address})
            self.close(reasons.PROTOCOL_ERROR)
        elif self._machine.state is State.CONNECTING and not events:
            self._pause()  # seldom: clients wait for CONNACK, and pausing costs two calls of the kernel

    def connection_lost(self, _error: Exception | None) -> None:
        """Note that the TCP connection is gone."""
        self.close(reasons.CONNECTION_LOST)
        self._hub.strangers.leave(self)
        self._transport = CLOSED_TRANSPORT

    # --- packets -------------------------------------------------------------------------------

    @override
    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Publish):
                self._on_publish(event)
            elif isinstance(event, PublishRun):
                self._on_run(event)
            elif isinstance(event, Acknowledged):
                self._on_acknowledged(event.token)
            else:
                self._on_seldom(event)
            if self._closed:
                return
        if (
            self._is_peer_slow
            or self._hub.router.is_congested
            or self._machine.wants_pause
            or self._waits_for_answers
            or self._rooms_awaited
        ):
            self._pause()
        if self._machine.has_output:
            self._mark_dirty()

    def _on_seldom(self, event: Event) -> None:
        if isinstance(event, Subscribe):
            self._on_subscribe(event)
        elif isinstance(event, Unsubscribe):
            self._on_unsubscribe(event)
        elif isinstance(event, Connect):
            self._on_connect(event)
        elif isinstance(event, Disconnect):
            self.close(reasons.CLIENT_DISCONNECT)
        elif isinstance(event, Failed):
            self._on_failed(event)

    def _on_publish(self, packet: Publish) -> None:
        rule = self._grant.publish_rule(packet.topic)
        if rule is None:
            self._on_command(packet)
        elif len(packet.payload) > self._grant.instance.max_payload_bytes:
            # product.md 2.5: acknowledged and dropped
            if packet.qos:
                self._machine.acknowledge(packet.packet_identifier, packet.qos)
            if not self.oversized_count:  # one line for a connection, never one for a message
                logger.warning("payload too large, dropped", extra={"client_id": self.client_id, "topic": packet.topic})
            self.oversized_count += 1
        else:
            self._hub.router.publish(self, rule, packet, self._clean_session)

    def _on_run(self, run: PublishRun) -> None:
        rule = self._grant.publish_rule(run.topic)
        if rule is not None and run.payload_bytes <= self._grant.instance.max_payload_bytes:
            self._hub.router.publish_run(self, rule, run, self._clean_session)
            return
        for packet in run.publications():
            if not self._closed:
                self._on_publish(packet)

    def _on_command(self, packet: Publish) -> None:
        """Take what is published to a topic of the server; every other topic is one that the client may not use."""
        done = functools.partial(self.on_published, packet.packet_identifier, packet.qos) if packet.qos else _no_answer
        try:
            # In plain MQTT the topics of the server are ordinary ones; but tokens must be replaced there, too.
            is_command = not self._grant.instance.is_standard or packet.topic == UPLOAD_TOKEN
            if not (is_command and self._hub.commands.take(self, packet, done)):
                self._deny(WRITE, packet.topic)
        except CommandError as error:
            logger.info("bad command", extra={"client_id": self.client_id, "topic": packet.topic, "error": str(error)})
            self.close(reasons.PROTOCOL_ERROR)

    def _on_subscribe(self, packet: Subscribe) -> None:
        done = functools.partial(self._on_subscribed, packet.packet_identifier)
        denied = self._subscriptions.add(packet, self._grant, done)
        if denied is not None:
            self._deny(READ, denied)

    def _on_unsubscribe(self, packet: Unsubscribe) -> None:
        self._subscriptions.remove(packet, functools.partial(self._on_unsubscribed, packet.packet_identifier))

    def _on_acknowledged(self, token: object) -> None:
        if isinstance(token, int):  # a delivery id; shared subscriptions have tokens of their own
            self._deliveries.complete(token)
        elif isinstance(token, Receipt):
            token.acknowledged()

    def _on_failed(self, event: Failed) -> None:
        is_silence = event.error.requirement == KEEP_ALIVE_REQUIREMENT
        # Strangers come by the thousand: their lines would cost more than they do.
        logger.log(
            logging.INFO if self._is_admitted else logging.DEBUG,
            "protocol error",
            extra={"address": self.address, "client_id": self.client_id, "error": str(event.error)},
        )
        self.close(reasons.KEEP_ALIVE_TIMEOUT if is_silence else reasons.PROTOCOL_ERROR)

    def _deny(self, needed: str, topic: str) -> None:
        logger.info("not authorized", extra={"client_id": self.client_id, "needed": needed, "topic": topic})
        self._hub.credentials.deny(self, needed, topic)

    # --- answers of the services ---------------------------------------------------------------

    def _on_subscribed(self, packet_identifier: int, codes: list[int]) -> None:
        """Answer SUBACK: the routers know the filters."""
        if not self._closed:
            self._machine.suback(packet_identifier, codes)
            self._answered()

    def _on_unsubscribed(self, packet_identifier: int) -> None:
        """Answer UNSUBACK: nothing new comes for the filters."""
        if not self._closed:
            self._machine.unsuback(packet_identifier)
            self._answered()

    @override
    def on_published(self, packet_identifier: int, qos: int) -> None:
        """Answer PUBACK or PUBREC; see `ports.Client`."""
        self._machine.acknowledge(packet_identifier, qos)
        if self._ending is not None:
            self._ending.check()
        elif not self._closed:
            self._answered()

    @override
    def on_run_published(self, run: PublishRun) -> None:
        """Answer PUBACK or PUBREC; see `ports.Client`."""
        self._machine.acknowledge_run(run)
        if self._ending is not None:
            self._ending.check()
        elif not self._closed:
            self._answered()

    @override
    def probe(self, answer: Callable[[bool], None]) -> None:
        """Find out whether the peer still answers; see `ports.Client`."""

        def answered(alive: bool) -> None:  # noqa: FBT001 - the shape of a callback
            answer(alive)
            if not alive:
                self.close(reasons.CONNECTION_LOST)

        if self._ending is not None:
            self._ending.finish()  # what comes next must not overtake it
        liveness.probe(self._transport, self._loop, answered)

    @override
    def on_withdrawn(self, code: int, token_id: str = "") -> None:
        """Close the connection; see `ports.Client`."""
        if not token_id:
            self._will = None  # what it was allowed by is gone; without a token nothing is allowed anyway
        if self._is_admitted:
            self._hub.credentials.withdraw(self, code, token_id)
        elif not self._closed:
            self._refuse(ConnectReturnCode.NOT_AUTHORIZED, "credentials withdrawn")

    @override
    def on_permissions_changed(self) -> None:
        """Drop subscriptions; see `ports.Client`."""
        if not self._closed:
            self._grant.refresh()
            self._subscriptions.rejudge(self._grant)
            self._restore()
            if self._machine.queued_count:
                purge(self, self._machine.session, self._deliveries, self._hub.router)

    @override
    def may_receive(self, topic: str) -> bool:
        """Judge a message by the permissions of now; see `ports.Client`."""
        return not self._closed and self._grant.may_receive(topic, self.client_id)

    # --- end -----------------------------------------------------------------------------------

    @override
    def check_deadline(self, now: float) -> None:
        """Close the connection if it has been silent, or waited to be let in, for too long."""
        self._look(now)
        deadline = self._machine.next_deadline()
        if deadline is None and not self._is_admitted:
            deadline = self._admission_deadline
        latest = now + min(MAX_LOOK_S, self._limits.slow_consumer_s / 2)
        self.look_at = latest if deadline is None else min(latest, deadline)

    def _look(self, now: float) -> None:
        if self._machine.state is State.CONNECTING:
            if now >= self._admission_deadline:
                self._refuse(ConnectReturnCode.SERVER_UNAVAILABLE, "not let in in time")
            return
        if self._is_admitted:  # the rates may have been changed
            self._throttle = throttle_of(self._grant.instance, self._throttle, now)
        if self._machine.queued_count >= SLOW_QUEUE and self._is_stalled(now):
            self.close(reasons.SLOW_CONSUMER)
            return
        deadline = self._machine.next_deadline()
        if deadline is not None and now >= deadline:
            if self._is_paused and not self._is_peer_slow:
                # What we did not read is no silence of the peer; one that takes nothing for so long is gone.
                self._machine.feed(b"", now)
            self._handle(self._machine.on_deadline(now))

    def _is_stalled(self, now: float) -> bool:
        if self._stall_clock is None:
            self._stall_clock = StallClock(self._limits.slow_consumer_s)
        return self._stall_clock.is_stalled(now, self._machine.queued_count, self._machine.session.sent.last_identifier)

    def _publish_will(self, will: Will, reason: int) -> None:
        # [MQTT-3.1.2-8]; the permission is that of now
        rule = self._grant.publish_rule(will.topic)
        if rule is not None and len(will.payload) <= self._grant.instance.max_payload_bytes:
            publication = Publish(will.topic, will.payload, will.qos, will.retain, False, 0)  # noqa: FBT003 - DUP
            publish = functools.partial(self._hub.router.publish, self, rule, publication, self._clean_session)
            if reason == reasons.SLOW_CONSUMER:
                # We are amid a delivery. The will may end more clients in the same way: not one within the other.
                self._loop.call_soon(publish)
            else:
                publish()

    @override
    def close(self, reason: int) -> None:
        """End the connection after what is to be sent was sent; the first reason counts."""
        if self._closed:
            return
        self._closed = True
        if self._will is not None and self._is_admitted and reason != reasons.CLIENT_DISCONNECT:
            self._publish_will(self._will, reason)
        if self._is_announced:
            self._subscriptions.clear(self._machine.session)
            self._deliveries.end()
        if self._target_id:
            self._hub.remove_client(self._target_id)
        self._hub.credentials.leave(self)
        self._hub.forget(self)
        if self._is_announced and self._clean_session:
            self._sessions.close(self, reason)
            self._let_go()
        elif self._is_announced:
            self._hub.by_channel[self.channel_id] = self  # it may be asked about until its end was told
            self._ending = Ending(self._machine.session, functools.partial(self._tell_end, reason))
            self._ending.start(self._loop)
        if self._is_admitted:
            tell(
                logger,
                "client disconnected",
                {
                    "client_id": self.client_id,
                    "channel_id": self.channel_id,
                    "reason": reasons.name(reason),
                    "dropped": self.dropped_count,
                    "oversized": self.oversized_count,
                },
            )
        self._hang_up(reason)

    def _tell_end(self, reason: int) -> None:
        self._ending = None
        self._hub.by_channel.pop(self.channel_id, None)
        self._sessions.close(self, reason, left_in_use(self._machine.session, self._subscriptions))
        self._let_go()


def _no_answer() -> None:
    """Answer a command of QoS 0."""
