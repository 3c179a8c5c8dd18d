"""How the stream of attempts ends when the service stops."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from services.auth.auth_servicer import AuthServicer
from services.auth.domain.backoff import Guard
from services.auth.domain.view import View
from services.auth.gate import Gate
from services.auth.watchers import Watchers
from services.common.errors import NotServingError
from weimq.auth.v1 import auth_pb2


class SlowContext:
    """A call whose answer takes its time."""

    def __init__(self) -> None:
        self.is_writing = asyncio.Event()
        self.may_end = asyncio.Event()
        self.written = 0

    async def read(self) -> auth_pb2.AuthenticateStreamRequest:
        """Return one attempt, always."""
        return auth_pb2.AuthenticateStreamRequest(attempts=[auth_pb2.ConnectAttempt(client_id="x")])

    async def write(self, _answer: object) -> None:
        """Take as long as it may."""
        self.is_writing.set()
        await self.may_end.wait()
        self.written += 1


@pytest.mark.asyncio
async def test_the_answer_that_is_under_way_is_written_before_the_stream_is_refused() -> None:
    view, gate, context = View(), Gate(), SlowContext()
    guard = Guard(free_per_address=100, free_per_key=100)
    servicer = AuthServicer(view=view, guard=guard, watchers=Watchers(view), gate=gate)
    gate.open()
    call = asyncio.create_task(servicer.AuthenticateStream(cast("Any", None), cast("Any", context)))
    await context.is_writing.wait()
    gate.close()
    done, _ = await asyncio.wait([call], timeout=0.05)
    assert not done
    context.may_end.set()
    with pytest.raises(NotServingError):
        await asyncio.wait_for(call, 10)
    assert context.written == 1
