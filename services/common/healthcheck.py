"""Health of other services, asked once or followed.

From the command line: `python -m services.common.healthcheck ADDRESS` exits 0 when the service at ADDRESS (`host:port`
or `unix:/path`) is SERVING, 1 otherwise.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

AGAIN_S = 0.2
"""Pause before a watch that ended is opened again."""


async def is_serving(address: str, timeout_s: float = 2.0) -> bool:
    """Return whether the service at `address` reports SERVING within `timeout_s` seconds."""
    async with aio.insecure_channel(address) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # set at run time
            answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except aio.AioRpcError:
            return False
    return _is_serving(answer)


async def following(channel: aio.Channel) -> AsyncGenerator[bool]:
    """Yield whether the service behind a channel reports SERVING: at each change, for ever. No answer is no.

    Costs nothing while nothing changes. A service that is gone is noticed at once, one that hangs by the channel's
    pings (`grpc_server.OPTIONS`, 15 s).
    """
    stub = health_pb2_grpc.HealthStub(channel)
    while True:
        watch = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)  # type: ignore[attr-defined]  # as above
        try:
            async for answer in watch:
                yield _is_serving(answer)
        except aio.AioRpcError:
            pass
        finally:
            watch.cancel()
        yield False
        await asyncio.sleep(AGAIN_S)


def _is_serving(answer: health_pb2.HealthCheckResponse) -> bool:
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(is_serving(sys.argv[1])) else 1)
