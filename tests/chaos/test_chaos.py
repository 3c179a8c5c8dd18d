"""Nothing that was acknowledged is lost, whatever is killed: every process, at random, while clients come and go.

The full run, `make chaos`, takes CHAOS_MESSAGES acknowledged messages (1,000,000 without it); the short form runs with
the other tests. CHAOS_SEED repeats a choice of victims and pauses, though not the timing. With `--nats-nodes 3` NATS is
a cluster: its nodes are killed one at a time, and leaders of streams step down.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.runtime import background
from tests.chaos import product
from tests.chaos.causes import causes
from tests.chaos.killer import Killer
from tests.chaos.ledger import Lane, Receipts
from tests.chaos.real_clients import AiomqttSubscriber, PahoPublisher, PahoSubscriber
from tests.chaos.swarm import Publisher, Subscriber
from tests.support.mesh import PLAIN, Mesh

EDGES = 2
TOPICS = ("logged", "plain")
"""Parent topics: the first has a log, the messages of the other are kept for sessions alone."""
REAL_SHARE = 0.02
"""Of the messages, those of real clients."""
TOLD_S = 10.0
"""How much of paho's log is shown when a message came late."""
STALLED_S = 60.0
"""Without progress for this long a run has failed."""


@dataclasses.dataclass
class Plan:
    """How much of what."""

    messages: int
    publishers: int
    rate: float
    """Of all of them together, messages a second; what a storm takes from it comes on top."""
    stay_s: float
    """How long a client keeps a connection, on average."""
    calm_s: float
    """Between two kills, on average."""
    kills: int
    """At least so many, however quickly the messages are through."""
    seed: int = dataclasses.field(default_factory=lambda: int(os.environ.get("CHAOS_SEED", time.time_ns() % 100_000)))


class World:
    """The clients of a run and what they have seen."""

    def __init__(self, mesh: Mesh, plan: Plan) -> None:
        self.chance = random.Random(plan.seed)
        ports = [mesh.mqtt_port(n) for n in range(EDGES)]
        real = max(10, int(plan.messages * REAL_SHARE / 2))
        each = -(-(plan.messages - 2 * real) // (plan.publishers * len(TOPICS)))
        self.lanes: list[Lane] = []
        self.publishers = []
        for n in range(plan.publishers):
            lanes = [self._lane(f"{parent}/{n}/x", each) for parent in TOPICS]
            self.publishers.append(
                Publisher(
                    f"publisher-{n}",
                    ports,
                    self.chance,
                    lanes=lanes,
                    qos=1 + n % 2,
                    stay_s=plan.stay_s,
                    rate=plan.rate / plan.publishers,
                )
            )
        paho_lanes = [self._lane(f"{parent}/paho/x", real) for parent in TOPICS]
        self.paho_publishers = [
            PahoPublisher(
                f"paho-publisher-{n}",
                ports[n % EDGES],
                lane,
                qos=1 + n % 2,
                interval_s=plan.messages / plan.rate / real,
            )
            for n, lane in enumerate(paho_lanes)
        ]
        self.subscribers = []
        for n in range(plan.publishers):
            mine = [lane for lane in self.lanes if lane.topic.split("/")[1] == str(n)]
            self.subscribers.append(
                Subscriber(
                    f"subscriber-{n}",
                    ports,
                    self.chance,
                    filters=[(f"{parent}/{n}/#", 1 + n % 2) for parent in TOPICS],
                    receipts=Receipts(f"subscriber-{n}", mine),
                    stay_s=plan.stay_s,
                )
            )
        publishers, subscribers = product.clients(mesh, self.chance, plan, self._lane, ports)
        self.publishers += publishers
        self.subscribers += subscribers
        self.paho_subscriber = PahoSubscriber(
            "paho-subscriber", ports[1], "+/paho/#", 1, Receipts("paho-subscriber", paho_lanes)
        )
        self.aiomqtt_subscriber = AiomqttSubscriber(
            "aiomqtt-subscriber", ports, "+/paho/#", 1, Receipts("aiomqtt-subscriber", paho_lanes)
        )

    def _lane(self, topic: str, total: int) -> Lane:
        lane = Lane(len(self.lanes), topic, total)
        self.lanes.append(lane)
        return lane

    @property
    def receipts(self) -> list[Receipts]:
        """What each subscriber has."""
        own = [subscriber.receipts for subscriber in self.subscribers]
        return [*own, self.paho_subscriber.receipts, self.aiomqtt_subscriber.receipts]

    @property
    def progress(self) -> tuple[int, int]:
        """Acknowledged, and received by all subscribers together."""
        return sum(lane.acknowledged_count for lane in self.lanes), sum(each.received for each in self.receipts)

    @property
    def goal(self) -> tuple[int, int]:
        """What `progress` comes to."""
        return sum(lane.total for lane in self.lanes), sum(
            lane.total for each in self.receipts for lane in each.lanes.values()
        )

    @asynccontextmanager
    async def subscribed(self) -> AsyncGenerator[None]:
        """Have every subscriber there while the body runs."""
        self.paho_subscriber.start()
        try:
            async with background(*(each.run() for each in self.subscribers), self.aiomqtt_subscriber.run()):
                async with asyncio.timeout(60):
                    await self.aiomqtt_subscriber.subscribed.wait()
                    for each in self.subscribers:
                        await each.subscribed.wait()
                    await asyncio.to_thread(self.paho_subscriber.subscribed.wait, 60)
                yield
        finally:
            self.paho_subscriber.stop()

    async def publish(self) -> None:
        """Publish everything."""
        async with asyncio.TaskGroup() as group:
            for publisher in self.publishers:
                group.create_task(publisher.run())
            for paho_publisher in self.paho_publishers:
                group.create_task(asyncio.to_thread(paho_publisher.run))

    async def wait_received(self) -> None:
        """Wait until all is received, or nothing has come for a long time."""
        seen, since = self.progress, time.monotonic()
        while self.progress[1] < self.goal[1] and time.monotonic() - since < STALLED_S:
            await asyncio.sleep(0.2)
            if self.progress != seen:
                seen, since = self.progress, time.monotonic()


async def storm(mesh: Mesh, plan: Plan) -> tuple[World, Killer, float]:
    """Run a plan; return what there is at its end, and how many seconds publishing took."""
    world, killer = World(mesh, plan), Killer(mesh, random.Random(plan.seed + 1), plan.calm_s)
    async with world.subscribed():
        started = time.monotonic()
        async with background(killer.run()):
            await world.publish()
            took_s = time.monotonic() - started
            async with asyncio.timeout(600):
                while killer.done.total() < plan.kills:  # noqa: ASYNC110 - whoever kills tells nobody
                    await asyncio.sleep(0.1)
        await asyncio.to_thread(mesh.wait_healthy)
        await world.wait_received()
        for subscriber in world.subscribers:
            subscriber.stop()
    return world, killer, took_s


def check(world: World, killer: Killer, plan: Plan, took_s: float) -> None:
    """Compare what was acknowledged with what was received."""
    found = causes(world.receipts, killer.kills)
    discarded = sum(each.discarded for each in world.receipts)
    report = [
        f"seed {plan.seed}: {world.progress[0]} acknowledged in {took_s:.0f} s, {dict(sorted(killer.done.items()))}",
        *(
            f"{each.name}: {each.received} received, {len(each.repeats)} repeats, {len(each.out_of_order)} out of order"
            for each in world.receipts
        ),
        f"{found.total()} repeats of {world.progress[1]} received, and {discarded} that a client of QoS 2 tells",
        *(f"{count:>8} {cause}" for cause, count in found.most_common()),
    ]
    print("\n".join(report))  # noqa: T201 - shown with -s, and when the test fails
    assert world.progress[0] == world.goal[0], "\n".join(report)
    lost = {each.name: each.missing for each in world.receipts if each.missing}
    assert not lost, "\n".join([*report, f"LOST: {lost}", *(str(each.first_missing()) for each in world.receipts)])
    assert not any(each.foreign for each in world.receipts)
    late = [
        f"{each.name}: {topic} {n} after {latest}, at {at_s - killer.kills[0].time_s:.2f} s"
        for each in world.receipts
        if each.in_order
        for topic, n, latest, at_s in each.out_of_order
    ]
    killed = [f"{kill.kind} killed at {kill.time_s - killer.kills[0].time_s:.2f} s" for kill in killer.kills]
    assert not late, "\n".join([*report, *killed, *late[:100], *_told_by_paho(world, killer.kills[0].time_s)])
    assert not any(each.lost_sessions for each in world.subscribers)


def _told_by_paho(world: World, since_s: float) -> list[str]:
    """Return what paho's publishers did until the first message came late: some of it may be their own doing."""
    first_s = min((at_s for each in world.receipts for *_, at_s in each.out_of_order), default=0.0)
    return [
        f"{publisher.name} at {at_s - since_s:.2f} s: {text}"
        for publisher in world.paho_publishers
        for at_s, text in publisher.log
        if first_s - TOLD_S < at_s <= first_s
    ]


@pytest.fixture
def chaos_mesh(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Mesh]:
    """Two of everything that can be two."""
    arguments = ("--default-instance", PLAIN, "--routers", "2", "--sessions", "2")
    mesh = Mesh(tmp_path / "mesh", *arguments, edges=EDGES, nats_nodes=pytestconfig.getoption("--nats-nodes"))
    mesh.start()
    mesh.weimq("instance", "create", PLAIN, "--profile", "standard", "--anonymous")
    mesh.weimq("topic", "create", TOPICS[0], "--instance", PLAIN)
    product.prepare(mesh)
    yield mesh
    assert mesh.stop() == 0


@pytest.mark.e2e
@pytest.mark.timeout(480)
def test_nothing_acknowledged_is_lost_in_a_short_storm(chaos_mesh: Mesh) -> None:
    plan = Plan(messages=6_000, publishers=3, rate=1_500, stay_s=3, calm_s=0.8, kills=6)
    check(*asyncio.run(_short(chaos_mesh, plan)))


async def _short(mesh: Mesh, plan: Plan) -> tuple[World, Killer, Plan, float]:
    world, killer, took_s = await storm(mesh, plan)
    return world, killer, plan, took_s


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_nothing_acknowledged_is_lost_in_a_long_storm(chaos_mesh: Mesh) -> None:
    plan = Plan(
        messages=int(os.environ.get("CHAOS_MESSAGES", "1000000")),
        publishers=6,
        rate=5_000,
        stay_s=20,
        calm_s=4,
        kills=40,
    )
    check(*asyncio.run(_short(chaos_mesh, plan)))
