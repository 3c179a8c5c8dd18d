"""A real auth service inside the test's event loop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path

import pytest
from grpc import StatusCode, aio

from services.auth import app
from services.auth.settings import AuthSettings
from services.common import errors, grpc_client, grpc_errors
from services.common.healthcheck import is_serving
from services.common.settings import Secret
from tests.support.wait import WAIT_S
from weimq.auth.v1 import (
    auth_pb2,
    auth_pb2_grpc,
    device_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)

TOKEN = Secret("cluster-token-of-the-tests")
MASTER_KEY = Secret(base64.b64encode(bytes(range(32))).decode())


async def in_time(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until an async condition is true."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not await condition():  # noqa: ASYNC110 - a condition of the world has no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"did not come true: {what}")


@contextlib.contextmanager
def refused(code: StatusCode, error_type: type[errors.DomainError], **metadata: str) -> Generator[None]:
    """Expect a call to fail with exactly this status, reason and metadata."""
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    error = grpc_errors.from_rpc_error(caught.value)
    assert type(error) is error_type
    assert error.metadata == metadata


async def health_is(address: str, *, serving: bool) -> None:
    """Wait until a service reports this health."""

    async def is_so() -> bool:
        return await is_serving(address) is serving

    await in_time(is_so, f"health of {address} is {serving}")


@dataclasses.dataclass(frozen=True)
class AuthService:
    """A running service and stubs that call it."""

    address: str
    http_port: int
    channel: aio.Channel
    auth: auth_pb2_grpc.AuthServiceStub
    resources: resource_pb2_grpc.ResourceServiceStub
    tokens: token_pb2_grpc.TokenServiceStub
    devices: device_pb2_grpc.DeviceServiceStub

    async def create_instance(
        self,
        instance_id: str,
        profile: auth_pb2.Profile.ValueType = auth_pb2.PROFILE_LMQ,
        *,
        anonymous: bool = False,
    ) -> resource_pb2.Instance:
        """Create an instance."""
        instance = resource_pb2.Instance(instance_id=instance_id, profile=profile, anonymous=anonymous)
        return (
            await self.resources.CreateInstance(
                resource_pb2.CreateInstanceRequest(instance=instance), wait_for_ready=True
            )
        ).instance

    async def create_key(self, instance_id: str, account_id: str = "") -> tuple[str, str]:
        """Create an AccessKey and return its id and secret."""
        request = resource_pb2.CreateAccessKeyRequest(instance_id=instance_id, account_id=account_id)
        created = await self.resources.CreateAccessKey(request)
        return created.access_key.access_key_id, created.secret

    async def create_group(self, instance_id: str, group_id: str, account_id: str = "") -> resource_pb2.Group:
        """Create a group."""
        group = resource_pb2.Group(instance_id=instance_id, group_id=group_id, account_id=account_id)
        return (
            await self.resources.CreateGroup(resource_pb2.CreateGroupRequest(group=group), wait_for_ready=True)
        ).group

    async def create_topic(
        self,
        instance_id: str,
        topic: str,
        account_id: str = "",
        *,
        logged: bool = True,
        ordered: bool = False,
        retention_s: int = 0,
    ) -> resource_pb2.Topic:
        """Create a parent topic."""
        wanted = resource_pb2.Topic(
            instance_id=instance_id,
            topic=topic,
            account_id=account_id,
            logged=logged,
            ordered=ordered,
            retention_s=retention_s,
        )
        return (
            await self.resources.CreateTopic(resource_pb2.CreateTopicRequest(topic=wanted), wait_for_ready=True)
        ).topic

    async def apply_token(
        self,
        instance_id: str,
        access_key_id: str,
        *resources: str,
        actions: auth_pb2.TokenType.ValueType = auth_pb2.TOKEN_TYPE_READ_WRITE,
        lifetime_s: float = 3_600,
    ) -> token_pb2.ApplyTokenResponse:
        """Apply for a token."""
        request = token_pb2.ApplyTokenRequest(
            instance_id=instance_id,
            access_key_id=access_key_id,
            actions=actions,
            resources=resources,
            expire_time_ms=round((time.time() + lifetime_s) * 1_000),
        )
        return await self.tokens.ApplyToken(request)


def settings(
    nats_url: str,
    *,
    bootstrap_file: Path | None = None,
    master_key: Secret = MASTER_KEY,
    listen: str = "127.0.0.1:0",
    drain_s: float = 1,
) -> AuthSettings:
    """Return settings for a service on free ports."""
    return AuthSettings(
        cluster_token=TOKEN,
        drain_s=drain_s,
        nats_url=Secret(nats_url),
        grpc_listen=(listen,),
        http_listen="127.0.0.1:0",
        master_key=master_key,
        bootstrap_file=bootstrap_file,
    )


@contextlib.asynccontextmanager
async def running_auth(
    nats_url: str,
    *,
    bootstrap_file: Path | None = None,
    master_key: Secret = MASTER_KEY,
    drain_s: float = 1,
    free_failures: int | None = None,
) -> AsyncGenerator[AuthService]:
    """Run a service; it has loaded everything when the body begins."""
    chosen = settings(nats_url, bootstrap_file=bootstrap_file, master_key=master_key, drain_s=drain_s)
    if free_failures is not None:
        chosen = dataclasses.replace(chosen, free_failures_per_address=free_failures)
    async with app.running(chosen, asyncio.Event()) as ports:
        address = f"127.0.0.1:{ports.grpc[0]}"
        async with grpc_client.channel(address, TOKEN) as channel:
            yield AuthService(
                address=address,
                http_port=ports.http,
                channel=channel,
                auth=auth_pb2_grpc.AuthServiceStub(channel),
                resources=resource_pb2_grpc.ResourceServiceStub(channel),
                tokens=token_pb2_grpc.TokenServiceStub(channel),
                devices=device_pb2_grpc.DeviceServiceStub(channel),
            )
