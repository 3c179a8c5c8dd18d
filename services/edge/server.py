"""The listeners of an edge: accept clients, close the silent ones, drain on stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Callable

from services.common import ticks
from services.common.runtime import background
from services.common.settings import SettingsError
from services.edge.connection import Connection
from services.edge.descriptors import Descriptors, raise_limit, refuse
from services.edge.hub import Hub
from services.edge.mqtt.machine import Limits
from services.edge.reasons import SHUTDOWN
from services.edge.settings import EdgeSettings
from services.edge.transports.flash_policy import FlashPolicyProtocol, policy
from services.edge.transports.layer import ByteProtocol
from services.edge.transports.listen import ListenerSpec, open_listener
from services.edge.transports.strangers import Strangers
from services.edge.transports.tls import Reloader, TlsError, TlsFiles, build_context
from services.edge.transports.websocket_handshake import WebSocketOptions

logger = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel holds until we accept them."""
SWEEP_S = 0.5
"""How often deadlines are looked at; one timer for all connections."""
SWEEP_BATCH = 10
"""Connections after which the time is looked at: closing that many takes a millisecond."""
SWEEP_TURN_S = 0.001
"""How long connections are looked at in one go."""
CLOSE_BATCH = 200
"""Clients that are closed in one go when the edge stops."""


_LISTENERS = {"tcp": "tcp_listen", "tls": "tls_listen", "ws": "ws_listen", "wss": "wss_listen"}
_TLS = {"tls", "wss"}
_WEBSOCKET = {"ws", "wss"}

LONGEST_CONNECT_BYTES = 327_701
"""Headers and the five fields of a CONNECT, each as long as its two length bytes can say."""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


def specs(settings: EdgeSettings) -> tuple[list[ListenerSpec], Reloader | None]:
    """Return the listeners of an edge, and what keeps their certificate fresh.

    Raises:
        SettingsError: naming every setting that does not fit.
    """
    faults: list[str] = []
    addresses: dict[str, tuple[str, int]] = {}
    for name, variable in _LISTENERS.items():
        address = getattr(settings, variable)
        if address:
            try:
                addresses[name] = split_address(address)
            except ValueError as error:
                faults.append(f"EDGE_{variable.upper()}: {error}")
    faults.extend(
        f"EDGE_PROXY_PROTOCOL: there is no listener {name!r}, only tcp, tls, ws and wss"
        for name in settings.proxy_protocol
        if name not in _LISTENERS
    )
    tls, reloader = _tls(settings, faults) if addresses.keys() & _TLS else (None, None)
    if faults:
        raise SettingsError(faults)
    websocket = WebSocketOptions(
        max_message_bytes=2 * settings.max_packet_bytes,
        max_first_message_bytes=min(2 * settings.max_packet_bytes, LONGEST_CONNECT_BYTES),
        allowed_origins=settings.ws_allowed_origins,
        trust_forwarded_for=settings.ws_trust_forwarded_for,
        handshake_timeout_s=settings.connect_timeout_s,
    )
    listeners = [
        ListenerSpec(
            name=name,
            host=host,
            port=port,
            tls=tls if name in _TLS else None,
            websocket=websocket if name in _WEBSOCKET else None,
            proxy_protocol=name in settings.proxy_protocol,
            handshake_timeout_s=settings.connect_timeout_s,
            backlog=BACKLOG,
        )
        for name, (host, port) in addresses.items()
    ]
    return listeners, reloader


def _tls(settings: EdgeSettings, faults: list[str]) -> tuple[ssl.SSLContext | None, Reloader | None]:
    clients = settings.tls_client_certificates
    if clients not in {"none", "optional", "required"}:
        faults.append("EDGE_TLS_CLIENT_CERTIFICATES: must be none, optional or required")
        return None, None
    if not (settings.tls_certificate_file and settings.tls_key_file):
        faults.append("EDGE_TLS_CERTIFICATE_FILE and EDGE_TLS_KEY_FILE: needed by the TLS listeners")
        return None, None
    files = TlsFiles(
        certificate=settings.tls_certificate_file,
        key=settings.tls_key_file,
        client_ca=settings.tls_client_ca_file,
        client_certificates=clients,  # type: ignore[arg-type]  # one of the three
    )
    try:
        context = build_context(files)
    except TlsError as error:
        faults.append(f"EDGE_TLS_*: {error}")
        return None, None
    return context, Reloader(context, files)


@contextlib.asynccontextmanager
async def listening(
    settings: EdgeSettings, hub: Hub, is_drained: Callable[[], bool]
) -> AsyncGenerator[dict[str, list[int]]]:
    """Accept MQTT clients while the body runs; drain on leaving.

    Draining: no more connections, no more reading; what was read gets its answers, within half of `drain_s`;
    then every client is closed, and the closings are handed over, within the other half.

    Args:
        settings: where to listen, and the limits of a connection.
        hub: gets the connections.
        is_drained: whether the services have all that the edge had to tell them.

    Yields:
        The bound ports of each listener.

    Raises:
        SettingsError: a listener's settings don't fit.
        OSError: an address can't be bound.
    """
    loop = asyncio.get_running_loop()
    limits = Limits(
        max_packet_bytes=settings.max_packet_bytes,
        connect_timeout_s=settings.connect_timeout_s,
        max_inflight=settings.max_inflight,
        max_queued=settings.max_queued,
        write_buffer_bytes=settings.write_buffer_bytes,
        slow_consumer_s=settings.slow_consumer_s,
    )
    new_connection = functools.partial(Connection, hub, loop, limits)
    descriptors = Descriptors(raise_limit())

    strangers = hub.strangers = Strangers(settings.max_strangers, settings.max_tls_strangers)

    def refusal() -> ByteProtocol | None:
        # Without room a stranger gives way, so that an edge full of them still has clients.
        return None if descriptors.has_room(loop.time()) or strangers.close_oldest() else refuse()

    listeners, reloader = specs(settings)
    try:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(background(_sweep(hub, loop)))
            if reloader is not None:
                await stack.enter_async_context(background(reloader.run()))
            ports = {
                spec.name: await stack.enter_async_context(open_listener(spec, new_connection, strangers, refusal))
                for spec in listeners
            }
            if settings.flash_policy_listen:
                host, port = split_address(settings.flash_policy_listen)
                answer = policy([port for bound in ports.values() for port in bound])
                flash = ListenerSpec(name="flash", host=host, port=port, backlog=BACKLOG)
                timeout_s = settings.connect_timeout_s
                await stack.enter_async_context(
                    open_listener(
                        flash,
                        lambda: FlashPolicyProtocol(loop, answer, strangers, timeout_s=timeout_s),
                        strangers,
                        refusal,
                    )
                )
            yield ports
    finally:
        strangers.close_all()
        await _drain(hub, is_drained, settings.drain_s)


async def _sweep(hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
    while True:
        await ticks.tick(SWEEP_S)
        now, began = loop.time(), time.monotonic()
        due = hub.due(now)
        for first in range(0, len(due), SWEEP_BATCH):
            for connection in due[first : first + SWEEP_BATCH]:
                connection.check_deadline(now)
            if time.monotonic() - began > SWEEP_TURN_S:
                await asyncio.sleep(0)  # messages go on meanwhile
                now, began = loop.time(), time.monotonic()
        hub.sweep()


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
