"""Wills of clients whose edge was lost, on their way to the router.

They wait in memory until the router has taken them over (`RouterService.Publish`): in logs and delivered. One batch at
a time, in order, tried again until the router answers; a repeat is safe, since the message id is the channel's. While
it is away, at most 100,000 wills or 64 MiB wait; when that is reached, further ones are dropped, counted and logged.

Wills are not stored, and the lifecycle events hold no payloads. So a will is lost in one case: the edge dies, and so
does the session process that has it, before the router took it - be it that it had not noticed the end of the edge, or
that the router was away. While the edge lives, a session process that starts gets it again with the edge's snapshot.

Whether the client may still publish it, the router judges: each message says by what account, AccessKey and tokens.

A will may come twice when its edge was not dead but cut off for longer than its grace: told to close the connections,
the edge sends their wills itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from typing import Protocol

import grpc
from grpc import aio

from services.common.sharding import router_of
from services.session.domain.records import Will
from weimq.router.v1 import router_pb2

logger = logging.getLogger(__name__)

MAX_WILLS = 100_000
"""Wills that wait for the router."""
MAX_BYTES = 64 << 20
"""Bytes of wills that wait for the router."""
BATCH = 500
"""Wills in one call; the router takes 1,000."""
BATCH_BYTES = 4 << 20
"""Where a batch ends; one more will, of at most 200 KB, keeps it far below the 64 MiB of a gRPC message."""
CALL_S = 60.0
"""How long the router may take: it waits for the edges with a matching interest, also for those that just died. HTTP/2
pings tell much earlier that it is gone."""
MIN_PAUSE_S = 0.2
MAX_PAUSE_S = 2.0
"""Pause between attempts; doubled after each."""


class Publish(Protocol):
    """`RouterService.Publish` of a stub."""

    def __call__(
        self, request: router_pb2.PublishRequest, /, *, timeout: float
    ) -> Awaitable[router_pb2.PublishResponse]:
        """Publish messages."""


class RouterGroup:
    """`RouterService.Publish` of several routers: each message goes to the router of its parent topic.

    Args:
        routers: in the order of their index.
    """

    def __init__(self, routers: Sequence[Publish]) -> None:
        self._routers = tuple(routers)

    async def __call__(
        self,
        request: router_pb2.PublishRequest,
        /,
        *,
        timeout: float,  # noqa: ASYNC109 - of a stub
    ) -> router_pb2.PublishResponse:
        """Publish messages; see `Publish`. When one router fails, the others may have taken theirs."""
        parts: dict[int, router_pb2.PublishRequest] = {}
        for message in request.messages:
            index = router_of(message.instance_id, message.topic.partition("/")[0], len(self._routers))
            parts.setdefault(index, router_pb2.PublishRequest()).messages.append(message)
        for index, part in parts.items():
            await self._routers[index](part, timeout=timeout)
        return router_pb2.PublishResponse()


class WillPublisher:
    """Publishes wills. Owned by one event loop; `run` is its pump."""

    def __init__(self, publish: Publish, *, max_wills: int = MAX_WILLS, max_bytes: int = MAX_BYTES) -> None:
        self._publish = publish
        self._max_wills = max_wills
        self._max_bytes = max_bytes
        self._wills: deque[Will] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._is_away = False
        self._is_overflowing = False
        self.dropped = 0
        """Wills that found no room."""
        self.refused = 0
        """Wills that the router will never take."""

    @property
    def waiting(self) -> int:
        """How many wills wait."""
        return len(self._wills)

    def add(self, wills: Iterable[Will]) -> None:
        """Have wills published; those that find no room are dropped."""
        for will in wills:
            size = will.size()
            if len(self._wills) >= self._max_wills or self._bytes + size > self._max_bytes:
                self._drop()
                continue
            self._wills.append(will)
            self._bytes += size
        if self._wills:
            self._filled.set()
            self._drained.clear()

    async def drained(self) -> None:
        """Wait until the router has taken over everything."""
        await self._drained.wait()

    async def run(self) -> None:
        """Publish what is added until cancelled."""
        while True:
            await self._filled.wait()
            batch = self._first()
            if await self._take_over(batch):
                self._remove(len(batch))
                continue
            for will in batch:  # which of them is it?
                if not await self._take_over([will]):
                    self.refused += 1
                    # Neither topic nor payload: they are the client's.
                    extra = {"instance": will.instance_id, "channel": will.channel_id}
                    logger.error("will refused by the router and dropped", extra=extra)
                self._remove(1)

    def _drop(self) -> None:
        self.dropped += 1
        if not self._is_overflowing:
            self._is_overflowing = True
            extra = {"waiting": len(self._wills), "bytes": self._bytes}
            logger.error("too many wills wait for the router, dropping further ones", extra=extra)

    def _first(self) -> list[Will]:
        batch: list[Will] = []
        size = 0
        for will in self._wills:
            if len(batch) >= BATCH or size >= BATCH_BYTES:
                break
            batch.append(will)
            size += will.size()
        return batch

    def _remove(self, count: int) -> None:
        for _ in range(count):
            self._bytes -= self._wills.popleft().size()
        if self._wills:
            return
        self._filled.clear()
        self._drained.set()
        if self._is_overflowing:
            self._is_overflowing = False
            logger.warning("wills have room again", extra={"dropped": self.dropped})

    async def _take_over(self, wills: list[Will]) -> bool:
        """Publish wills, trying on while the router is away; returns False when it refuses them."""
        request = router_pb2.PublishRequest(messages=[_message(will) for will in wills])
        pause_s = MIN_PAUSE_S
        while True:
            try:
                await self._publish(request, timeout=CALL_S)
            except aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    return False
                if not self._is_away:
                    self._is_away = True
                    extra = {"waiting": len(self._wills), "error": f"{error.code().name}: {error.details()}"}
                    logger.warning("router does not take wills, trying on", extra=extra)
            else:
                if self._is_away:
                    self._is_away = False
                    logger.info("router takes wills again", extra={"waiting": len(self._wills)})
                return True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


def _message(will: Will) -> router_pb2.PublishedMessage:
    return router_pb2.PublishedMessage(
        instance_id=will.instance_id,
        topic=will.topic,
        payload=will.payload,
        qos=will.qos,
        retain=will.retain,
        client_id=will.client_id,
        clean_session=will.clean_session,
        message_id=f"will-{will.channel_id}",
        publisher=router_pb2.PublisherIdentity(
            account_id=will.publisher.account_id,
            access_key_id=will.publisher.access_key_id,
            token_ids=will.publisher.token_ids,
        ),
    )
