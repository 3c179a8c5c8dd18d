"""The KV bucket `resources` and the in-memory view that follows it.

One task, `Store.run`, is the only writer of the view: it reads the whole bucket, then follows its changes. It reads
everything anew after each reconnection to NATS, and whenever the bucket has moved on without telling us, so that no
deletion is missed whatever happened to the watch. A call that changes something waits until the view shows it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Generator

import nats.errors
import nats.js.errors
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue

from services.auth import metrics
from services.auth.domain import records
from services.auth.domain.records import AccessKey, BadRecordError, Record, TokenKey
from services.auth.domain.resources import ChangeSet, Resources
from services.auth.sealing import Sealer, SealError, token_key_owner
from services.common.errors import AlreadyExistsError, UnavailableError
from services.common.jetstream import DEPENDENCY, ensure_bucket

logger = logging.getLogger(__name__)

BUCKET = "resources"
RETRY_S = 0.25
"""Pause before the bucket is read again after a fault."""
POLL_S = 0.5
"""How often a quiet watch looks whether NATS was reconnected."""
VERIFY_POLLS = 20
"""After so many quiet polls the watch compares itself with the bucket."""
READ_SILENCE_S = 5.0
"""A full reading without an entry for so long is given up and begun anew."""
VISIBLE_S = 5.0
"""How long a change may take to come back through the watch."""

_FAULTS = (nats.errors.Error, TimeoutError, OSError)


class _StaleWatchError(Exception):
    """The watch may have missed something: read everything anew."""


@contextlib.contextmanager
def _nats_faults() -> Generator[None]:
    """Turn faults of nats-py into `UnavailableError`."""
    try:
        yield
    except _FAULTS as error:
        raise UnavailableError(f"NATS: {error!r}", dependency=DEPENDENCY) from error


class Store:
    """All resources, stored and in memory. Owned by one event loop.

    Args:
        client: connected to NATS.
        resources: the view, written only by `run`.
        sealer: opens the secrets of AccessKeys.
        changed: called with what changed for the edges, after the view has changed.
    """

    def __init__(
        self, *, client: Client, resources: Resources, sealer: Sealer, changed: Callable[[ChangeSet], None]
    ) -> None:
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=2)
        self._resources = resources
        self._sealer = sealer
        self._changed = changed
        self._kv: KeyValue | None = None
        self._revision = 0
        self._progress = asyncio.Event()
        self.loaded = asyncio.Event()
        """Set when the bucket has been read for the first time."""

    async def create(self, record: Record) -> None:
        """Store a record that must not exist yet, and wait until the view shows it.

        Raises:
            AlreadyExistsError: there is one under its key.
            UnavailableError: NATS does not answer.
        """
        kv = self._writable()
        try:
            with _nats_faults():
                revision = await kv.create(record.key, records.encode(record))
        except UnavailableError as error:
            if isinstance(error.__cause__, nats.js.errors.KeyWrongLastSequenceError):
                raise AlreadyExistsError("it exists already") from error
            raise
        await self._visible(lambda: self._revision >= revision)

    async def put(self, record: Record) -> None:
        """Store a record over the one under its key, and wait until the view shows it.

        Raises:
            UnavailableError: NATS does not answer.
        """
        with _nats_faults():
            revision = await self._writable().put(record.key, records.encode(record))
        await self._visible(lambda: self._revision >= revision)

    async def delete(self, key: str) -> None:
        """Delete what is stored under a key, and wait until the view shows it. Idempotent.

        Raises:
            UnavailableError: NATS does not answer.
        """
        with _nats_faults():
            # The marker stays in the bucket, so that a watch can't miss it.
            await self._writable().purge(key)
        await self._visible(lambda: self._resources.record(key) is None)

    def _writable(self) -> KeyValue:
        # nats-py would hold the message and send it after the reconnection, long after the caller was refused.
        if self._kv is None or not self._client.is_connected:
            raise UnavailableError("NATS is not connected", dependency=DEPENDENCY)
        return self._kv

    async def _visible(self, is_visible: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(VISIBLE_S):
                while not is_visible():
                    await self._progress.wait()
        except TimeoutError as error:
            raise UnavailableError("stored, but not confirmed by the watch", dependency=DEPENDENCY) from error

    async def run(self) -> None:
        """Keep the view equal to the bucket for ever."""
        while True:
            try:
                await self._follow()
            except (_StaleWatchError, UnavailableError, *_FAULTS) as error:
                logger.warning("resources are read anew", extra={"cause": repr(error)})
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Read the whole bucket, then follow it until the watch may have missed something."""
        connection = self._connection()
        kv = await ensure_bucket(self._js, BUCKET)
        # Before the watch begins: what is written in between comes through the watch.
        state = (await kv.status()).stream_info.state
        async with _watching(kv) as watcher:
            entries = await self._read(watcher) if state.messages else []
            stored = {entry.key: r for entry in entries if (r := self._record(entry)) is not None}
            self._revision = max((entry.revision or 0 for entry in entries), default=0)
            # The newest message may have been removed by hand; without it, every check would find us behind.
            self._revision = max(self._revision, state.last_seq)
            self._announce(self._resources.replace(stored))
            self._kv = kv
            self.loaded.set()
            metrics.READS.inc()
            logger.info("resources read", extra={"resources": len(stored), "revision": self._revision})
            await self._apply_changes(kv, watcher, connection)

    async def _read(self, watcher: KeyValue.KeyWatcher) -> list[KeyValue.Entry]:
        entries: list[KeyValue.Entry] = []
        while True:
            entry = await _next(watcher, READ_SILENCE_S)
            if entry is _QUIET:
                raise _StaleWatchError("reading the bucket came to a halt")
            if isinstance(entry, KeyValue.Entry):
                entries.append(entry)
                # Not the watcher's own mark of the end: it can come early, when the answer about the consumer
                # overtakes the entries, and an empty view would cut off every client.
                if entry.delta == 0:
                    return entries

    async def _apply_changes(self, kv: KeyValue, watcher: KeyValue.KeyWatcher, connection: int) -> None:
        quiet = 0
        while True:
            entry = await _next(watcher, POLL_S)
            if connection != self._connection():
                raise _StaleWatchError("NATS was reconnected")
            if isinstance(entry, KeyValue.Entry):
                quiet = 0
                self._revision = entry.revision or self._revision
                self._announce(self._resources.apply(entry.key, self._record(entry)))
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

    def _announce(self, changes: ChangeSet) -> None:
        metrics.RESOURCES.set(len(self._resources.records()))
        if changes:
            self._changed(changes)
        # Wakes every waiter, also those that will find that their change is not there yet.
        self._progress.set()
        self._progress = asyncio.Event()

    def _record(self, entry: KeyValue.Entry) -> Record | None:
        """Return the record of an entry; None: it is deleted, or can't be read and is as good as deleted."""
        if entry.operation in {KV_DEL, KV_PURGE}:
            return None
        try:
            record = records.decode(entry.key, entry.value or b"")
        except BadRecordError as error:
            logger.exception("stored resource can't be read", extra={"key": entry.key, "cause": str(error)})
            return None
        try:
            return self._opened(record)
        except SealError as error:
            logger.exception("secret can't be decrypted", extra={"key": entry.key, "cause": str(error)})
            return record

    def _opened(self, record: Record) -> Record:
        match record:
            case AccessKey():
                secret = self._sealer.unseal(record.sealed_secret, record.instance_id, record.access_key_id)
                return dataclasses.replace(record, secret=secret)
            case TokenKey():
                key = self._sealer.unseal(record.sealed_secret, *token_key_owner(record.key_id))
                return dataclasses.replace(record, cipher=AESGCM(base64.b64decode(key)))
        return record


class _Quiet:
    """Nothing came."""


_QUIET = _Quiet()


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
