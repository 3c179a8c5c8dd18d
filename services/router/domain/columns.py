"""The checks of a batch of published messages."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import StreamContractError

LOGGED = 1
P2P = 2
KEPT_IF_OFFLINE = 4
"""Flags of a topic; the last: the group of the P2P receiver exists."""

QOS = 3
RETAIN = 4
REPEATED = 8
CLEAN_SESSION = 16
"""Flags of a message; `REPEATED`: it may be in its log already."""

KEPT_P2P = 8
WANTS_RECEIPT = 16
"""Flags of a delivery; the first to a session shard only."""

RUN = 32
"""Flag of both: several messages of QoS 0 or 1, see `Run`."""

DELIVERED = 64
"""Flag of a message: its edge has given it to its own subscribers, other than shared ones."""


class Run:
    """Messages of one topic, all of QoS 0 or all of QoS 1, in packets one behind another that go on as they are."""

    __slots__ = ("count", "packets", "payload_bytes")

    def __init__(self, packets: bytes, count: int, payload_bytes: int) -> None:
        self.packets = packets
        """All of one length; each ends with its message."""
        self.count = count
        self.payload_bytes = payload_bytes
        """Length of each message."""

    def payloads(self) -> list[bytes]:
        """Return the messages one by one."""
        packets = self.packets
        step = len(packets) // self.count
        return [packets[stop - self.payload_bytes : stop] for stop in range(step, len(packets) + 1, step)]

    def part(self, offset: int) -> Run:
        """Return the message with so many before it, as a run of its own."""
        step = len(self.packets) // self.count
        return Run(self.packets[offset * step : (offset + 1) * step], 1, self.payload_bytes)


class Columns:
    """Published messages in columns, every index within its range.

    Raises:
        StreamContractError: the columns do not fit together.
    """

    __slots__ = (
        "flags",
        "instances",
        "messages",
        "payloads",
        "publisher_indexes",
        "publishers",
        "runs",
        "sequences",
        "topic_flags",
        "topic_indexes",
        "topic_instances",
        "topics",
    )

    def __init__(
        self,
        *,
        instances: list[str],
        topics: list[str],
        topic_instances: list[int],
        topic_flags: bytes,
        publishers: list[str],
        topic_indexes: list[int],
        sequences: list[int],
        payloads: list[bytes],
        flags: bytes,
        publisher_indexes: list[int],
        run_counts: Sequence[int] = (),
        run_payload_bytes: Sequence[int] = (),
    ) -> None:
        self.instances = instances
        self.topics = topics
        self.topic_instances = topic_instances
        self.topic_flags = topic_flags
        self.publishers = publishers
        self.topic_indexes = topic_indexes
        self.sequences = sequences
        self.payloads = payloads
        self.flags = flags
        self.publisher_indexes = publisher_indexes
        count = len(payloads)
        if not len(topic_indexes) == len(sequences) == len(flags) == len(publisher_indexes) == count:
            raise StreamContractError("the columns of a batch differ in length", rule="columns")
        if not len(topic_instances) == len(topic_flags) == len(topics):
            raise StreamContractError("the columns of the topics differ in length", rule="columns")
        if (
            max(topic_instances, default=-1) >= len(instances)
            or max(topic_indexes, default=-1) >= len(topics)
            or max(publisher_indexes, default=-1) >= len(publishers)
        ):
            raise StreamContractError("an index is out of range", rule="columns")
        kinds = set(flags)
        if any(flag & QOS == QOS for flag in kinds):
            raise StreamContractError("there is no QoS 3", rule="flags")
        if any(flag & DELIVERED and flag & (RETAIN | 2) for flag in kinds):
            raise StreamContractError("edges deliver no retained messages and none of QoS 2", rule="flags")
        if 0 in sequences:
            raise StreamContractError("sequences begin at 1", rule="sequences")
        self.runs: list[Run] = []
        """In order, one for each entry with the flag."""
        self.messages = count
        """Number of messages, with all those of runs."""
        if run_counts or run_payload_bytes or any(flag & RUN for flag in kinds):
            self._gather_runs(run_counts, run_payload_bytes)

    def _gather_runs(self, counts: Sequence[int], payload_bytes: Sequence[int]) -> None:
        indexes = [index for index, flag in enumerate(self.flags) if flag & RUN]
        if not len(indexes) == len(counts) == len(payload_bytes):
            raise StreamContractError("the columns of the runs differ in length", rule="runs")
        for index, count, size in zip(indexes, counts, payload_bytes, strict=True):
            packets = self.payloads[index]
            flag = self.flags[index]
            if flag & RETAIN or flag & QOS > 1:
                raise StreamContractError("a run has no retained messages and none of QoS 2", rule="runs")
            if not flag & QOS and self.topic_flags[self.topic_indexes[index]]:
                raise StreamContractError("a run of QoS 0 has a topic without flags", rule="runs")
            # Each message is at least a byte of `packets`, so what is made of a run is in proportion to the frame.
            if not count or len(packets) % count or not size < len(packets) // count:
                raise StreamContractError("a run holds packets of equal length", rule="runs")
            self.runs.append(Run(packets, count, size))
            self.messages += count - 1


class ColumnsBuilder:
    """Gathers messages in columns."""

    __slots__ = (
        "_instances",
        "_publishers",
        "_topics",
        "flags",
        "payloads",
        "publisher_indexes",
        "sequences",
        "topic_indexes",
    )

    def __init__(self) -> None:
        self._instances: dict[str, int] = {}
        self._publishers: dict[str, int] = {}
        self._topics: dict[tuple[str, str, int], int] = {}
        self.topic_indexes: list[int] = []
        self.sequences: list[int] = []
        self.payloads: list[bytes] = []
        self.flags = bytearray()
        self.publisher_indexes: list[int] = []

    def add(
        self,
        *,
        instance_id: str,
        topic: str,
        topic_flags: int,
        client_id: str,
        sequence: int,
        payload: bytes,
        flags: int,
    ) -> None:
        """Add a message."""
        self._instances.setdefault(instance_id, len(self._instances))
        self.topic_indexes.append(self._topics.setdefault((instance_id, topic, topic_flags), len(self._topics)))
        self.publisher_indexes.append(self._publishers.setdefault(client_id, len(self._publishers)))
        self.sequences.append(sequence)
        self.payloads.append(payload)
        self.flags.append(flags)

    def build(self) -> Columns:
        """Return what was added."""
        return Columns(
            instances=list(self._instances),
            topics=[topic for _, topic, _ in self._topics],
            topic_instances=[self._instances[instance_id] for instance_id, _, _ in self._topics],
            topic_flags=bytes(topic_flags for _, _, topic_flags in self._topics),
            publishers=list(self._publishers),
            topic_indexes=self.topic_indexes,
            sequences=self.sequences,
            payloads=self.payloads,
            flags=bytes(self.flags),
            publisher_indexes=self.publisher_indexes,
        )
