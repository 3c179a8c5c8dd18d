"""Life of a service process: event loop, signals, background work, exit status.

The only module that creates tasks by itself; everything else uses `background` or a `TaskGroup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping
from typing import TypeVar

import uvloop

from services import compiled
from services.common import grpc_wakeups
from services.common import logging as json_logging
from services.common.errors import DomainError
from services.common.settings import CommonSettings, SettingsError, load

logger = logging.getLogger(__name__)

EXIT_WRONG_SETTINGS = 78
"""Exit status for settings that can't be used, `EX_CONFIG` of sysexits.h: a restart can't help."""

GC_THRESHOLD = 20_000
"""Objects that survive before the youngest generation is collected; Python's own 700 costs 6 % of a busy edge."""

CANCEL_AGAIN_S = 1.0
"""How long background work has for its clean-up before it is cancelled once more."""

S = TypeVar("S", bound=CommonSettings)
T = TypeVar("T")


@contextlib.asynccontextmanager
async def background(*work: Coroutine[object, object, None]) -> AsyncGenerator[None]:
    """Run `work` beside the body; a failure cancels the body, leaving the body cancels it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coro) for coro in work]
        try:
            yield
        finally:
            await end(tasks, again_s=CANCEL_AGAIN_S)


async def end(tasks: Collection[asyncio.Task[T]], *, again_s: float, times: float = math.inf) -> None:
    """Cancel tasks every `again_s`, `times` at most, until they have ended; what they raise then is logged.

    Again and again: `asyncio.wait_for` before Python 3.12, which nats-py uses, forgets a cancellation that comes
    together with its result.
    """
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.add_done_callback(_log_failure)
    cancelled: asyncio.CancelledError | None = None
    while pending and times > 0:
        times -= 1
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=again_s)
        except asyncio.CancelledError as error:  # whoever cancels us again wants the tasks gone as well
            cancelled = error
        pending = {task for task in pending if not task.done()}
    if cancelled is not None:
        raise cancelled


def _log_failure(task: asyncio.Task[T]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    if isinstance(error, DomainError):
        logger.info("work was given up", extra={"reason": str(error)})
    else:
        logger.warning("work failed while it was given up", exc_info=error)


async def attempt(work: Coroutine[object, object, object], *, within_s: float) -> None:
    """Run `work` and cancel it after `within_s`; a failure is logged.

    Unlike `asyncio.timeout` it goes on even if `work` forgets that it was cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,), timeout=within_s)
        if task.done():
            _log_failure(task)
    finally:
        await end([task], again_s=0.05, times=5)


class StopRequestedError(Exception):
    """The process was asked to stop while it waited for something to start."""


async def unless_stopped(stop: asyncio.Event, work: Coroutine[object, object, T]) -> T:
    """Return what `work` returns, or cancel it when `stop` is set.

    Raises:
        StopRequestedError: `stop` was set first.
    """
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise StopRequestedError
    finally:
        await end((task, waiter), again_s=CANCEL_AGAIN_S)


async def until_stopped(service: Awaitable[None]) -> None:
    """Run a service to its end; a stop that comes while it starts is an end like any other."""
    try:
        await service
    except* StopRequestedError:  # the task groups that it leaves wrap it
        pass


async def first_of(*work: Coroutine[object, object, object]) -> None:
    """Run `work` side by side until one ends, cancel the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(coro) for coro in work]
    ended: list[asyncio.Task[object]] = []
    try:
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [task for task in tasks if task.done()]
            await end(tasks, again_s=CANCEL_AGAIN_S)
    except asyncio.CancelledError:
        for task in ended:  # `end` logs what the others raise
            _log_failure(task)
        raise
    for error in [task.exception() for task in tasks if not task.cancelled()]:
        if isinstance(error, Exception):
            raise error


def main(
    service: str,
    settings_type: type[S],
    serve: Callable[[S, asyncio.Event], Awaitable[None]],
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Run a service until SIGTERM or SIGINT, then exit the process.

    Exits 0 after a requested stop, 78 on wrong settings, 1 when `serve` failed. A second signal
    ends the process at once.

    Args:
        service: name for the logs.
        settings_type: what to parse the environment into.
        serve: called with the settings and the event that asks it to stop.
        environ: the environment.
    """
    try:
        settings = load(settings_type, environ)
    except SettingsError as error:
        sys.stderr.write(f"weimq {service}: {error}\n")
        sys.exit(EXIT_WRONG_SETTINGS)
    json_logging.configure(service, settings.log_level)
    grpc_wakeups.prepare()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_signalled(lambda stop: serve(settings, stop)))
    except SettingsError as error:  # found by `serve`, such as files that can't be used
        sys.stderr.write(f"weimq {service}: {error}\n")
        sys.exit(EXIT_WRONG_SETTINGS)
    except Exception:
        logger.exception("service failed")
        sys.exit(1)
    logger.info("service stopped")
    sys.exit(0)


async def _until_signalled(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        logger.info("stopping", extra={"signal": number.name})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    # What is imported lives as long as the process, and hot paths make no cycles: collections look at few objects, and
    # are rare. Cycles of gRPC calls and closed connections are still found.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    logger.info("service starting", extra={"pid": os.getpid(), "hot_path": compiled.describe()})
    await until_stopped(serve(stop))
