"""Publications gathered in columns, see `PublishBatch`, until a frame of the link takes them. Hot path."""

from __future__ import annotations

from services.common import utf8
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import FLAG_LOGGED, TopicRule
from services.edge.ports import Client
from services.edge.routes import DELIVERED, LocalRoute
from weimq.router.v1 import router_pb2

OVERHEAD_BYTES = 64
"""What a message costs besides its payload, for the size of a batch."""

QOS = 3
RETAIN = 4
REPEATED = 8
CLEAN_SESSION = 16
RUN = 32
"""Bits of `PublishBatch.flags`."""


class Unacknowledged:
    """A publication of QoS 1 or 2, or a run, that the router has not acknowledged."""

    __slots__ = ("_packet_identifier", "client", "client_id", "flags", "payload", "route", "rule", "run")

    def __init__(self, client: Client, rule: TopicRule, publication: Publish | PublishRun, flags: int) -> None:
        self.client = client
        self.client_id = client.client_id
        self.rule = rule
        self.flags = flags
        self.run: PublishRun | None = None
        self._packet_identifier = 0
        if isinstance(publication, PublishRun):
            self.run = publication
            self.payload = publication.frames
        else:
            self.payload = publication.payload
            self._packet_identifier = publication.packet_identifier
        self.route: LocalRoute | None = None
        """That counts it as under way, since the router is to deliver it here."""
        if rule.flags == FLAG_LOGGED and not flags & DELIVERED and rule.route is not None:
            self.route = rule.route
            rule.route.under_way += self.count

    @property
    def count(self) -> int:
        """Messages."""
        return 1 if self.run is None else self.run.count

    def acknowledged(self) -> None:
        """Tell the publisher."""
        if self.run is None:
            self.client.on_published(self._packet_identifier, self.flags & QOS)
        else:
            self.client.on_run_published(self.run)
        if self.route is not None:
            self.route.under_way -= self.count


class Entry:
    """A publication, or a run of them, as it was gathered."""

    __slots__ = ("client_id", "flags", "payload", "rule", "run", "sequence")

    def __init__(
        self, sequence: int, rule: TopicRule, client_id: str, payload: bytes, flags: int, run: PublishRun | None
    ) -> None:
        self.sequence = sequence
        self.rule = rule
        self.client_id = client_id
        self.payload = payload
        self.flags = flags
        self.run = run


class Columns:
    """A batch of publications on its way into a frame."""

    __slots__ = (
        "bytes",
        "flags",
        "instance_index",
        "is_awaited",
        "is_first",
        "messages",
        "payloads",
        "publisher_index",
        "publisher_indexes",
        "questions",
        "run_counts",
        "run_payload_bytes",
        "sequences",
        "topic_flags",
        "topic_index",
        "topic_indexes",
        "topic_instances",
        "topics",
    )

    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0
        """How many there are: those of a run of QoS 0, which goes on as it is, count as one."""
        self.topic_index: dict[TopicRule, int] = {}
        self.topics: list[str] = []
        self.topic_instances: list[int] = []
        self.topic_flags = bytearray()
        self.instance_index: dict[str, int] = {}
        self.publisher_index: dict[str, int] = {}
        self.topic_indexes: list[int] = []
        self.sequences: list[int] = []
        self.payloads: list[bytes] = []
        self.flags = bytearray()
        self.publisher_indexes: list[int] = []
        self.run_counts: list[int] = []
        self.run_payload_bytes: list[int] = []
        self.questions: list[LocalRoute] = []
        self.is_awaited = False
        """Whether somebody waits for the confirmation of the frame with it."""
        self.is_first = False
        """Whether it has messages that go before those of QoS 0."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.sequences and not self.questions

    def add(self, rule: TopicRule, client_id: str, sequence: int, payload: bytes, flags: int) -> None:
        """Append one message."""
        topic = self.topic_index.get(rule)
        if topic is None:
            topic = self.topic_index[rule] = len(self.topics)
            self.topics.append(rule.topic)
            self.bytes += len(rule.topic) * utf8.MAX_BYTES
            self.topic_instances.append(self.instance_index.setdefault(rule.instance_id, len(self.instance_index)))
            self.topic_flags.append(rule.flags)
        publisher = self.publisher_index.get(client_id)
        if publisher is None:
            publisher = self.publisher_index[client_id] = len(self.publisher_index)
            self.bytes += len(client_id) * utf8.MAX_BYTES
        self.topic_indexes.append(topic)
        self.sequences.append(sequence)
        self.payloads.append(payload)
        self.flags.append(flags)
        self.publisher_indexes.append(publisher)
        self.messages += 1
        self.bytes += len(payload) + OVERHEAD_BYTES

    def add_run(self, rule: TopicRule, client_id: str, sequence: int, run: PublishRun, flags: int) -> None:
        """Append messages whose packets go on as they are."""
        self.add(rule, client_id, sequence, run.frames, flags | RUN)
        if run.qos:
            self.messages += run.count - 1
        self.run_counts.append(run.count)
        self.run_payload_bytes.append(run.payload_bytes)

    def entries(self) -> list[Entry]:
        """Return what was added."""
        rules = list(self.topic_index)
        publishers = list(self.publisher_index)
        entries: list[Entry] = []
        runs = 0
        for n, sequence in enumerate(self.sequences):
            rule = rules[self.topic_indexes[n]]
            flags = self.flags[n]
            run: PublishRun | None = None
            if flags & RUN:
                run = PublishRun(rule.topic, self.payloads[n], self.run_counts[runs], self.run_payload_bytes[runs])
                runs += 1
            entries.append(Entry(sequence, rule, publishers[self.publisher_indexes[n]], self.payloads[n], flags, run))
        return entries

    def write_to(self, batch: router_pb2.PublishBatch) -> None:
        """Fill the protobuf message."""
        batch.topics.extend(self.topics)
        batch.topic_instances.extend(self.topic_instances)
        batch.topic_flags = bytes(self.topic_flags)
        batch.instances.extend(self.instance_index)
        batch.publishers.extend(self.publisher_index)
        batch.topic_indexes.extend(self.topic_indexes)
        batch.sequences.extend(self.sequences)
        batch.payloads.extend(self.payloads)
        batch.flags = bytes(self.flags)
        batch.publisher_indexes.extend(self.publisher_indexes)
        if self.run_counts:
            batch.run_counts.extend(self.run_counts)
            batch.run_payload_bytes.extend(self.run_payload_bytes)
