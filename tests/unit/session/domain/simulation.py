"""A shard with clients, edges, routers and logs on a simulated network and clock, broken at random.

The network delivers in order on each link and loses what is under way when a link breaks. A crash of the shard rolls it
back to its last checkpoint. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections import Counter, deque

from services.common.topics import matches
from services.session.domain.outbox import Outbox
from services.session.domain.positions import Met, sequence_of
from services.session.domain.rules import Rules
from services.session.domain.sessions import Carried, Channel, Log
from services.session.domain.shard import Shard
from tests.unit.session.domain.simulated import Client, Database, Message

INSTANCE = "i"
FILTERS = ("a/#", "a/1", "b/+", "b/2", "#")
TOPICS = ("a/1", "a/2", "b/1", "b/2", "a/p2p/c0", "a/p2p/c1", "a/p2p/never")
CLIENTS = ("c0", "c1", "c2", "c3")
STEP_MS = 100


class World:
    """Everything, and one shard."""

    def __init__(self, seed: int, *, crashes: bool = True) -> None:
        self.random = random.Random(seed)
        self.crashes = crashes
        self.now_ms = 1_700_000_000_000
        self.rules = Rules(
            strict_order=self.random.random() < 0.5,
            keeps_qos2=False,
            batch_messages=self.random.choice((0, 1, 3, 30)),
            batch_interval_ms=1_000,
        )
        self.portion = self.random.choice((1, 2, 100))
        self.database = Database()
        self.bucket: dict[str, tuple[dict[str, int], Rules]] = {}
        self.logs: dict[str, list[Message]] = {"MQ_i_a": [], "MQ_i_b": []}
        self.live: dict[str, deque[tuple[str, int, list[int]]]] = {name: deque() for name in self.logs}  # by log
        self.is_linked = dict.fromkeys(self.logs, False)
        self.reading: dict[str, tuple[int, int]] = {}  # log -> read through, and its end when that began
        self.swaps = seed % 4 == 0  # messages are reported out of the order of their log, as after a change of leaders
        self.clients = [Client(name, self.rules, clean_session=name == "c1") for name in CLIENTS]
        self.channels = 0
        self.fetches: list[int] = []
        self.shard = self.start()
        self.drops = 0

    # The shard's process

    def start(self) -> Shard:
        shard = Shard(count=1, locate=self.locate, is_ours=lambda _instance, _client: True)
        shard.fanout.skew_ms = 0
        shard.fanout.portion = self.portion
        for log in sorted(self.database.logs.values(), key=lambda row: row.index):
            shard.logs.restore(log.index, log.name, INSTANCE, "", Met(log.read_through, log.top, log.bits))
        for row in self.database.sessions.values():
            shard.restore_row(row.slot, row.instance_id, row.client_id, row.ended_ms, row.carried)
        rows = sorted((slot, time_s, position) for (slot, position), time_s in self.database.positions.items())
        for slot, time_s, position in rows:
            shard.restore_position(slot, position, time_s)
        for client_id, (subscriptions, rules) in self.bucket.items():
            shard.restore(INSTANCE, client_id, subscriptions, rules)
        shard.begin(self.now_ms)
        return shard

    def locate(self, _instance_id: str, client_id: str) -> tuple[str, Outbox[Channel], bool] | None:
        client = next((each for each in self.clients if each.client_id == client_id), None)
        if client is None or client.outbox is None:
            return None
        return client.channel_id, client.outbox, False

    def crash(self) -> None:
        """Kill the shard; its edges tell its successor of their connections, and of acknowledgements."""
        if self.random.random() < 0.2:
            self.database = Database()  # the files were deleted, and with them what was stored of acknowledgements
            for client in self.clients:
                client.completed = {client.seen[each] for each in [*client.kept_acknowledgements, *client.orphans]}
        self.fetches = []
        for name in self.logs:
            self.cut(name)
        self.shard = self.start()
        for client in self.clients:  # while it was away
            if client.outbox is not None and self.random.random() < 0.3:
                client.orphans += client.kept_acknowledgements
                client.kept_acknowledgements.clear()
                client.unacknowledged.clear()
                client.outbox = None
        for client in self.clients:
            if client.outbox is not None:
                client.outbox = Outbox("edge", lambda: None)
                self.attach(client, is_held=True)
        for client in self.clients:
            for delivery_id in client.orphans:
                self.shard.acknowledge(INSTANCE, client.client_id, delivery_id, completed=True)
            for delivery_id in client.kept_acknowledgements:
                self.complete(client, delivery_id)
            if client.outbox is not None:
                self.shard.release(client.channel_id)
        self.flush()

    def flush(self) -> None:
        self.shard.flush(self.now_ms)
        for store in self.shard.stores:
            if store.subscriptions is None:
                self.bucket.pop(store.client_id, None)
            else:
                self.bucket[store.client_id] = (store.subscriptions, store.rules)
        self.shard.stores.clear()
        self.shard.interests.take_changes()
        self.fetches += self.shard.pump.fetching.wanted
        self.shard.pump.fetching.wanted = []

    def checkpoint(self) -> None:
        if self.shard.fanout.is_midway:
            return
        self.database.write(self.shard.pump.changes.take())
        if not self.shard.pump.early:  # else frames with acknowledgements wait
            for client in self.clients:
                if client.outbox is None or not client.outbox.frames:  # else the edge has yet to drop repeats
                    client.kept_acknowledgements.clear()
                client.orphans.clear()

    # Routers

    def cut(self, name: str) -> None:
        """Break the link of the router that writes a log; what is on it is lost."""
        self.live[name].clear()
        self.is_linked[name] = False
        self.reading.pop(name, None)

    def link(self, name: str) -> None:
        """Open the link; the router knows all filters, and the log is read."""
        self.is_linked[name] = True
        log = self.shard.logs.open(name, INSTANCE)
        self.reading[name] = self.shard.logs.begin_reading(log), len(self.logs[name])

    def read(self, name: str) -> None:
        """Read a stretch of a log."""
        if self.shard.fanout.is_busy:
            return
        log = self.shard.logs.open(name, INSTANCE)
        through, end = self.reading[name]
        for _ in range(self.random.randrange(1, 5)):
            if through >= end:
                if not self.shard.logs.end_reading(log):
                    end = log.skipped
                    continue
                del self.reading[name]
                if all(self.is_linked.values()) and not self.reading:
                    self.shard.pump.end_rebuilding()
                break
            sequence = through = through + 1
            self.reading[name] = through, end
            message = self.logs[name][sequence - 1]
            self.shard.fanout.read(log, sequence, message, b"", message.time_ms, self.now_ms)
            if self.shard.fanout.is_busy:
                break
        self.flush()

    def publish(self) -> None:
        """Store a message in its log; a linked router delivers it."""
        topic = self.random.choice(TOPICS)
        name = f"MQ_i_{topic[0]}"
        qos = self.random.choice((0, 1, 1, 1, 2))
        message = Message(topic, qos, self.now_ms, is_kept=qos == 1 and self.random.random() < 0.7)
        self.logs[name].append(message)
        sequence = len(self.logs[name])
        is_kept_p2p = message.p2p == "kept"
        for client in self.clients:
            is_receiver = message.receiver == client.client_id and is_kept_p2p
            is_subscriber = not message.receiver and any(
                qos == 1 and matches(topic_filter, topic) for topic_filter, qos in client.subscribed.items()
            )
            if message.qos and (is_receiver or is_subscriber):
                client.expected.add((name, sequence))
        if self.is_linked[name] and message.qos and (is_kept_p2p or not message.receiver):
            targets = [] if message.receiver else self.shard.interests.match(INSTANCE, topic)
            if targets or is_kept_p2p:
                self.live[name].append((topic, sequence, targets))
                if self.swaps and self.random.random() < 0.1 and len(self.live[name]) > 1:
                    later, earlier = self.live[name].pop(), self.live[name].pop()
                    self.live[name] += (later, earlier)

    def deliver(self, name: str) -> None:
        """Take the next deliveries of a router."""
        log = self.shard.logs.open(name, INSTANCE)
        queue = self.live[name]
        if self.shard.fanout.is_busy:
            return
        for _ in range(min(len(queue), self.random.randrange(1, 4))):
            topic, sequence, targets = queue.popleft()
            self.offer(log, topic, sequence, targets)
            if self.random.random() < 0.05 and not self.shard.fanout.is_busy:
                self.offer(log, topic, sequence, targets)  # a retried publication
            if self.shard.fanout.is_busy:
                break
        self.flush()

    def offer(self, log: Log, topic: str, sequence: int, targets: list[int]) -> None:
        message = self.logs[log.name][sequence - 1]
        if message.receiver:
            self.shard.fanout.deliver_p2p(log, sequence, message.receiver, topic, b"", self.now_ms)
        else:
            self.shard.fanout.deliver(log, sequence, topic, b"", message.qos, targets, self.now_ms)

    def position(self, delivery_id: int) -> tuple[str, int]:
        log = self.shard.logs.of(delivery_id)
        assert log is not None
        return log.name, sequence_of(delivery_id)

    # Edges and clients

    def connect(self, client: Client) -> None:
        self.channels += 1
        client.channel_id = f"{self.channels:032x}"
        client.outbox = Outbox("edge", lambda: None)
        client.changes = 0
        client.unacknowledged.clear()
        client.given.clear()
        was_present = client.client_id in self.bucket
        present, _, carried = self.attach(client, is_held=False)
        assert present == (was_present and not client.clean_session)
        if carried is not None:
            client.unacknowledged = {delivery_id: identifier for delivery_id, identifier, _ in carried.deliveries}
        self.flush()

    def attach(self, client: Client, *, is_held: bool) -> tuple[bool, dict[str, int], Carried | None]:
        assert client.outbox is not None
        return self.shard.attach(
            INSTANCE,
            client.client_id,
            client.channel_id,
            client.outbox,
            None if client.clean_session else client.rules,
            clean_session=client.clean_session,
            is_held=is_held,
            is_established=is_held,
        )

    def disconnect(self, client: Client) -> None:
        """End a connection; sometimes with its edge, which loses what it has."""
        carried = None
        if self.random.random() < 0.7:
            self.receive(client)
            carried = Carried([(each, identifier, 0) for each, identifier in client.unacknowledged.items()], [])
            client.orphans += client.kept_acknowledgements
        else:
            client.completed -= {client.seen[each] for each in client.kept_acknowledgements}
        client.outbox = None
        client.unacknowledged.clear()
        client.kept_acknowledgements.clear()
        self.shard.detach(client.channel_id, carried, self.now_ms)
        self.flush()

    def subscribe(self, client: Client) -> None:
        self.now_ms += 1  # later than what was published
        client.changes += 1
        topic_filter = self.random.choice(FILTERS)
        removes = topic_filter in client.subscribed and self.random.random() < 0.3
        qos = 0 if removes else self.random.choice((0, 1, 1, 1, 2))
        if qos != 1 and client.subscribed.get(topic_filter) == 1:
            # What is not sent yet may come or not.
            client.expected = {
                each
                for each in client.expected
                if each in client.received or not matches(topic_filter, self.message(each).topic)
            }
        if removes:
            del client.subscribed[topic_filter]
            self.shard.change(client.channel_id, client.changes, [], [topic_filter], self.now_ms)
        else:
            client.subscribed[topic_filter] = qos
            self.shard.change(client.channel_id, client.changes, [(topic_filter, qos)], [], self.now_ms)
        self.flush()

    def receive(self, client: Client) -> None:
        """Hand what the edge got to the client, but for repeats that follow from a restart of the shard."""
        outbox = client.outbox
        while outbox is not None and (batch := outbox.take()) is not None:
            gone = batch.topic_index.get("")
            for delivery_id, identifier, message in zip(
                batch.delivery_ids, batch.packet_identifiers, batch.message_indexes, strict=True
            ):
                if batch.topic_indexes[message] == gone:
                    assert client.unacknowledged.pop(delivery_id, identifier) == identifier
                    continue
                if delivery_id in client.kept_acknowledgements:
                    self.complete(client, delivery_id)
                    continue
                if delivery_id in client.given and delivery_id in client.unacknowledged:
                    continue
                client.packet_identifier += 1
                known = client.unacknowledged.get(delivery_id, 0)  # from `Decision.inflight`
                assert identifier in (0, known)
                client.unacknowledged[delivery_id] = known or client.packet_identifier
                position = client.given[delivery_id] = client.seen[delivery_id] = self.position(delivery_id)
                client.received.append(position)
                if position in client.completed:
                    client.repeats.append(position)

    def acknowledge(self, client: Client) -> None:
        waiting = [each for each in client.unacknowledged if each in client.given]
        for delivery_id in waiting[: self.random.randrange(1, 8)]:
            del client.unacknowledged[delivery_id]
            client.completed.add(client.given[delivery_id])
            client.kept_acknowledgements.append(delivery_id)
            self.complete(client, delivery_id)
        self.flush()

    def complete(self, client: Client, delivery_id: int) -> None:
        if not self.shard.pump.acknowledge(client.channel_id, delivery_id, completed=True):
            self.shard.acknowledge(INSTANCE, client.client_id, delivery_id, completed=True)

    def fetch(self) -> None:
        """Answer some of what was asked of the logs, in any order."""
        self.random.shuffle(self.fetches)
        for _ in range(min(len(self.fetches), self.random.randrange(1, 6))):
            delivery_id = self.fetches.pop()
            log = self.shard.logs.of(delivery_id)
            assert log is not None
            message = self.logs[log.name][sequence_of(delivery_id) - 1]
            self.shard.pump.fetched(delivery_id, message.topic, b"", self.now_ms)
        self.flush()

    # Time

    def step(self) -> None:
        """Let something happen."""
        choose = self.random.random
        self.now_ms += STEP_MS
        self.publish()
        for name in self.logs:
            self.step_log(name)
        for client in self.clients:
            self.step_client(client)
        if choose() < 0.7:
            self.fetch()
        if choose() < 0.7:
            self.shard.fanout.go_on()
        self.shard.expire(self.now_ms)
        self.flush()
        if choose() < 0.1:
            self.checkpoint()
        if self.crashes and choose() < 0.02:
            self.crash()

    def step_log(self, name: str) -> None:
        choose = self.random.random
        if not self.is_linked[name]:
            if choose() < 0.3:
                self.link(name)
        elif self.crashes and choose() < 0.02:
            self.cut(name)
        if name in self.reading and choose() < 0.8:
            self.read(name)
        if choose() < 0.7:
            self.deliver(name)

    def step_client(self, client: Client) -> None:
        choose = self.random.random
        if client.outbox is None:
            if choose() < 0.2:
                self.connect(client)
            return
        if choose() < 0.05:
            self.disconnect(client)
            return
        if choose() < 0.1 and not client.clean_session:
            self.subscribe(client)
        if choose() < 0.7:
            self.receive(client)
        if choose() < 0.5:
            self.acknowledge(client)

    def settle(self) -> None:
        """Let everything work until nothing is left to do."""
        for client in self.clients:
            if client.outbox is None:
                self.connect(client)
        for name in self.logs:
            if not self.is_linked[name]:
                self.link(name)
        for _ in range(5_000):
            self.now_ms += STEP_MS
            for name in self.logs:
                if name in self.reading:
                    self.read(name)
                self.deliver(name)
            for client in self.clients:
                self.receive(client)
                self.acknowledge(client)
            self.fetch()
            self.shard.fanout.go_on()
            self.shard.expire(self.now_ms)
            self.flush()
            if self.is_quiet:
                return
        raise AssertionError("it does not come to rest")

    @property
    def is_quiet(self) -> bool:
        left = sum(len(session.queue or ()) for session in self.shard.roster.sessions.values() if session.channel)
        under_way = any(each.inflight or each.fetches or each.live for each in self.shard.pump.channels.values())
        return not (
            self.shard.fanout.is_busy or self.reading or any(self.live.values()) or self.fetches or left or under_way
        )

    def check(self) -> None:
        """Compare what every client got with what it was to get."""
        for client in self.clients:
            missing = client.expected.difference(client.received)
            assert not missing, f"{client.client_id} lacks {[self.describe(each) for each in missing]}"
            repeats = [self.describe(each) for each in client.repeats]
            assert not repeats, f"{client.client_id} got {repeats} again"
            if self.rules.strict_order and not client.clean_session and not self.swaps:
                self.check_order(client)
        channels = self.shard.pump.channels.values()
        assert all(not each.inflight_bytes and not each.live_fetches and not each.outbox.fetching for each in channels)
        waiting = sum(len(each.queue or ()) for each in self.shard.roster.sessions.values())
        assert sum(each.count for each in self.shard.roster.instances.values()) == waiting

    def check_order(self, client: Client) -> None:
        last: Counter[str] = Counter()
        for name, sequence in dict.fromkeys(client.received):
            assert sequence > last[name], f"{client.client_id} got {self.describe((name, sequence))} too late"
            last[name] = sequence

    def describe(self, position: tuple[str, int]) -> str:
        message = self.message(position)
        return f"{position[0]}:{position[1]} {message.topic} QoS {message.qos}"

    def message(self, position: tuple[str, int]) -> Message:
        return self.logs[position[0]][position[1] - 1]
