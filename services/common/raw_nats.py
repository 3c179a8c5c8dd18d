"""Messages of NATS without what nats-py does for each: a queue and a task on the way in, a coroutine on the way out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from nats.aio.client import Client
from nats.aio.msg import Msg
from typing_extensions import override

SETTLE_S = 0.002
"""How often is looked at whether a subscription was sent."""


class Tap(asyncio.Future[Msg]):
    """Takes every message of a subscription as it is read; never done.

    nats-py gives the messages of a subscription with a `future` to `set_result` at once, without the
    queue and the task of a callback, which would double the cost of a small message.

    Args:
        take: called with each message. It must not raise: nats-py would stop reading.
    """

    def __init__(self, take: Callable[[Msg], None]) -> None:
        super().__init__()
        self._take = take

    @override
    def set_result(self, result: Msg, /) -> None:
        self._take(result)


def is_clustered(client: Client) -> bool:
    """Return whether the server that a client is connected to is one of a cluster."""
    return bool(client._server_info.get("cluster"))  # noqa: SLF001 - nats-py has no other door to it


async def settle(client: Client) -> None:
    """Wait until a subscription is on its way to NATS, ahead of what is written, so that no answer is lost.

    Not by `Client.flush`: when that is cancelled, nats-py stops reading.
    """
    while not client.is_closed and (client.pending_data_size or not client.is_connected):  # noqa: ASYNC110 - no event
        await asyncio.sleep(SETTLE_S)


def write(client: Client, parts: Sequence[bytes]) -> None:
    """Write commands of NATS's protocol straight to the connection.

    `Client.publish` would keep them over a reconnection and send them before those that were lost on the wire, which
    breaks the order; it also costs four times as much. What the transport refuses counts as sent and lost: the client
    is about to reconnect.
    """
    with contextlib.suppress(OSError, RuntimeError, AttributeError):
        client._transport.write(b"".join(parts))  # type: ignore[union-attr]  # noqa: SLF001 - see above
