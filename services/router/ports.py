"""What the router needs of others."""

from __future__ import annotations

from typing import Protocol


class Log(Protocol):
    """What is needed of `services.common.log_writer.LogWriter`, which describes it."""

    @property
    def is_connected(self) -> bool: ...  # noqa: D102 - as above

    @property
    def backlog_bytes(self) -> int: ...  # noqa: D102 - as above

    def is_stuck(self, subject: str) -> bool: ...  # noqa: D102

    def probe(self, subject: str) -> None: ...  # noqa: D102

    def push(self) -> None: ...  # noqa: D102

    def write(self, subject: str, payload: bytes, headers: dict[str, str], token: object) -> None: ...  # noqa: D102

    def write_lines(  # noqa: D102
        self,
        subject: str,
        payload: bytes,
        message_id: str,
        lines: bytes,
        token: object,
        may_repeat: bool,  # noqa: FBT001 - hot path
        is_found: bool,  # noqa: FBT001
    ) -> None: ...

    def write_run(  # noqa: D102
        self,
        subject: str,
        packets: bytes,
        count: int,
        payload_bytes: int,
        ids: str,
        first: int,
        lines: bytes,
        token: object,
    ) -> None: ...


class Source(Protocol):
    """Where published messages come from: an edge, or the callers of `Publish`."""

    incarnation: str
    is_held: bool
    origin: str
    """Value of the header `mqttOrigin` in the log; empty: none, the message is a client's."""
    wants_receipts: bool
    """Whether it is told what becomes of its messages; see `services.router.receipts`."""

    def acknowledge(self, sequence: int) -> None:
        """Note that a message of QoS 1 or 2 is safe."""
        ...

    def sent(self, sequence: int, ways: int, *, is_kept: bool) -> None:
        """Note to how many edges and shards a message was handed, when `wants_receipts`."""
        ...

    def release(self) -> None:
        """Go on after having been held."""
        ...


class DeadLetter:
    """Token of the log writer for an inbound message that can't be routed."""

    __slots__ = ("sequence", "source")

    def __init__(self, source: Source, sequence: int) -> None:
        self.source = source
        self.sequence = sequence

    def stored(self) -> None:
        """Note that it is kept with the others, or can't be."""
        self.source.acknowledge(self.sequence)
