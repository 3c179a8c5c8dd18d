"""Thousands of MQTT clients in one event loop, and the tokens for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any, cast

from grpc import aio
from typing_extensions import override

from services.cli.run_file import read_running
from services.cli.secrets import DataDir
from services.common import grpc_client
from services.common.settings import Secret
from services.edge.mqtt import codec, packets
from tests.support.mesh import Mesh
from tests.support.wait import WAIT_S
from weimq.auth.v1 import auth_pb2, token_pb2, token_pb2_grpc

TYPES = {
    "R": auth_pb2.TOKEN_TYPE_READ,
    "W": auth_pb2.TOKEN_TYPE_WRITE,
    "RW": auth_pb2.TOKEN_TYPE_READ_WRITE,
}
MAX_REVOKED = 1000
"""Tokens in one call."""


class SwarmClient(asyncio.Protocol):
    """One client; notes what it gets."""

    def __init__(self, client_id: str, user: str, password: str) -> None:
        self.client_id = client_id
        self._hello = codec.encode(packets.Connect(4, client_id, True, 60, user, password.encode(), None))
        self._decoder = codec.Decoder(1 << 20)
        self._transport: asyncio.Transport
        self.return_code: int | None = None
        """Of CONNACK."""
        self.notices: list[tuple[str, Any]] = []
        """Topic and content of messages of the server."""
        self.messages: list[bytes] = []
        self.answers = 0
        """Packets that answer one of ours: PUBACK, SUBACK, PINGRESP."""
        self.closed_at = 0.0
        """When the connection ended, by `time.monotonic`; 0: it has not."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._hello)

    @override
    def data_received(self, data: bytes) -> None:
        for packet in self._decoder.feed(data):
            if isinstance(packet, packets.ConnAck):
                self.return_code = packet.return_code
            elif not isinstance(packet, packets.Publish):
                self.answers += 1
            elif packet.topic.startswith("$SYS/"):
                self.notices.append((packet.topic, json.loads(packet.payload)))
            else:
                self.messages.append(packet.payload)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_at = time.monotonic()

    def send(self, packet: packets.Packet) -> None:
        """Send a packet."""
        self._transport.write(codec.encode(packet))

    def close(self) -> None:
        """Drop the connection."""
        self._transport.abort()


async def until(condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - a condition of the world has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"did not come true in {seconds} s: {what}") from None


def allow_sockets() -> None:
    """Let this process have as many files as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def connect(ports: Sequence[int], clients: Iterable[SwarmClient], at_once: int = 200) -> None:
    """Connect clients to the ports in turn, and wait until all are in."""
    loop = asyncio.get_running_loop()
    waiting = list(clients)
    for start in range(0, len(waiting), at_once):
        batch = waiting[start : start + at_once]
        await asyncio.gather(
            *(
                loop.create_connection(lambda client=client: client, "127.0.0.1", ports[n % len(ports)])  # type: ignore[misc]  # a default argument is no parameter
                for n, client in enumerate(batch)
            )
        )
        await until(lambda batch=batch: all(client.return_code is not None for client in batch), "CONNACKs")  # type: ignore[misc]  # as above
    refused = [client.client_id for client in waiting if client.return_code]
    assert not refused, refused[:3]


def ports_of(mesh: Mesh) -> list[int]:
    """Return the MQTT ports of the edges of a mesh."""
    return [mesh.mqtt_port(edge) for edge in range(mesh.edges)]


class Tokens:
    """Applies for and revokes tokens of the bootstrap key."""

    def __init__(self, mesh: Mesh, channel: aio.Channel) -> None:
        self._stub = token_pb2_grpc.TokenServiceStub(channel)
        self._mesh = mesh
        self.user = f"Token|{mesh.credentials['access_key']}|{mesh.instance}"

    async def apply(self, token_type: str, *resources: str, seconds: float = 3600) -> str:
        """Return a new token."""
        response = await self._stub.ApplyToken(
            token_pb2.ApplyTokenRequest(
                instance_id=self._mesh.instance,
                access_key_id=self._mesh.credentials["access_key"],
                actions=TYPES[token_type],
                resources=resources,
                expire_time_ms=int((time.time() + seconds) * 1000),
            ),
            timeout=WAIT_S,
            wait_for_ready=True,
        )
        return response.token

    async def revoke(self, tokens: list[str]) -> None:
        """Revoke tokens."""
        for start in range(0, len(tokens), MAX_REVOKED):
            request = token_pb2.RevokeTokensRequest(tokens=tokens[start : start + MAX_REVOKED])
            response = await self._stub.RevokeTokens(request, timeout=WAIT_S, wait_for_ready=True)
            assert not any(response.codes), response.codes


@contextlib.asynccontextmanager
async def tokens_of(mesh: Mesh) -> AsyncGenerator[Tokens]:
    """Yield the tokens of a running mesh."""
    directory = DataDir(mesh.data)
    run = read_running(directory)
    assert run is not None
    token = Secret(directory.read_text(directory.cluster_token))
    async with grpc_client.channel(run.endpoints["auth"], token) as channel:
        yield Tokens(mesh, channel)
