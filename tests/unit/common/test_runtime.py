"""Life and death of a service process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

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
