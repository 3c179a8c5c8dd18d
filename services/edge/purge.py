"""Takes back what a client has not been sent yet and may not have any more."""

from __future__ import annotations

from services.edge.hub import Receiver
from services.edge.mqtt.inflight import SessionState
from services.edge.persistent import KeptDeliveries
from services.edge.ports import Router
from services.edge.shared import Token


def purge(client: Receiver, session: SessionState, deliveries: KeptDeliveries, router: Router) -> None:
    """Drop waiting deliveries that are not allowed; those of a shared subscription go to another member.

    Args:
        client: judges them.
        session: has them in its queue.
        deliveries: told of those that the session shard keeps.
        router: takes back those of shared subscriptions.
    """
    for delivery in session.take_queued():
        message, _, token = delivery
        if client.may_receive(message.topic.decode()):
            session.push_queued(delivery)
        elif isinstance(token, int):
            deliveries.withdraw(token)
        elif isinstance(token, Token) and token.qos:
            router.give_back(token.member.target, [(message, token.qos)])
