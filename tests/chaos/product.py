"""Clients of the product profile `lmq` in a storm: persistent subscribers, token mode, P2P that its sender has kept.

Their offline messages come beside live ones, so no order is promised; nothing that was acknowledged may be missing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Protocol

from tests.chaos.ledger import Lane, Receipts
from tests.chaos.swarm import Publisher, Subscriber
from tests.support.mesh import Mesh

SHARE = 0.02
"""Of the messages of the storm, those of each lane here."""


class Amounts(Protocol):
    """The part of a plan that matters here."""

    messages: int
    rate: float
    stay_s: float


def prepare(mesh: Mesh) -> None:
    """Have offline messages come quicker than 30 every 5 s, or the last of them would be waited for too long."""
    mesh.weimq(
        "instance", "set", mesh.instance, "--offline-batch-messages", "500", "--offline-batch-interval-ms", "500"
    )


def clients(
    mesh: Mesh, chance: random.Random, plan: Amounts, lane: Callable[[str, int], Lane], ports: list[int]
) -> tuple[list[Publisher], list[Subscriber]]:
    """Return publishers and those that are entitled to what they publish.

    Args:
        mesh: with the edges.
        chance: of the storm.
        plan: how much.
        lane: makes a lane of a topic and so many messages.
        ports: of the edges.
    """
    total = max(10, int(plan.messages * SHARE))
    token = json.loads(mesh.weimq("token", "apply", f"{mesh.topic}/#", "--json").stdout)
    tokens = (str(token["username"]), str(token["password"]))

    def publisher(name: str, topic: str, *, login: tuple[str, str] | None = None, clean: bool = True) -> Publisher:
        client_id = mesh.client_id(name)
        return Publisher(
            client_id,
            ports,
            chance,
            lanes=[lane(topic, total)],
            qos=1,
            stay_s=plan.stay_s,
            rate=plan.rate * SHARE,
            login=login or mesh.login(client_id),
            clean_session=clean,
        )

    def subscriber(
        name: str, sender: Publisher, topic: str = "", *, login: tuple[str, str] | None = None, clean: bool = False
    ) -> Subscriber:
        client_id = mesh.client_id(name)
        return Subscriber(
            client_id,
            ports,
            chance,
            filters=[(topic, 1)] if topic else [],
            receipts=Receipts(f"lmq {name}", sender.lanes, in_order=False),
            stay_s=plan.stay_s,
            login=login or mesh.login(client_id),
            clean_session=clean,
        )

    plain = publisher("chaos-publisher", f"{mesh.topic}/chaos/plain")
    by_token = publisher("chaos-token-publisher", f"{mesh.topic}/chaos/token", login=tokens)
    kept = [
        publisher(f"chaos-sender-{n}", f"{mesh.topic}/p2p/{mesh.client_id(f'chaos-receiver-{n}')}", clean=False)
        for n in range(2)
    ]
    return [plain, by_token, *kept], [
        subscriber("chaos-subscriber", plain, f"{mesh.topic}/chaos/plain"),
        subscriber("chaos-token-subscriber", by_token, f"{mesh.topic}/chaos/token", login=tokens),
        # Kept by the flag of the sender, whatever that of the receiver.
        subscriber("chaos-receiver-0", kept[0], clean=True),
        subscriber("chaos-receiver-1", kept[1]),
    ]
