"""Connection to NATS and set-up of streams and buckets; the only door to nats-py's management calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.kv import KeyValue
from nats.protocol.parser import PERMISSIONS_ERR, STALE_CONNECTION
from typing_extensions import override

from services.common import runtime
from services.common.errors import UnavailableError
from services.common.readiness import Readiness
from services.common.settings import Secret

logger = logging.getLogger(__name__)

DEPENDENCY = "nats"
"""Name under which `Readiness` lists NATS."""

NAMES_S = 5.0
"""How long the names of streams may take."""

INBOX_PREFIX = "_INBOX_weimq"
"""Where answers to services arrive. Not `_INBOX`, which backend applications may subscribe to: they would see
every answer that a service gets, values of KV buckets among them."""

PENDING_BYTES = 32 << 20
"""What nats-py may hold while NATS is away; writers keep their own bounds below it."""


API = "$JS.API."
"""How the subjects of JetStream's management calls begin."""

NOBODY_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses before a request is made again that found nobody there."""


class _Client(Client):
    """A client that knows how many replicas streams and buckets are to have, and asks again where nobody answers.

    Nobody answers JetStream's calls for a moment while NATS reloads its accounts, as it does when topics and backends
    come and go; nobody takes what is written to a new stream until all servers of a cluster have heard of it, which
    may be after its creation was answered. A request that found nobody has done nothing: it can be made again.
    """

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas

    @override
    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        for pause_s in NOBODY_PAUSES_S:
            with contextlib.suppress(nats.errors.NoRespondersError):
                return await super().request(subject, payload, timeout, old_style, headers)
            await asyncio.sleep(pause_s)
        return await super().request(subject, payload, timeout, old_style, headers)

    @override
    async def _process_err(self, err_msg: str) -> None:
        # nats-py would close for good, such as when NATS refuses our account for a moment while it reloads: the
        # service would never be ready again.
        if PERMISSIONS_ERR in err_msg or STALE_CONNECTION in err_msg:
            await super()._process_err(err_msg)
            return
        error = nats.errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        await self._process_op_err(error)


def _replicas(js: JetStreamContext) -> int:
    client = js._nc  # noqa: SLF001 - nats-py has no other door to it
    return client.replicas if isinstance(client, _Client) else 1


@contextlib.asynccontextmanager
async def connected(url: Secret, *, name: str, readiness: Readiness, replicas: int = 1) -> AsyncGenerator[Client]:
    """Connect to NATS, trying again until it answers; afterwards the client reconnects for ever, whatever NATS says.

    Leaving closes the connection after what it holds was sent, within some three seconds.

    Args:
        url: `nats://user:password@host:port`, several joined by commas.
        name: of the client, shown by NATS.
        readiness: kept informed under `nats`.
        replicas: that `ensure_stream` and `ensure_bucket` give what they make by this client.
    """
    logged = False
    while True:
        client = _Client(replicas)
        try:
            await _connect(client, url, name, readiness)
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError  # noqa: TRY301 - nats-py may have swallowed it
        except (OSError, nats.errors.Error, TimeoutError) as error:
            await _close(client)
            if client._flush_queue is None:  # noqa: SLF001 - nats-py did not even try: the URL is wrong
                raise
            if not logged:
                logged = True
                logger.warning("nats does not answer, trying on", extra={"error": repr(error)})
            await asyncio.sleep(0.25)
        except BaseException:
            await _close(client)  # else its connection and tasks would outlive us
            raise
        else:
            break
    try:
        readiness.mark(DEPENDENCY, present=True)
        yield client
    finally:
        await _close(client)


async def _connect(client: Client, url: Secret, name: str, readiness: Readiness) -> None:
    async def on_error(error: Exception) -> None:
        logger.warning("nats error", extra={"error": repr(error)})

    async def on_disconnect() -> None:
        readiness.mark(DEPENDENCY, present=False)

    async def on_reconnect() -> None:
        readiness.mark(DEPENDENCY, present=True)

    await client.connect(
        url.reveal().split(","),
        name=name,
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.25,  # type: ignore[arg-type]  # nats-py only sleeps for it
        connect_timeout=2,
        ping_interval=5,
        max_outstanding_pings=2,
        pending_size=PENDING_BYTES,
        inbox_prefix=INBOX_PREFIX,
        error_cb=on_error,
        disconnected_cb=on_disconnect,
        reconnected_cb=on_reconnect,
    )


async def _close(client: Client) -> None:
    """Send what the client holds and leave nothing of it, each step even if one before it is cancelled."""
    client.options["allow_reconnect"] = False  # else a task that still reads would begin to reconnect
    async with contextlib.AsyncExitStack() as steps:
        steps.push_async_callback(_abandon, client)
        steps.push_async_callback(_close_in_order, client)
        if client.is_connected:
            await runtime.attempt(client.flush(), within_s=1)


async def _close_in_order(client: Client) -> None:
    # The private parts: nats-py's `close` cancels a reconnection once only, which may forget it and then overwrites
    # that the client is closed; and it fails before there is a queue, which `connect` makes once its URLs are parsed.
    if client._reconnection_task is not None:  # noqa: SLF001 - see above
        await runtime.end([client._reconnection_task], again_s=0.05, times=5)  # noqa: SLF001 - see above
    if client._flush_queue is not None:  # noqa: SLF001 - see above
        await runtime.attempt(client.close(), within_s=1)


async def _abandon(client: Client) -> None:
    """Abort what is left: nats-py gives up before it closes the transport when NATS takes no data, or if cancelled."""
    tasks = client._reading_task, client._ping_interval_task, client._flusher_task, client._reconnection_task  # noqa: SLF001 - no other door
    transport = client._transport  # noqa: SLF001 - see above
    writer: asyncio.StreamWriter | None = getattr(transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    await runtime.end([task for task in tasks if task is not None], again_s=0.05, times=5)
    if writer is not None:
        # In a task, since what it waits for may have been cancelled together with nats-py's own `close`.
        await runtime.attempt(writer.wait_closed(), within_s=0.1)


async def ensure_stream(js: JetStreamContext, config: api.StreamConfig) -> None:
    """Create a stream, or bring an existing one to `config`. Idempotent.

    It has as many replicas as `connect` was told; those of an existing one are raised where the servers for it are
    there, and never lowered.

    Raises:
        UnavailableError: NATS does not answer, or has too few servers to create it now.
    """
    wanted = _replicas(js)
    try:
        try:
            await js.add_stream(config.evolve(num_replicas=wanted))
        except nats.js.errors.BadRequestError as error:
            if error.err_code != 10058:  # noqa: PLR2004 - "stream name already in use"
                raise
            present = (await js.stream_info(str(config.name))).config.num_replicas or 1
            await js.update_stream(config.evolve(num_replicas=present))
            await _raise_replicas(js, config, present)
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"stream {config.name}: {error!r}", dependency=DEPENDENCY) from error


async def _raise_replicas(js: JetStreamContext, config: api.StreamConfig, present: int) -> None:
    """Give an existing stream the replicas that it lacks, unless servers for them are missing now."""
    wanted = _replicas(js)
    if present >= wanted:
        return
    extra: dict[str, object] = {"stream": config.name, "replicas": present, "wanted": wanted}
    try:
        await js.update_stream(config.evolve(num_replicas=wanted))
    except nats.js.errors.APIError as error:
        logger.warning("stream has fewer replicas than it should", extra={**extra, "error": repr(error)})
    else:
        logger.info("stream gets more replicas", extra=extra)


async def delete_stream(js: JetStreamContext, name: str) -> None:
    """Delete a stream with its messages. Idempotent.

    Raises:
        UnavailableError: NATS does not answer.
    """
    try:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await js.delete_stream(name)
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"stream {name}: {error!r}", dependency=DEPENDENCY) from error


async def stream_names(client: Client, subject: str) -> list[str]:
    """Return the names of all streams of a subject, which may have wildcards.

    Raises:
        UnavailableError: NATS does not answer.
    """
    names: list[str] = []
    while True:
        request = json.dumps({"offset": len(names), "subject": subject}).encode()
        try:
            answer = json.loads((await client.request(f"{API}STREAM.NAMES", request, timeout=NAMES_S)).data)
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"streams of {subject}: {error!r}", dependency=DEPENDENCY) from error
        if "error" in answer:
            raise UnavailableError(f"streams of {subject}: {answer['error']}", dependency=DEPENDENCY)
        page = answer.get("streams") or []
        names.extend(page)
        if not page or len(names) >= answer["total"]:
            return names


async def ensure_bucket(js: JetStreamContext, bucket: str) -> KeyValue:
    """Open a KV bucket, made when it does not exist, with replicas as `ensure_stream` says. Idempotent.

    Raises:
        UnavailableError: NATS does not answer, or has too few servers to create it now.
    """
    try:
        try:
            kv = await js.key_value(bucket)
        except nats.js.errors.NotFoundError:
            made = api.KeyValueConfig(bucket=bucket, history=1, replicas=_replicas(js), direct=True)
            return await js.create_key_value(made)
        config = (await js.stream_info(f"KV_{bucket}")).config
        await _raise_replicas(js, config, config.num_replicas or 1)
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"bucket {bucket}: {error!r}", dependency=DEPENDENCY) from error
    return kv
