"""The way in of a connection: from CONNECT to CONNACK.

CONNECT -> auth (grant) -> session service (admission) and, meanwhile, router (P2P target) -> CONNACK 0. Each step calls
back; there is no task per connection. A connection that was closed ignores the answers that come later.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from typing_extensions import override

from services.common.logging import tell
from services.edge import reasons
from services.edge.hub import Hub
from services.edge.mqtt.events import Event
from services.edge.mqtt.machine import Limits
from services.edge.mqtt.packets import Connect, ConnectReturnCode, Will
from services.edge.persistent import KeptDeliveries, PersistentSubscriptions
from services.edge.policy import Permissions
from services.edge.ports import Access, Sessions, StoredSession
from services.edge.subscriptions import Subscriptions
from services.edge.throttle import Throttle, throttle_of
from services.edge.wire import Wire

logger = logging.getLogger(__name__)

LEVEL_OF_31 = 3


class Entrance(Wire):
    """A client on its way in, and what it has once it is; `connection.Connection` says what comes then."""

    __deletable__ = ("_subscriptions",)  # for mypyc

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__(hub, loop, limits)
        self.channel_id = hub.channel_ids.next()
        self.client_id = ""
        self.instance_id = ""
        self._grant: Permissions
        self._sessions: Sessions
        self._unrestored: Sequence[tuple[str, int]] = ()
        self._clean_session = True
        self._will: Will | None = None
        self._is_announced = False
        self._throttle: Throttle | None = None
        self._target_id = 0
        self._awaited = 0
        self._is_session_present = False
        self._subscriptions: Subscriptions

    def _handle(self, events: list[Event]) -> None:
        """Act on what the client has sent."""
        raise NotImplementedError

    def _on_connect(self, packet: Connect) -> None:
        self._hub.strangers.leave(self)
        self._clean_session = packet.clean_session
        self._will = packet.will
        self.client_id = packet.client_id
        if not packet.client_id and (packet.protocol_level == LEVEL_OF_31 or not packet.clean_session):
            # [MQTT-3.1.3-8]; MQTT 3.1 has no empty client id
            self._refuse(ConnectReturnCode.IDENTIFIER_REJECTED, "an empty client id")
            return
        self._hub.auth.authenticate(self, packet)

    @override
    def on_authenticated(self, access: Access | None, return_code: int, reason: str) -> None:
        """Auth answered; see `ports.Client`."""
        if self._closed:
            return
        if access is None:
            self._refuse(return_code, reason)
            return
        self._grant = grant = self._hub.credentials.enter(self, access)
        is_held = self._hub.credentials.is_held(self)
        self.instance_id = grant.instance.instance_id
        if not self.client_id:
            self.client_id = f"auto-{secrets.token_hex(12)}"  # [MQTT-3.1.3-6]
        will_rule = None
        if self._will is not None:
            will_rule = grant.publish_rule(self._will.topic)
            if will_rule is None and not is_held:
                self._refuse(ConnectReturnCode.NOT_AUTHORIZED, "the will's topic may not be published to")
                return
        self._is_announced = True
        self._hub.by_channel[self.channel_id] = self
        self._sessions = self._hub.sessions.of(self.instance_id, self.client_id)
        self._deliveries = KeptDeliveries(self, self._machine, self._sessions)
        # Not before: who never gets here would be a cycle, and strangers that end by the thousand are freed one by one.
        if self._clean_session:
            self._subscriptions = Subscriptions(self._hub, self)
        else:
            self._subscriptions = PersistentSubscriptions(
                self._hub, self, self._sessions, keeps_qos2=grant.instance.is_standard
            )
        # Until it is admitted nothing comes to the target: its messages are another connection's, if there is one.
        self._target_id = self._hub.add_client(self)
        self._awaited = 2  # its admission, and the routers
        self._hub.router.notify(self._go_on)
        self._sessions.open(
            self,
            instance=grant.instance,
            clean_session=self._clean_session,
            is_held=is_held,
            will=self._will,
            will_rule=will_rule,
            publisher=access.publisher(self._will.topic) if self._will is not None else None,
        )

    @override
    def on_admitted(self, session: StoredSession | None) -> None:
        """The session service answered; see `ports.Client`."""
        if self._closed:
            return
        if session is None:
            self._is_announced = False
            self._let_go()
            self._refuse(ConnectReturnCode.IDENTIFIER_REJECTED, "the client id is in use")
            return
        if session.identifiers is not None:  # should it end before CONNACK, the next connection has them again
            self._deliveries.restore(session.identifiers)
            if isinstance(self._subscriptions, PersistentSubscriptions):
                self._subscriptions.expect_retained(session.identifiers.retained)
        self._hub.admit_client(self._target_id, self)
        self._is_session_present = session.is_present
        self._unrestored = session.subscriptions
        self._restore()
        if session.subscriptions:
            self._awaited += 1
            self._hub.router.notify(self._go_on)
        self._go_on()

    def _go_on(self) -> None:
        """Answer CONNACK once the client is admitted and the routers know it and its subscriptions."""
        self._awaited -= 1
        if not self._awaited and not self._closed:
            self._enter()

    def _restore(self) -> None:
        """Go on with the subscriptions of the session, once the client has a token by which they can be judged."""
        subscriptions = self._subscriptions
        if isinstance(subscriptions, PersistentSubscriptions) and self._hub.credentials.may_read(self):
            stored, self._unrestored = self._unrestored, ()
            subscriptions.restore(stored, self._grant)

    def _enter(self) -> None:
        self._is_admitted = True
        self.look_at = 0.0  # its keep-alive may be shorter than what it had till now
        self._hub.strangers.release(self)
        self._throttle = throttle_of(self._grant.instance, None, self._loop.time())
        state = self._machine.session
        events = self._machine.accept(self._loop.time(), session_present=self._is_session_present, session=state)
        self._deliver_early()
        if self._closed:
            return
        who = {"client_id": self.client_id, "address": self.address, "channel_id": self.channel_id}
        tell(logger, "client connected", who)
        self.resume()
        self._handle(events)
        self._mark_dirty()

    def _refuse(self, return_code: int, reason: str) -> None:
        who = {"client_id": self.client_id, "address": self.address}
        tell(logger, "client refused", {**who, "return_code": int(return_code), "reason": reason})
        self._machine.refuse(return_code)
        self.close(reasons.NOT_AUTHORIZED)

    def _let_go(self) -> None:
        """Drop what refers to the connection, so that it is freed at once and not by a collection of garbage."""
        del self._subscriptions
        del self._deliveries
