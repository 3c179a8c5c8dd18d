"""Messages and runs of them over the link with a router that answers, breaks off and is replaced at any moment."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable
from unittest import mock

import hypothesis
import pytest
from hypothesis import strategies as st
from typing_extensions import override

from services.common import link as link_module
from services.common import linking
from services.common.runtime import background
from services.edge.columns import RUN
from services.edge.hub import Hub, Receiver
from services.edge.mqtt.codec import Decoder, encode
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import FLAG_LOGGED, FLAG_P2P, TopicRule
from services.edge.routes import DELIVERED, FIRST_ASK
from services.router.domain.columns import REPEATED, Columns
from tests.support.linked import Linked
from weimq.router.v1 import router_pb2

pytestmark = pytest.mark.timeout(120)

TOPICS = {"short/x": 0, "logged/x": FLAG_LOGGED, "ordered/x": FLAG_LOGGED, "short/p2p/s": FLAG_P2P}


class Peer(Receiver):
    """Publishes and subscribes."""

    def __init__(self, client_id: str) -> None:
        self.client_id = self.channel_id = client_id
        self.instance_id = "i"
        self.received: list[tuple[str, int]] = []
        self.answered: list[int] = []

    @override
    def may_receive(self, topic: str) -> bool:
        return True

    @override
    def deliver(self, message: OutboundMessage, qos: int) -> None:
        self.received.append((message.topic.decode(), int(message.payload)))

    @override
    def on_published(self, packet_identifier: int, qos: int) -> None:
        self.answered.append(packet_identifier)

    @override
    def wait_for_room(self) -> None:
        pass

    @override
    def have_room(self) -> None:
        pass


class World:
    """One publisher and one subscriber of an edge, and its router."""

    def __init__(self) -> None:
        self.hub = Hub(asyncio.get_running_loop())
        self.publisher, self.subscriber = Peer("p"), Peer("s")
        self.linked = Linked(self.hub, self._take)
        self.hub.router = self.link = self.linked.link
        self.rules = {topic: TopicRule("i", topic, flags) for topic, flags in TOPICS.items()}
        self.rules["ordered/x"].is_ordered = True
        self.number = itertools.count(100_000)  # payloads of one length
        self.identifier = itertools.count(1)
        self.published: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        """Payloads of each topic and QoS."""
        self.identifiers: list[int] = []
        self.messages: dict[int, tuple[str, int, int]] = {}
        """What the routers got: topic, QoS and payload by sequence."""
        self.first_seen: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        self.delivered_here: set[int] = set()
        self.unanswered: list[tuple[int, int]] = []
        """Sequences of entries of the router of now, with how many messages each has."""
        self.questions: list[router_pb2.RouteQuestion] = []
        self.repeated = 0

    def publish(self, topic: str, qos: int, count: int) -> None:
        """Publish messages that come in one read."""
        packets = [
            Publish(
                topic, b"%d" % next(self.number), qos, False, False, next(self.identifier) % 65_535 + 1 if qos else 0
            )
            for _ in range(count)
        ]
        self.published[topic, qos] += [int(packet.payload) for packet in packets]
        self.identifiers += [packet.packet_identifier for packet in packets if qos]
        decoder = Decoder(1 << 20)
        decoder.gathers_runs = True
        for packet in decoder.feed(b"".join(map(encode, packets))):
            if isinstance(packet, PublishRun):
                self.link.publish_run(self.publisher, self.rules[topic], packet, True)
            else:
                assert isinstance(packet, Publish)
                self.link.publish(self.publisher, self.rules[topic], packet, True)

    def _take(self, frame: router_pb2.LinkRequest) -> None:
        batch = frame.publishes
        columns = Columns(  # as the router checks them
            instances=list(batch.instances),
            topics=list(batch.topics),
            topic_instances=list(batch.topic_instances),
            topic_flags=batch.topic_flags,
            publishers=list(batch.publishers),
            topic_indexes=list(batch.topic_indexes),
            sequences=list(batch.sequences),
            payloads=list(batch.payloads),
            flags=batch.flags,
            publisher_indexes=list(batch.publisher_indexes),
            run_counts=batch.run_counts,
            run_payload_bytes=batch.run_payload_bytes,
        )
        runs = iter(columns.runs)
        for n, first in enumerate(columns.sequences):
            topic, flags = columns.topics[columns.topic_indexes[n]], columns.flags[n]
            payloads = next(runs).payloads() if flags & RUN else [columns.payloads[n]]
            assert not flags & RUN or flags & 3 < 2, "those of QoS 2 go one by one"
            for sequence, payload in enumerate(payloads, first):
                self._note(topic, flags, sequence, int(payload))
            if flags & 3:
                self.unanswered.append((first, len(payloads)))
        self.questions.extend(frame.route_questions)

    def _note(self, topic: str, flags: int, sequence: int, payload: int) -> None:
        message = (topic, flags & 3, payload)
        if flags & REPEATED:
            self.repeated += 1
        else:
            assert sequence not in self.messages
        if self.messages.setdefault(sequence, message) != message:
            raise AssertionError(f"{sequence} is {self.messages[sequence]} and {message}")
        seen = self.first_seen[topic, flags & 3]
        if payload not in seen:
            seen.append(payload)
        if flags & DELIVERED:
            self.delivered_here.add(payload)

    def acknowledge(self, number: int) -> None:
        """Acknowledge one entry."""
        if self.unanswered:
            self.linked.answer.acknowledged_sequences.append(self.unanswered.pop(number % len(self.unanswered))[0])

    def reply(self, *, is_local: bool) -> None:
        """Answer all questions, as a router that has delivered and acknowledged what came before."""
        questions, self.questions = self.questions, []
        for each in questions:
            self.linked.answer.route_answers.add(
                instance_id="i",
                topic=each.topic,
                is_local=is_local,
                is_logged=each.is_logged,
                target_ids=[target.target_id for target in self.hub.interests() if target.topic_filter == each.topic],
            )

    async def turn(self) -> None:
        """Let both ends do what they have to."""
        while True:
            for _ in range(10):
                await asyncio.sleep(0)
            if not self.linked.exchange():
                return

    async def until(self, condition: Callable[[], bool]) -> None:
        """Go on until a condition holds."""
        async with asyncio.timeout(60):
            while not condition():
                await self.turn()

    async def reconnect(self, *, resumed: bool) -> None:
        """Break the stream, and take the next one as the same router or as another."""
        self.linked.break_off()
        await self.linked.connect(resumed=resumed)
        if not resumed:
            self.unanswered.clear()
            self.questions.clear()

    async def answer_all(self) -> None:
        """Answer everything."""
        async with asyncio.timeout(60):
            await self.turn()
            while not self.link.is_idle:
                self.reply(is_local=True)
                while self.unanswered:
                    self.acknowledge(0)
                await self.turn()

    def check(self) -> None:
        """See that nothing was lost, answered twice or overtaken."""
        assert sorted(self.publisher.answered) == sorted(self.identifiers)
        here: defaultdict[str, list[int]] = defaultdict(list)
        for topic, payload in self.subscriber.received:
            here[topic].append(payload)
        for (topic, qos), payloads in self.published.items():
            local = [payload for payload in here[topic] if payload in set(payloads)]
            assert local == sorted(local)
            seen = self.first_seen[topic, qos]
            if qos:
                assert seen == sorted(seen)
                if topic == "short/x":
                    assert sorted(seen + local) == payloads
                else:
                    assert seen == payloads
            if topic == "logged/x" and qos:
                assert set(local) == self.delivered_here & set(payloads)
        assert all(rule.route is None or not rule.route.under_way for rule in self.rules.values())


OPERATIONS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(list(TOPICS)), st.integers(0, 2), st.integers(1, 12)),
    st.tuples(st.just("publish"), st.sampled_from(["short/x", "logged/x"]), st.just(1), st.integers(1, 12)),
    st.tuples(st.just("acknowledge"), st.integers(0, 9)),
    st.tuples(st.just("reply"), st.booleans()),
    st.tuples(st.just("answer all")),
    st.tuples(st.just("turn")),
    st.tuples(st.just("reconnect"), st.booleans()),
)


@hypothesis.given(st.booleans(), st.lists(OPERATIONS, min_size=5, max_size=40))
@hypothesis.settings(max_examples=200, deadline=None)
def test_nothing_is_lost_answered_twice_or_overtaken(is_local: bool, operations: list[tuple[object, ...]]) -> None:
    asyncio.run(_run(operations, is_local=is_local))


async def _run(operations: list[tuple[object, ...]], *, is_local: bool) -> None:
    with mock.patch.object(link_module, "GATHER_S", 0), mock.patch.object(linking, "BACKOFF_S", (0, 0)):
        world = World()
        async with background(world.link.run()):
            await world.linked.connect()
            for topic in ("short/x", "logged/x"):
                world.hub.subscribe(world.subscriber, topic, 1)
                if is_local:  # from the beginning
                    await world.turn()
                    world.publish(topic, 1, FIRST_ASK)
                    await world.answer_all()
            for name, *arguments in operations:
                match name, arguments:
                    case "publish", [str(topic), int(qos), int(count)]:
                        world.publish(topic, qos, count)
                    case "acknowledge", [int(number)]:
                        world.acknowledge(number)
                    case "reply", [bool(is_local)]:
                        world.reply(is_local=is_local)
                    case "reconnect", [bool(resumed)]:
                        await world.reconnect(resumed=resumed)
                    case "answer all", []:
                        await world.answer_all()
                    case _:
                        await world.turn()
            await world.answer_all()
            world.check()


@pytest.mark.asyncio
@pytest.mark.parametrize("topic", list(TOPICS))
async def test_a_run_is_one_entry_and_goes_again_as_it_was(topic: str) -> None:
    with mock.patch.object(linking, "BACKOFF_S", (0, 0)):
        world = World()
        async with background(world.link.run()):
            await world.linked.connect()
            world.publish(topic, 1, 5)
            await world.until(lambda: world.unanswered == [(1, 5)])
            await world.reconnect(resumed=False)
            world.publish(topic, 1, 2)
            await world.until(lambda: world.unanswered == [(1, 5), (6, 2)])
            assert world.repeated >= 5
            world.acknowledge(1)
            await world.until(lambda: world.publisher.answered == [7, 8])
            world.acknowledge(0)
            await world.until(lambda: world.publisher.answered == [7, 8, 2, 3, 4, 5, 6])
