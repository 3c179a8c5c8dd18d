"""What the edge asks auth, without auth."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from grpc import aio
from typing_extensions import override

from services.common import grpc_server
from services.common.readiness import Readiness
from services.common.runtime import background
from services.common.settings import Secret
from services.edge import attempts, auth_client
from services.edge.auth_client import AuthClient
from services.edge.mqtt.packets import Connect, ConnectReturnCode
from services.edge.policies import Policies
from services.edge.ports import Access, Client
from services.edge.roster import Roster
from tests.support.auth_for_edges import FakeAuth
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

TOKEN = Secret("cluster token of the test")

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


class FakeClient(Client):
    """Notes its answer."""

    def __init__(self) -> None:
        self.address = "192.0.2.1:1"
        self.return_code = 0
        self.reason = ""
        self.answered = asyncio.Event()

    @override
    def on_authenticated(self, access: Access | None, return_code: int, reason: str) -> None:
        assert access is None
        self.return_code = return_code
        self.reason = reason
        self.answered.set()


def attempt(asks: AuthClient, password_bytes: int = 5) -> FakeClient:
    client = FakeClient()
    client.client_id = "GID_demo@@@1"
    packet = Connect(
        protocol_level=4,
        client_id=client.client_id,
        username="u",
        password=b"x" * password_bytes,
        keep_alive_s=60,
        clean_session=True,
        will=None,
    )
    asks.authenticate(client, packet)
    return client


async def test_large_connects_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MAX_LARGE_BYTES", 15_000)

    async with aio.insecure_channel("127.0.0.1:1") as nobody:
        asks = AuthClient(channel=nobody, token=TOKEN, policies=Policies(Roster(), lambda *_: ()), default_instance="i")
        waiting = [attempt(asks, 10_000), attempt(asks, 100)]
        assert attempt(asks, 10_000).reason == "too many connections at once"
        assert not any(client.answered.is_set() for client in waiting)
        async with background(asks.run()):
            for client in waiting:
                await client.answered.wait()
                assert client.reason == "auth did not answer"
                assert client.return_code == ConnectReturnCode.SERVER_UNAVAILABLE
            assert not attempt(asks, 10_000).reason  # there is room again


@contextlib.asynccontextmanager
async def asking(auth: auth_pb2_grpc.AuthServiceServicer) -> AsyncGenerator[AuthClient]:
    """Serve an auth service and run a client of it."""

    def register(server: aio.Server) -> list[str]:
        auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
        return []

    serving = grpc_server.serving(
        listen=["127.0.0.1:0"], token=TOKEN, readiness=Readiness(), register=register, drain_s=0
    )
    async with serving as (port,), aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        asks = AuthClient(channel=channel, token=TOKEN, policies=Policies(Roster(), lambda *_: ()), default_instance="")
        async with background(asks.run()):
            yield asks


async def test_many_connects_do_not_wait_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_client, "APART_S", 3600)
    auth = FakeAuth()
    async with asking(auth) as asks:
        first = attempt(asks)
        await first.answered.wait()
        others = [attempt(asks) for _ in range(attempts.MANY - 1)]
        late = attempt(asks)
        for client in [*others, late]:
            await client.answered.wait()
            assert client.return_code == ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD
    assert auth.batches == [1, attempts.MANY]


@pytest.mark.parametrize(("results", "indexes"), [(1, []), (3, []), (2, [0]), (1, [0, 1]), (0, [])])
async def test_answers_that_fit_not_their_question_are_refused(results: int, indexes: list[int]) -> None:
    answer = auth_pb2.AuthenticateStreamResponse(
        results=[auth_pb2.ConnectResult(outcome=auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED)] * results,
        result_indexes=indexes,
    )

    class Faulty(FakeAuth):
        is_faulty = True

        @override
        async def AuthenticateStream(  # type: ignore[override]  # reads and writes through the context
            self,
            request_iterator: AsyncIterator[auth_pb2.AuthenticateStreamRequest],
            context: aio.ServicerContext[Any, Any],
        ) -> None:
            if not self.is_faulty:
                await super().AuthenticateStream(request_iterator, context)
                return
            await context.read()
            await context.write(answer)
            await asyncio.Event().wait()

    auth = Faulty()
    async with asking(auth) as asks:
        for client in [attempt(asks), attempt(asks)]:
            await client.answered.wait()
            assert client.reason == "auth did not answer"
        auth.is_faulty = False
        client = attempt(asks)
        await client.answered.wait()
        assert client.return_code == ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD
