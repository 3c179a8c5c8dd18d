"""Life and death of a service process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys

import pytest

from services.common import errors, runtime

SERVICE = """
import asyncio, dataclasses
from services.common import runtime
from services.common.settings import CommonSettings, setting

@dataclasses.dataclass(frozen=True, kw_only=True)
class TinySettings(CommonSettings):
    fails: bool = setting(False, text="Fails.")
    hangs: bool = setting(False, text="Does not stop.")

async def serve(settings, stop):
    print("serving", flush=True)
    if settings.fails:
        raise ValueError("broken")
    await stop.wait()
    if settings.hangs:
        print("hanging", flush=True)
        await asyncio.sleep(60)
    print("drained", flush=True)

runtime.main("tiny", TinySettings, serve)
"""


def _start(**environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WEIMQ_CLUSTER_TOKEN": "0123456789abcdef", **environ},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_service_with_status_0(number: signal.Signals) -> None:
    process = _start()
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert out == "drained\n"
    assert process.returncode == 0


def test_a_second_signal_ends_the_process_at_once() -> None:
    process = _start(TINY_HANGS="1")
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_failure_is_status_1_and_logged() -> None:
    process = _start(TINY_FAILS="1")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "ValueError: broken" in err


def test_wrong_settings_are_status_78_and_all_named() -> None:
    process = _start(TINY_FAILS="perhaps", TINY_OTHER="1")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 78
    assert "TINY_FAILS" in err
    assert "TINY_OTHER" in err


async def _forgetful(failure: Exception | None) -> None:
    """Forget the first cancellation, as `asyncio.wait_for` does, and end by `failure` at the second."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        try:
            await asyncio.Event().wait()
        finally:
            if failure is not None:
                raise failure


@pytest.mark.asyncio
@pytest.mark.parametrize("failure", [None, ValueError("late")])
async def test_work_that_forgets_its_cancellation_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception | None
) -> None:
    monkeypatch.setattr(runtime, "CANCEL_AGAIN_S", 0.01)
    stop = asyncio.Event()
    stopped = asyncio.create_task(runtime.unless_stopped(stop, _forgetful(failure)))
    await asyncio.sleep(0)  # begun
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(5):
        with pytest.raises(runtime.StopRequestedError):
            await stopped
    assert [r.exc_info[1] for r in caplog.records if r.exc_info] == ([failure] if failure is not None else [])


@pytest.mark.asyncio
async def test_the_first_to_end_ends_work_that_forgets_its_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "CANCEL_AGAIN_S", 0.01)
    async with asyncio.timeout(5):
        with pytest.raises(ValueError, match="late"):
            await runtime.first_of(_forgetful(ValueError("late")), asyncio.sleep(0))


async def _cancel_beside(failure: Exception, turns: int) -> None:
    """Cancel the first of some, so many turns of the loop after one of them has failed."""
    fails = asyncio.Event()

    async def fail() -> None:
        await fails.wait()
        raise failure

    async def cancel() -> None:
        await fails.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()

    waiting = asyncio.create_task(runtime.first_of(fail(), _forgetful(None)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # all have begun
    cancelling = asyncio.create_task(cancel())
    await asyncio.sleep(0)
    fails.set()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await cancelling


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("failure", "level"), [(errors.NotServingError("stopping"), logging.INFO), (ValueError("broken"), logging.WARNING)]
)
@pytest.mark.parametrize("turns", [0, 3])
async def test_a_failure_while_the_first_of_some_is_cancelled_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, turns: int, failure: Exception, level: int
) -> None:
    monkeypatch.setattr(runtime, "CANCEL_AGAIN_S", 0.01)
    caplog.set_level(logging.INFO)
    await _cancel_beside(failure, turns)
    gc.collect()  # asyncio tells of failures that nobody took when their tasks are freed
    assert [(r.name, r.levelno) for r in caplog.records] == [("services.common.runtime", level)]


@pytest.mark.asyncio
async def test_an_attempt_ends_in_time(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(5):
        await runtime.attempt(_forgetful(None), within_s=0.01)
    assert not caplog.records


@pytest.mark.asyncio
@pytest.mark.parametrize("failure", [None, ValueError("late")])
async def test_a_stop_while_a_service_starts_is_an_end_like_any_other(failure: Exception | None) -> None:
    stop = asyncio.Event()
    stop.set()

    async def serve() -> None:
        async with runtime.background(asyncio.sleep(3600)):  # its task group wraps what is raised
            try:
                await runtime.unless_stopped(stop, asyncio.sleep(3600))
            finally:
                if failure is not None:
                    raise failure

    if failure is None:
        await runtime.until_stopped(serve())
        return
    with pytest.raises(ExceptionGroup) as raised:
        await runtime.until_stopped(serve())
    assert raised.group_contains(ValueError, match="late")
