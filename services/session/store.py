"""What the session service reads from JetStream when it starts, and the checkpoints that shorten it.

The events are the truth: folded from the beginning of the streams, or from a checkpoint on, they tell which
connections were announced and have not ended. A checkpoint of an instance is in the stream `PRESENCE`:

| Subject | Holds |
|---|---|
| `mq.presence.<instance>.head` | JSON: slot, number and digest of the chunks, the event sequence they account for |
| `mq.presence.<instance>.<a or b>.<n>` | JSON: up to 384 KiB of connections |

With several shards, each has its own, under `mq.presence.<instance>.<index>of<count>`, and takes no account of events
of clients of the others.

The chunks go to the slot that the head does not name, then the head is replaced: a crash in between leaves the
checkpoint before. A checkpoint that is incomplete or of another stream is not used.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api

from services.common import jetstream, subjects
from services.common.errors import UnavailableError
from services.common.sharding import shard_of
from services.session.domain.events import Event, Fold, Opened, parse_event
from services.session.domain.records import Connection

logger = logging.getLogger(__name__)

PRESENCE_STREAM = "PRESENCE"
PRESENCE_SUBJECT = "mq.presence"
VERSION = 1

CHUNK_BYTES = 384 << 10
"""Where a chunk ends; one more row keeps it below NATS' default of 1 MiB."""
BATCH = 500
"""Events fetched at once."""
FETCH_S = 5.0
"""How long a batch may take."""
PAUSE_S = 0.5
"""Pause after a failure of NATS."""
PROGRESS_S = 5.0
"""How often progress is logged."""

_FAILURES = (nats.errors.Error, TimeoutError, OSError, UnavailableError)


T = TypeVar("T")


class Store:
    """Reads events and checkpoints, and writes checkpoints. Its calls try on until NATS answers, unless stated."""

    def __init__(self, client: Client, js: JetStreamContext, *, place: tuple[int, int] = (0, 1)) -> None:
        self._client = client
        self._js = js
        self._index, self._count = place

    async def recover(self, fold: Fold) -> dict[str, int]:
        """Fold all events; returns the last sequence of each instance's stream."""
        began = time.monotonic()
        await _persist(self._ensure_presence_stream)
        sequences: dict[str, int] = {}
        for name in await _persist(self._event_streams):
            instance_id, sequence = await self._recover_stream(name, fold)
            sequences[instance_id] = sequence
        duration_s = round(time.monotonic() - began, 3)
        extra = {"streams": len(sequences), "connections": len(fold.opened), "duration_s": duration_s}
        logger.info("presence recovered", extra=extra)
        return sequences

    async def write_checkpoint(
        self, instance_id: str, connections: list[Connection], sequence: int, last_time_ms: int, lost: dict[str, int]
    ) -> None:
        """Replace the checkpoint of an instance; does not try again.

        Args:
            instance_id: the instance.
            connections: what the events through `sequence` leave behind.
            sequence: of the last event accounted for.
            last_time_ms: time of the latest event.
            lost: edges that were given up, and when.

        Raises:
            UnavailableError: NATS does not answer; the checkpoint before is still there.
        """
        prefix = self._prefix(instance_id)
        try:
            info = await self._js.stream_info(subjects.event_stream(instance_id))
            before = await self._read_head(instance_id)
            slot = "b" if before is not None and before["slot"] == "a" else "a"
            count, digest = 0, hashlib.sha256()
            for chunk in _chunks(connections):
                await self._js.publish(f"{prefix}.{slot}.{count}", chunk, timeout=FETCH_S)
                digest.update(chunk)
                count += 1
            head = {
                "version": VERSION,
                "slot": slot,
                "chunks": count,
                "digest": digest.hexdigest(),
                "connections": len(connections),
                "sequence": sequence,
                "stream_created": str(info.created),
                "last_time_ms": last_time_ms,
                "lost_edges": lost,
            }
            await self._js.publish(f"{prefix}.head", json.dumps(head).encode(), timeout=FETCH_S)
            if before is not None:
                await self._js.purge_stream(PRESENCE_STREAM, subject=f"{prefix}.{before['slot']}.>")
        except (*_FAILURES, nats.js.errors.Error) as error:
            raise UnavailableError(f"checkpoint of {instance_id}: {error!r}", dependency="nats") from error

    def _prefix(self, instance_id: str) -> str:
        """Return what the subjects of an instance begin with; those of a shard are not for other numbers of shards."""
        prefix = f"{PRESENCE_SUBJECT}.{subjects.encode_token(instance_id)}"
        return prefix if self._count == 1 else f"{prefix}.{self._index}of{self._count}"

    def _is_ours(self, event: Event) -> bool:
        return shard_of(event.instance_id, event.client_id, self._count) == self._index

    async def _ensure_presence_stream(self) -> None:
        config = api.StreamConfig(
            name=PRESENCE_STREAM,
            subjects=[f"{PRESENCE_SUBJECT}.>"],
            storage=api.StorageType.FILE,
            max_msgs_per_subject=1,
            allow_direct=True,
        )
        await jetstream.ensure_stream(self._js, config)

    async def _event_streams(self) -> list[str]:
        """Return the names of the streams that hold lifecycle events."""
        names: list[str] = []
        while True:
            request = json.dumps({"offset": len(names), "subject": f"{subjects.EVENT}.>"}).encode()
            answer = json.loads((await self._client.request("$JS.API.STREAM.NAMES", request, timeout=FETCH_S)).data)
            if "error" in answer:
                raise UnavailableError(f"stream names: {answer['error']}", dependency="nats")
            page = answer.get("streams") or []
            names.extend(page)
            if not page or len(names) >= answer["total"]:
                return [name for name in names if name.startswith("EVENTS_")]

    async def _recover_stream(self, name: str, fold: Fold) -> tuple[str, int]:
        info = await _persist(lambda: self._js.stream_info(name))
        filters = info.config.subjects or []
        prefix = f"{subjects.EVENT}."
        instance_id = subjects.decode_token(filters[0].removeprefix(prefix).removesuffix(".>"))
        through = info.state.last_seq
        done = await _persist(lambda: self._read_checkpoint(instance_id, info, fold))
        reader = _EventReader(self._js, name, instance_id, fold, done, self._is_ours)
        while reader.done < through:
            if await _persist(lambda: reader.read(through)):
                break
        return instance_id, max(reader.done, through)

    async def _read_head(self, instance_id: str) -> dict[str, Any] | None:
        subject = f"{self._prefix(instance_id)}.head"
        try:
            message = await self._js.get_msg(PRESENCE_STREAM, subject=subject, direct=True)
        except nats.js.errors.NotFoundError:
            return None
        head: dict[str, Any] = json.loads(message.data or b"{}")
        return head if head.get("version") == VERSION else None

    async def _read_checkpoint(self, instance_id: str, info: api.StreamInfo, fold: Fold) -> int:
        """Add a checkpoint to `fold`; returns the event sequence that it accounts for, 0 when there is none."""
        head = await self._read_head(instance_id)
        if head is None:
            return 0
        extra: dict[str, object] = {"instance": instance_id, "sequence": head["sequence"]}
        if head["stream_created"] != str(info.created) or head["sequence"] > info.state.last_seq:
            logger.warning("checkpoint is of another stream", extra=extra)
            return 0
        prefix = f"{self._prefix(instance_id)}.{head['slot']}"
        digest = hashlib.sha256()
        chunks: list[bytes] = []
        for number in range(head["chunks"]):
            try:
                message = await self._js.get_msg(PRESENCE_STREAM, subject=f"{prefix}.{number}", direct=True)
            except nats.js.errors.NotFoundError:
                break
            chunks.append(message.data or b"")
            digest.update(chunks[-1])
        if digest.hexdigest() != head["digest"]:
            logger.error("checkpoint is damaged, reading all events", extra=extra)
            return 0
        for chunk in chunks:
            for row in _rows(instance_id, chunk):
                fold.add(row)
            await asyncio.sleep(0)  # heartbeats of NATS go on
        fold.last_time_ms = max(fold.last_time_ms, head["last_time_ms"])
        for edge, lost_ms in head["lost_edges"].items():
            fold.lost_edges[edge] = max(lost_ms, fold.lost_edges.get(edge, 0))
        return int(head["sequence"])


class _EventReader:
    """Folds the events of a stream, batch by batch."""

    def __init__(
        self,
        js: JetStreamContext,
        name: str,
        instance_id: str,
        fold: Fold,
        done: int,
        is_ours: Callable[[Event], bool],
    ) -> None:
        self._is_ours = is_ours
        self._js = js
        self._name = name
        self._instance_id = instance_id
        self._fold = fold
        self._logged = time.monotonic()
        self.done = done
        """Sequence of the last event folded."""

    async def read(self, through: int) -> bool:
        """Fold on through a sequence; returns whether it got there. To be called again after a failure."""
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.done + 1,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=60.0,
            mem_storage=True,
            num_replicas=1,
        )
        # Only limit on memory is the batch: an event has at most 400 KB, that of a hostile client id.
        consumer = await self._js.pull_subscribe("", stream=self._name, config=config, pending_bytes_limit=512 << 20)
        try:
            pending = (await consumer.consumer_info()).num_pending or 0
            while pending and self.done < through:
                messages = await consumer.fetch(BATCH, timeout=FETCH_S)
                for message in messages:
                    headers = message.headers or {}
                    try:
                        event = parse_event(self._instance_id, message.data, headers.get("Edge", ""))
                    except ValueError as error:
                        extra = {"stream": self._name, "subject": message.subject, "error": str(error)}
                        logger.warning("event not understood", extra=extra)
                    else:
                        if self._is_ours(event):
                            self._fold.apply(event)
                metadata = messages[-1].metadata
                self.done = metadata.sequence.stream
                pending = metadata.num_pending
                if time.monotonic() - self._logged > PROGRESS_S:
                    self._logged = time.monotonic()
                    logger.info("reading events", extra={"stream": self._name, "at": self.done, "of": through})
            return True
        finally:
            await consumer.unsubscribe()


async def _persist(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what `attempt` returns once it succeeds."""
    logged = False
    while True:
        try:
            return await attempt()
        except (*_FAILURES, nats.js.errors.Error) as error:
            if not logged:
                logged = True
                logger.warning("nats does not answer, trying on", extra={"error": repr(error)})
        await asyncio.sleep(PAUSE_S)


def _chunks(connections: list[Connection]) -> Iterator[bytes]:
    """Yield rows of connections as JSON documents of bounded size."""
    rows: list[bytes] = []
    size = 0
    for connection in connections:
        row = json.dumps(
            (
                connection.channel_id,
                connection.client_id,
                connection.address,
                connection.connect_time_ms,
                connection.edge.name,
            ),
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
        if rows and size + len(row) > CHUNK_BYTES:
            yield b"[" + b",\n".join(rows) + b"]"
            rows, size = [], 0
        rows.append(row)
        size += len(row) + 2
    if rows:
        yield b"[" + b",\n".join(rows) + b"]"


def _rows(instance_id: str, chunk: bytes) -> Iterator[Opened]:
    for channel_id, client_id, address, connect_time_ms, edge in json.loads(chunk):
        yield Opened(instance_id, client_id, channel_id, address, connect_time_ms, edge)
