"""The listeners of an edge: accept clients, close the silent ones, drain on stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable

from services.common.runtime import background
from services.edge.connection import SHUTDOWN, Connection
from services.edge.hub import Hub
from services.edge.mqtt.machine import Limits
from services.edge.settings import EdgeSettings

logger = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel holds until we accept them."""
SWEEP_S = 0.5
"""How often deadlines are looked at; one timer for all connections."""
CLOSE_BATCH = 200
"""Clients that are closed in one go when the edge stops."""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


@contextlib.asynccontextmanager
async def listening(settings: EdgeSettings, hub: Hub, is_drained: Callable[[], bool]) -> AsyncGenerator[list[int]]:
    """Accept MQTT clients while the body runs; drain on leaving.

    Draining: no more connections, no more reading; what was read gets its answers, within half of `drain_s`;
    then every client is closed, and the closings are handed over, within the other half.

    Args:
        settings: where to listen, and the limits of a connection.
        hub: gets the connections.
        is_drained: whether the services have all that the edge had to tell them.

    Yields:
        The bound ports.

    Raises:
        OSError: the address can't be bound.
    """
    loop = asyncio.get_running_loop()
    limits = Limits(
        max_packet_bytes=settings.max_packet_bytes,
        connect_timeout_s=settings.connect_timeout_s,
        max_inflight=settings.max_inflight,
        max_queued=settings.max_queued,
    )
    host, port = split_address(settings.tcp_listen)

    def new_connection() -> asyncio.BaseProtocol:
        connection: object = Connection(
            hub,
            loop,
            limits,
            write_buffer_bytes=settings.write_buffer_bytes,
            connect_timeout_s=settings.connect_timeout_s,
        )
        return connection  # type: ignore[return-value]  # a protocol by its methods

    server = await loop.create_server(new_connection, host, port, backlog=BACKLOG)
    ports = [socket.getsockname()[1] for socket in server.sockets]
    logger.info("mqtt listening", extra={"host": host, "ports": ports})
    try:
        async with background(_sweep(hub, loop)):
            yield ports
    finally:
        server.close()
        await _drain(hub, is_drained, settings.drain_s)


async def _sweep(hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        now = loop.time()
        for connection in list(hub.connections):
            connection.check_deadline(now)


async def _drain(hub: Hub, is_drained: Callable[[], bool], drain_s: float) -> None:
    for connection in list(hub.connections):
        connection.stop_reading()
    await _wait_until(is_drained, drain_s / 2)
    remaining = list(hub.connections)
    logger.info("closing clients", extra={"connections": len(remaining)})
    for start in range(0, len(remaining), CLOSE_BATCH):
        for connection in remaining[start : start + CLOSE_BATCH]:
            connection.close(SHUTDOWN)
        await asyncio.sleep(0.01)
    await _wait_until(is_drained, drain_s / 2)


async def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - two links and their queues; polled only when stopping
                await asyncio.sleep(0.01)
