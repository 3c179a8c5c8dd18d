"""Streams of instances that are made when they are first needed, and again when they are missing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from nats.js import JetStreamContext, api

from services.common.errors import UnavailableError
from services.common.jetstream import ensure_stream
from services.router.ports import Log

logger = logging.getLogger(__name__)

RETRY_S = 0.5
LOOK_S = 2.0
"""Time without progress after which a stream is taken for missing."""


class _Stream:
    __slots__ = ("done", "exists", "looked", "pending")

    def __init__(self) -> None:
        self.exists = False
        self.pending = 0  # messages written and not stored
        self.done = 0  # messages stored
        self.looked = -1  # `done` at the last look


class StreamMaker:
    """Makes one kind of stream, one for each instance, while what is written to it waits. Owned by one event loop.

    Args:
        config: returns the configuration of the stream of an instance.
    """

    def __init__(self, config: Callable[[str], api.StreamConfig]) -> None:
        self._config = config
        self._streams: dict[str, _Stream] = {}
        self._writing: dict[str, _Stream] = {}  # those with messages that are not stored
        self._wake = asyncio.Event()

    def exists(self, instance_id: str) -> None:
        """Note that an instance has its stream."""
        self._stream(instance_id).exists = True

    def pending(self, instance_id: str) -> int:
        """Return how many messages were written and not stored."""
        stream = self._streams.get(instance_id)
        return stream.pending if stream is not None else 0

    def write(  # noqa: D417 - the others are those of the log
        self,
        log: Log,
        instance_id: str,
        subject: str,
        payload: bytes,
        message_id: str,
        lines: bytes,
        token: object,
        may_repeat: bool,  # noqa: FBT001 - hot path
    ) -> None:
        """Write a message to the stream of an instance.

        Args:
            log: calls whoever calls `done`.
            instance_id: of the stream.
        """
        stream = self._stream(instance_id)
        stream.pending += 1
        if stream.pending == 1:
            self._writing[instance_id] = stream
            stream.looked = -1
            self._wake.set()
        if not stream.exists:
            log.probe(subject)
        log.write_lines(subject, payload, message_id, lines, token, may_repeat, False)  # noqa: FBT003 - hot path

    def done(self, instance_id: str) -> None:
        """Note that a message is stored, or never will be."""
        stream = self._stream(instance_id)
        stream.done += 1
        stream.pending -= 1
        if not stream.pending:
            del self._writing[instance_id]

    async def run(self, js: JetStreamContext, log: Log) -> None:
        """Make the streams that are needed, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._writing else None):
                    await self._wake.wait()
            self._wake.clear()
            for instance_id, stream in list(self._writing.items()):
                is_moving = stream.exists and stream.looked != stream.done
                stream.looked = stream.done
                if is_moving or not log.is_connected:
                    continue
                try:
                    await ensure_stream(js, self._config(instance_id))
                except UnavailableError as error:
                    logger.warning("can't make a stream, trying on", extra={"error": str(error)})
                    await asyncio.sleep(RETRY_S)
                    self._wake.set()
                else:
                    stream.exists = True

    def _stream(self, instance_id: str) -> _Stream:
        stream = self._streams.get(instance_id)
        if stream is None:
            stream = self._streams[instance_id] = _Stream()
        return stream
