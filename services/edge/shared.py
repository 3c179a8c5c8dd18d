"""Shared subscriptions at the edge: one target for each member, and what a member owes when it goes away.

`$share/<name>/<filter>`: the router gives each message of QoS 1 and 2 to one member. A member that ends without having
completed a delivery (PUBACK, or PUBREC at QoS 2: from then on the message is the client's) returns it, and the router
gives it to another one; so a message can be handled twice, but is not lost with its client. MQTT 3.1.1 knows no
shared subscriptions; the rules are those of MQTT 5.0 section 4.8.2, save that deliveries of QoS 2 are returned, too.
"""

from __future__ import annotations

from collections.abc import Iterable

from typing_extensions import override

from services.edge.hub import Hub, Receiver
from services.edge.mqtt.inflight import SessionState
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.window import Delivery
from services.edge.ports import Interest, Router


class SharingClient(Receiver):
    """A connection that can be a member."""

    def deliver_shared(self, message: OutboundMessage, qos: int, token: Token) -> bool:
        """Send a message; False: it was not taken, and the connection is closed."""
        raise NotImplementedError


GONE = SharingClient()
"""Stands for a connection that has ended in what belonged to it, so that it is freed without a collection."""


class Token:
    """What a delivery of a shared subscription carries until the client has completed it. Three for each member."""

    __slots__ = ("member", "qos")

    def __init__(self, member: SharedMember, qos: int) -> None:
        self.member = member
        self.qos = qos
        """QoS of the publication, not of the delivery."""


class SharedMember(Receiver):
    """The receiver of a shared subscription's target: hands on to its client, and returns what comes too late."""

    def __init__(self, client: SharingClient, router: Router, target: Interest, qos: int) -> None:
        self.qos = qos
        """Granted; the deliveries get the lower one of this and the publication's."""
        self.target = target
        self._client: SharingClient | None = client
        self._router = router
        self._tokens = tuple(Token(self, published) for published in (0, 1, 2))

    @override
    def deliver(self, message: OutboundMessage, qos: int) -> None:
        """Send a message that was published at `qos`."""
        client = self._client
        token = self._tokens[qos]
        taken = client is not None and client.deliver_shared(message, min(qos, self.qos), token)
        if not taken and qos:
            self._router.give_back(self.target, [(message, qos)])

    @override
    def on_permissions_changed(self) -> None:
        """Have the client's subscriptions judged anew; see `ports.Client`."""
        if self._client is not None:
            self._client.on_permissions_changed()

    def leave(self) -> None:
        """Take no more: the subscription is gone; what was sent stays the client's to complete."""
        self._client = None


class Shares:
    """The shared subscriptions of one client."""

    def __init__(self, client: SharingClient, hub: Hub) -> None:
        self._client = client
        self._hub = hub
        self._members: dict[tuple[str, str], SharedMember] = {}

    def subscribe(self, share_name: str, topic_filter: str, qos: int) -> None:
        """Add a subscription or change its QoS; there are no retained messages for it (MQTT 5.0 section 4.8.2)."""
        member = self._members.get((share_name, topic_filter))
        if member is not None:
            member.qos = qos
            return
        target = self._hub.share(self._client.instance_id, share_name, topic_filter)
        member = self._members[share_name, topic_filter] = SharedMember(self._client, self._hub.router, target, qos)
        target.receivers[member] = 2

    def unsubscribe(self, share_name: str, topic_filter: str) -> None:
        """Remove a subscription; what was sent stays the client's to complete [MQTT-3.10.4-3]."""
        member = self._members.pop((share_name, topic_filter))
        member.leave()
        self._hub.unshare(member.target.target_id)

    def give_back(self, session: SessionState) -> None:
        """Return every delivery that the ended connection has not completed, oldest first."""
        uncompleted = [delivery for _, delivery in session.sent.unacknowledged()]
        for target, messages in _by_target([*uncompleted, *session.queued()]).items():
            self._hub.router.give_back(target, messages)


def _by_target(deliveries: Iterable[Delivery]) -> dict[Interest, list[tuple[OutboundMessage, int]]]:
    found: dict[Interest, list[tuple[OutboundMessage, int]]] = {}
    for message, _, token in deliveries:
        if isinstance(token, Token):
            found.setdefault(token.member.target, []).append((message, token.qos))
    return found
