"""The waiting of the log writer, apart from its work on messages, which is compiled (see `services.compiled`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.common.raw_nats import Tap, settle

TICK_S = 0.1
"""How often the connection and the acknowledgement time are looked at while something is in flight."""


async def pump(
    client: Client,
    subject: str,
    *,
    take: Callable[[Msg], None],
    turn: Callable[[], bool],
    ended: Callable[[], None],
    wake: asyncio.Event,
) -> None:
    """Take the answers on `subject`, and call `turn` whenever there is something to do, until cancelled.

    Args:
        client: connected to NATS and reconnecting by itself.
        subject: of the answers.
        take: called with each of them.
        turn: sends; returns whether it must be called again by the clock.
        ended: called at the end, before no more answers are taken.
        wake: set when there is something to send.

    Raises:
        nats.errors.ConnectionClosedError: the client was closed for good.
    """
    subscription = await client.subscribe(subject, future=Tap(take))
    loop = asyncio.get_running_loop()
    tick: asyncio.TimerHandle | None = None

    def on_tick() -> None:
        nonlocal tick
        tick = None
        wake.set()

    try:
        await settle(client)
        while True:
            wake.clear()
            if client.is_closed:
                raise nats.errors.ConnectionClosedError
            if turn() and tick is None:  # one timer for the many turns of that time
                tick = loop.call_later(TICK_S, on_tick)
            await wake.wait()
    finally:
        if tick is not None:
            tick.cancel()
        ended()
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
