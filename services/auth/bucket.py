"""A KV bucket and the in-memory view that follows it.

One task, `Bucket.run`, is the only writer of the view: it reads the whole bucket, then follows its changes. It reads
everything anew after each reconnection to NATS, and whenever the bucket has moved on without telling us, so that no
deletion is missed whatever happened to the watch. A call that changes something waits until the view shows it.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from typing import Generic, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.kv import KV_DEL, KV_OP, KV_PURGE, MSG_ROLLUP_SUBJECT, KeyValue

from services.auth import metrics
from services.common import ticks
from services.common.errors import AlreadyExistsError, NotFoundError, UnavailableError
from services.common.jetstream import DEPENDENCY, ensure_bucket

logger = logging.getLogger(__name__)

RETRY_S = 0.25
"""Pause before the bucket is read again after a fault."""
POLL_S = 1.0
"""How often a quiet watch looks whether NATS was reconnected."""
VERIFY_POLLS = 10
"""After so many quiet polls the watch compares itself with the bucket."""
READ_SILENCE_S = 5.0
"""A full reading without an entry for so long is given up and begun anew."""
VISIBLE_S = 5.0
"""How long a change may take to come back through the watch."""
ATTEMPTS = 5
"""How often a change is tried that others overtake."""
MARKER_S = 86_400
"""How long the bucket remembers that an entry was deleted."""
PIPELINED = 256
"""Writes of one call that wait for JetStream at the same time."""

_FAULTS = (nats.errors.Error, TimeoutError, OSError)

T = TypeVar("T")


class _StaleWatchError(Exception):
    """The watch may have missed something: read everything anew."""


@contextlib.contextmanager
def _nats_faults() -> Generator[None]:
    """Turn faults of nats-py into `UnavailableError`."""
    try:
        yield
    except _FAULTS as error:
        raise UnavailableError(f"NATS: {error!r}", dependency=DEPENDENCY) from error


class Bucket(abc.ABC, Generic[T]):
    """All entries of a bucket, stored and in memory. Owned by one event loop.

    Args:
        client: connected to NATS.
        name: of the bucket; made when it does not exist.
    """

    def __init__(self, *, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=2)
        self._kv: KeyValue | None = None
        self._revision = 0
        self._current_s = time.monotonic()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self.loaded = asyncio.Event()
        """Set when the bucket has been read for the first time."""

    @property
    def revision(self) -> int:
        """Revision of the bucket that the view shows."""
        return self._revision

    @property
    def age_s(self) -> float:
        """Seconds since the view was last known to show every change; grows while NATS is away."""
        return time.monotonic() - self._current_s

    @abc.abstractmethod
    def decoded(self, key: str, stored: bytes) -> T | None:
        """Return what is stored under a key; None: it can't be read, and is as good as deleted."""

    @abc.abstractmethod
    def replace(self, entries: dict[str, T]) -> None:
        """Make `entries` the whole content of the view."""

    @abc.abstractmethod
    def apply(self, key: str, entry: T | None) -> None:
        """Put (or delete, with None) an entry of the view."""

    async def create_entry(self, key: str, stored: bytes, *, ttl_s: float | None = None) -> None:
        """Store an entry that must not exist yet, and wait until the view shows it.

        Args:
            key: where.
            stored: its bytes.
            ttl_s: seconds until JetStream forgets it; None: never.

        Raises:
            AlreadyExistsError: there is one under this key.
            UnavailableError: NATS does not answer.
        """
        await self.visible(await self._create(key, stored, ttl_s))

    async def create_entries(self, entries: Iterable[tuple[str, bytes, float | None]]) -> list[bool]:
        """Store many entries at once and wait until the view shows them.

        Args:
            entries: key, bytes and seconds to live of each.

        Returns:
            For each, in order, whether it is new; one that existed stays as it was.

        Raises:
            UnavailableError: NATS does not answer; some may be stored.
        """
        slots = asyncio.Semaphore(PIPELINED)

        async def create(key: str, stored: bytes, ttl_s: float | None) -> int:
            async with slots:
                try:
                    return await self._create(key, stored, ttl_s)
                except AlreadyExistsError:
                    return 0

        revisions = await _all(create(*entry) for entry in entries)
        await self.visible(max(revisions, default=0))
        return [revision > 0 for revision in revisions]

    async def put_entry(self, key: str, stored: bytes) -> None:
        """Store an entry over the one under its key, and wait until the view shows it.

        Raises:
            UnavailableError: NATS does not answer.
        """
        with _nats_faults():
            revision = await self._writable().put(key, stored)
        await self.visible(revision)

    async def update_entry(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Change an entry as it is now, whoever else changes it, and wait until the view shows it.

        Args:
            key: where.
            change: returns the new bytes of the stored ones; called again when somebody else was faster.

        Raises:
            NotFoundError: there is none under this key.
            UnavailableError: NATS does not answer, or others change it all the time.
        """
        for _ in range(ATTEMPTS):
            kv = self._writable()
            try:
                with _nats_faults():
                    entry = await kv.get(key)
                    revision = await kv.update(key, change(entry.value or b""), last=entry.revision)
            except UnavailableError as error:
                if isinstance(error.__cause__, nats.js.errors.KeyWrongLastSequenceError):
                    continue
                if isinstance(error.__cause__, nats.js.errors.KeyNotFoundError):
                    raise NotFoundError("it does not exist", resource=key) from error
                raise
            return await self.visible(revision)
        raise UnavailableError("others change it all the time", dependency=DEPENDENCY)

    async def delete(self, key: str) -> None:
        """Delete what is stored under a key, and wait until the view shows it. Idempotent.

        Raises:
            UnavailableError: NATS does not answer.
        """
        await self.visible(await self._delete(key))

    async def delete_entries(self, keys: Iterable[str]) -> None:
        """Delete many entries at once, and wait until the view shows it. Idempotent.

        Raises:
            UnavailableError: NATS does not answer; some may be deleted.
        """
        slots = asyncio.Semaphore(PIPELINED)

        async def delete(key: str) -> int:
            async with slots:
                return await self._delete(key)

        await self.visible(max(await _all(delete(key) for key in keys), default=0))

    async def _delete(self, key: str) -> int:
        self._writable()
        with _nats_faults():
            # What `KeyValue.purge` sends, which does not tell the revision. A watch sees the marker, and one that is
            # away for longer than the marker lives reads everything anew.
            headers = {KV_OP: KV_PURGE, Header.ROLLUP: MSG_ROLLUP_SUBJECT}
            subject = f"$KV.{self.name}.{key}"
            return (await self._js.publish(subject, headers=headers, msg_ttl=MARKER_S)).seq

    async def _create(self, key: str, stored: bytes, ttl_s: float | None) -> int:
        kv = self._writable()
        try:
            with _nats_faults():
                return await kv.create(key, stored, msg_ttl=ttl_s)
        except UnavailableError as error:
            if isinstance(error.__cause__, nats.js.errors.KeyWrongLastSequenceError):
                raise AlreadyExistsError("it exists already") from error
            raise

    def _writable(self) -> KeyValue:
        # nats-py would hold the message and send it after the reconnection, long after the caller was refused.
        if self._kv is None or not self._client.is_connected:
            raise UnavailableError("NATS is not connected", dependency=DEPENDENCY)
        return self._kv

    async def visible(self, revision: int) -> None:
        """Wait until the view shows a revision of the bucket.

        Raises:
            UnavailableError: it takes too long.
        """
        if self._revision >= revision:
            return
        shown = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (revision, next(self._numbers), shown))
        try:
            async with asyncio.timeout(VISIBLE_S):
                await shown
        except TimeoutError as error:
            raise UnavailableError("stored, but not confirmed by the watch", dependency=DEPENDENCY) from error

    async def run(self) -> None:
        """Keep the view equal to the bucket for ever."""
        while True:
            try:
                await self._follow()
            except (_StaleWatchError, UnavailableError, *_FAULTS) as error:
                logger.warning("bucket is read anew", extra={"bucket": self.name, "cause": repr(error)})
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Read the whole bucket, then follow it until the watch may have missed something."""
        connection = self._connection()
        kv = await ensure_bucket(self._js, self.name)
        # Before the watch begins: what is written in between comes through the watch.
        state = (await kv.status()).stream_info.state
        async with _watching(kv) as watcher:
            entries: dict[str, T] = {}
            revision = await self._read(watcher, entries) if state.messages else 0
            self.replace(entries)
            self._kv = kv
            self._current_s = time.monotonic()
            # The newest message may have been removed, by hand or by its age; without it, every check would find us
            # behind.
            self._advance(max(revision, state.last_seq))
            self.loaded.set()
            metrics.READS.labels(self.name).inc()
            logger.info("bucket read", extra={"bucket": self.name, "entries": len(entries), "revision": revision})
            await self._apply_changes(kv, watcher, connection)

    async def _read(self, watcher: KeyValue.KeyWatcher, entries: dict[str, T]) -> int:
        """Add what is stored to `entries`; returns the newest revision."""
        revision = 0
        while True:
            entry = await _next(watcher, READ_SILENCE_S)
            if entry is _QUIET:
                raise _StaleWatchError("reading the bucket came to a halt")
            if isinstance(entry, KeyValue.Entry):
                revision = max(revision, entry.revision or 0)
                if (decoded := self._decoded(entry)) is not None:
                    entries[entry.key] = decoded
                # Not the watcher's own mark of the end: it can come early, when the answer about the consumer
                # overtakes the entries, and an empty view would cut off every client.
                if entry.delta == 0:
                    return revision

    async def _apply_changes(self, kv: KeyValue, watcher: KeyValue.KeyWatcher, connection: int) -> None:
        quiet = 0
        while True:
            entry = await _next(watcher, ticks.next_tick(POLL_S) - asyncio.get_running_loop().time())
            if connection != self._connection():
                raise _StaleWatchError("NATS was reconnected")
            if self._client.is_connected:
                self._current_s = time.monotonic()
            if isinstance(entry, KeyValue.Entry):
                quiet = 0
                self.apply(entry.key, self._decoded(entry))
                self._advance(entry.revision or self._revision)
            elif entry is _QUIET:
                quiet += 1
                if quiet % VERIFY_POLLS == 0 and self._client.is_connected:
                    await self._verify(kv, watcher)

    async def _verify(self, kv: KeyValue, watcher: KeyValue.KeyWatcher) -> None:
        revision = self._revision
        last = (await kv.status()).stream_info.state.last_seq
        # A change that is on its way is no fault: only an empty queue behind the bucket is.
        if last != revision and revision == self._revision and watcher._updates.empty():  # noqa: SLF001 - no public way
            raise _StaleWatchError("the watch missed a change")

    def _connection(self) -> int:
        """Return a number that changes with each reconnection."""
        return self._client.stats["reconnects"]

    def _advance(self, revision: int) -> None:
        """Note that the view shows a revision, and wake who waits for it."""
        self._revision = revision
        while self._waiting and self._waiting[0][0] <= revision:
            _, _, shown = heapq.heappop(self._waiting)
            if not shown.done():
                shown.set_result(None)

    def _decoded(self, entry: KeyValue.Entry) -> T | None:
        if entry.operation in {KV_DEL, KV_PURGE}:
            return None
        return self.decoded(entry.key, entry.value or b"")


class _Quiet:
    """Nothing came."""


_QUIET = _Quiet()


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results in order; the first failure is raised when all have ended."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def _next(watcher: KeyValue.KeyWatcher, timeout_s: float) -> KeyValue.Entry | _Quiet | None:
    """Return the next entry, None for the watcher's own mark, `_QUIET` when nothing came in time."""
    try:
        entry = await watcher.updates(timeout=timeout_s)  # type: ignore[no-untyped-call]  # nats-py
    except nats.errors.TimeoutError:
        return _QUIET
    return entry if isinstance(entry, KeyValue.Entry) else None


@contextlib.asynccontextmanager
async def _watching(kv: KeyValue) -> AsyncGenerator[KeyValue.KeyWatcher]:
    watcher = await kv.watchall(inactive_threshold=30)
    try:
        yield watcher
    finally:
        with contextlib.suppress(*_FAULTS):
            async with asyncio.timeout(1):
                await watcher.stop()  # type: ignore[no-untyped-call]  # nats-py
