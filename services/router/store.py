"""The edges that a router serves, noted so that the next router process knows whom to wait for."""

from __future__ import annotations

import asyncio
import logging

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from services.common.errors import UnavailableError
from services.common.jetstream import ensure_bucket
from services.common.subjects import decode_token, encode_token

logger = logging.getLogger(__name__)

BUCKET = "router_edges"
"""Key-value bucket: index of the router and encoded edge id, `0.edge-1`, to the incarnation of the edge's process."""
RETRY_S = 0.5


class KnownEdges:
    """Notes edges in JetStream, behind the calls: `note` and `forget` return at once, and `run` writes.

    A change that is not written when the process ends is lost: the next process then routes without waiting for an
    edge that came in the last moments, or waits its grace time for one that left.

    Args:
        router_index: each router notes its own.
    """

    def __init__(self, router_index: int = 0) -> None:
        self._prefix = f"{router_index}."
        self._changes: dict[str, str | None] = {}
        self._changed = asyncio.Event()

    def note(self, edge_id: str, incarnation: str) -> None:
        """Note that an edge is served."""
        self._changes[edge_id] = incarnation
        self._changed.set()

    def forget(self, edge_id: str) -> None:
        """Note that an edge is gone."""
        self._changes[edge_id] = None
        self._changed.set()

    async def load(self, js: JetStreamContext) -> dict[str, str]:
        """Return the incarnation of each edge noted by earlier processes, trying until NATS answers."""
        while True:
            try:
                return await self._read(await ensure_bucket(js, BUCKET))
            except (nats.errors.Error, UnavailableError, TimeoutError) as error:
                logger.warning("can't read the known edges, trying on", extra={"error": repr(error)})
                await asyncio.sleep(RETRY_S)

    async def run(self, js: JetStreamContext) -> None:
        """Write changes until cancelled."""
        bucket: KeyValue | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._changes:
                edge_id, incarnation = next(iter(self._changes.items()))
                try:
                    bucket = bucket or await ensure_bucket(js, BUCKET)
                    if incarnation is None:
                        await bucket.delete(self._prefix + encode_token(edge_id))
                    else:
                        await bucket.put(self._prefix + encode_token(edge_id), incarnation.encode())
                except (nats.errors.Error, UnavailableError, TimeoutError) as error:
                    logger.warning("can't note an edge, trying on", extra={"edge_id": edge_id, "error": repr(error)})
                    bucket = None
                    await asyncio.sleep(RETRY_S)
                    continue
                _raise_if_cancelled()
                if self._changes.get(edge_id, "") == incarnation:  # not changed again meanwhile
                    del self._changes[edge_id]

    async def _read(self, bucket: KeyValue) -> dict[str, str]:
        known: dict[str, str] = {}
        try:
            keys = await bucket.keys()
        except nats.js.errors.NoKeysError:
            return known
        for key in keys:
            if not key.startswith(self._prefix):
                continue
            try:
                entry = await bucket.get(key)
            except nats.js.errors.KeyNotFoundError:  # deleted since
                continue
            known[decode_token(key.removeprefix(self._prefix))] = (entry.value or b"").decode()
        return known


def _raise_if_cancelled() -> None:
    # `asyncio.wait_for` before Python 3.12, which nats-py uses, forgets a cancellation that comes with its result.
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
