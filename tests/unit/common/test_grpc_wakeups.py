"""Tests of `services.common.grpc_wakeups`, in a process of its own, since gRPC makes its completion queue once."""

from __future__ import annotations

import subprocess
import sys
import textwrap

CALLS = 1_000
"""More than bytes fit into the socket with which gRPC's thread wakes the loop."""

PROGRAM = textwrap.dedent(
    f"""
    import asyncio, time
    import uvloop
    from grpc import aio
    from services.common import grpc_wakeups

    async def fail(call):
        try:
            await call(b"")
        except aio.AioRpcError:
            pass

    async def main():
        async with aio.insecure_channel("127.0.0.1:1") as channel:  # nobody listens
            call = channel.unary_unary("/nobody/there")
            await fail(call)
            calls = [asyncio.ensure_future(fail(call)) for _ in range({CALLS})]
            await asyncio.sleep(0)
            time.sleep(1)  # all fail while the loop is busy
            turns = 0
            while not all(each.done() for each in calls):
                turns += 1
                time.sleep(0.002)
                await asyncio.sleep(0)
            print(turns)

    grpc_wakeups.prepare()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    """
)


def test_a_busy_loop_does_not_hold_up_the_thread_of_grpc() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, timeout=60, text=True)
    # With one byte in a turn it took several hundred.
    assert int(done.stdout) < 100, done.stdout
