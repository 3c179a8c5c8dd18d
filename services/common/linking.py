"""Keeps the caller's end of a link up: open a stream, introduce ourselves, exchange frames, begin again."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import random
from collections.abc import Callable
from typing import Any, TypeVar

from grpc import aio

from services.common.link import Link, LinkBrokenError, Message
from services.common.readiness import Readiness

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
"""Deadline of connecting and of the peer's first message."""

BACKOFF_S = (0.1, 0.5)
"""Range of the pause before the next attempt; random, so that callers do not come all at once."""

S = TypeVar("S", bound=Message)
R = TypeVar("R", bound=Message)


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What the peer's first message says."""

    resumed: bool
    received_through: int


async def keep_linked(
    *,
    name: str,
    link: Link[S, R],
    readiness: Readiness,
    open_stream: Callable[[], aio.StreamStreamCall[S, R]],
    greeting: Callable[[], S],
    opened: Callable[[R], Opened],
    broken: Callable[[], None] | None = None,
) -> None:
    """Keep a link up until cancelled.

    Args:
        name: of the peer, for `readiness` and the log.
        link: survives the streams.
        readiness: told when the link is up.
        open_stream: starts the RPC.
        greeting: returns the first message that we send.
        opened: takes the first message of the peer and prepares our state for what it says.
        broken: called when a stream is over.
    """
    while True:
        call = open_stream()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await call.write(greeting())
                answer = opened(await _first(call))
            if answer.resumed:
                link.resume(answer.received_through)
            else:
                link.reset()
            logger.info("link up", extra={"peer": name, "resumed": answer.resumed})
            readiness.mark(name, present=True)
            await link.exchange(functools.partial(_read, call), call.write)
        except (LinkBrokenError, TimeoutError, aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError) as error:
            text = error.details() if isinstance(error, aio.AioRpcError) else str(error)
            logger.warning("link down", extra={"peer": name, "error": text})
        finally:
            readiness.mark(name, present=False)
            if broken is not None:
                broken()
            call.cancel()
        await asyncio.sleep(random.uniform(*BACKOFF_S))  # noqa: S311 - spreads load, no secret


async def _first(call: aio.StreamStreamCall[Any, R]) -> R:
    message = await _read(call)
    if message is None:
        raise LinkBrokenError("the stream ended before it was open")
    return message


async def _read(call: aio.StreamStreamCall[Any, R]) -> R | None:
    message = await call.read()
    return None if message is aio.EOF else message  # type: ignore[return-value]  # EOF is not R
