"""What the edge asks auth, without auth."""

from __future__ import annotations

import asyncio

import pytest
from grpc import aio
from typing_extensions import override

from services.common.runtime import background
from services.common.settings import Secret
from services.edge import attempts
from services.edge.auth_client import AuthClient
from services.edge.mqtt.packets import Connect, ConnectReturnCode
from services.edge.policies import Policies
from services.edge.ports import Access, Client
from services.edge.roster import Roster

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


class FakeClient(Client):
    """Notes its answer."""

    def __init__(self) -> None:
        self.address = "192.0.2.1:1"
        self.reason = ""
        self.answered = asyncio.Event()

    @override
    def on_authenticated(self, access: Access | None, return_code: int, reason: str) -> None:
        assert (access, return_code) == (None, ConnectReturnCode.SERVER_UNAVAILABLE)
        self.reason = reason
        self.answered.set()


async def test_large_connects_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MAX_LARGE_BYTES", 15_000)

    def attempt(password_bytes: int) -> FakeClient:
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

    async with aio.insecure_channel("127.0.0.1:1") as nobody:
        asks = AuthClient(
            channel=nobody, token=Secret("t"), policies=Policies(Roster(), lambda *_: ()), default_instance="i"
        )
        waiting = [attempt(10_000), attempt(100)]
        assert attempt(10_000).reason == "too many connections at once"
        assert not any(client.answered.is_set() for client in waiting)
        async with background(asks.run()):
            for client in waiting:
                await client.answered.wait()
                assert client.reason == "auth did not answer"
            assert not attempt(10_000).reason  # there is room again
