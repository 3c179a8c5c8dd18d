"""Health check of a service from the command line: `python -m services.common.healthcheck ADDRESS`.

Exits 0 when the service at ADDRESS (`host:port` or `unix:/path`) is SERVING, 1 otherwise.
"""

from __future__ import annotations

import asyncio
import sys

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc


async def is_serving(address: str, timeout_s: float = 2.0) -> bool:
    """Return whether the service at `address` reports SERVING within `timeout_s` seconds."""
    async with aio.insecure_channel(address) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # set at run time
            answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(is_serving(sys.argv[1])) else 1)
