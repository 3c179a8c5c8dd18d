"""The checks of a batch of published messages."""

from __future__ import annotations

from services.common.errors import StreamContractError

LOGGED = 1
P2P = 2
"""Flags of a topic."""

QOS = 3
RETAIN = 4
CLEAN_SESSION = 16
"""Flags of a message."""


class Columns:
    """Published messages in columns, every index within its range.

    Raises:
        StreamContractError: the columns do not fit together.
    """

    __slots__ = (
        "flags",
        "instances",
        "payloads",
        "publisher_indexes",
        "publishers",
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
        if any(flag & QOS == QOS for flag in set(flags)):
            raise StreamContractError("there is no QoS 3", rule="flags")
        if 0 in sequences:
            raise StreamContractError("sequences begin at 1", rule="sequences")
