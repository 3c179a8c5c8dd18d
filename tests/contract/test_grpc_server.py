"""What every service's gRPC server promises: token, health, reflection, errors, drain."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typing_extensions import override

from services.common import grpc_client, grpc_errors, grpc_server
from services.common.errors import NotFoundError
from services.common.healthcheck import following, is_serving
from services.common.readiness import Readiness
from services.common.settings import Secret
from weimq.status.v1 import status_pb2, status_pb2_grpc

pytestmark = pytest.mark.asyncio

TOKEN = Secret("0123456789abcdef")


STARTED = asyncio.Event()


async def _finish(call: Any) -> Any:
    return await call


class Servicer(status_pb2_grpc.StatusServiceServicer):
    """Knows one client."""

    @override
    async def GetClient(
        self, request: status_pb2.GetClientRequest, context: aio.ServicerContext[Any, Any]
    ) -> status_pb2.GetClientResponse:
        if request.client_id == "slow":
            STARTED.set()
            await asyncio.sleep(0.2)
        elif request.client_id != "known":
            raise NotFoundError("no such client", resource=f"client/{request.client_id}")
        return status_pb2.GetClientResponse(online=1)

    @override
    async def CloseConnections(
        self, request: status_pb2.CloseConnectionsRequest, context: aio.ServicerContext[Any, Any]
    ) -> status_pb2.CloseConnectionsResponse:
        raise NotImplementedError


def _register(server: aio.Server) -> list[str]:
    status_pb2_grpc.add_StatusServiceServicer_to_server(Servicer(), server)  # type: ignore[abstract]  # the other calls are not made
    return ["weimq.status.v1.StatusService"]


def _serving(readiness: Readiness, drain_s: float = 1, listen: str = "127.0.0.1:0") -> Any:
    return grpc_server.serving(listen=[listen], token=TOKEN, readiness=readiness, register=_register, drain_s=drain_s)


async def _reflect(channel: Any, metadata: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    return await stub.ServerReflectionInfo(iter([request]), metadata=metadata).read()


@pytest.mark.parametrize("token", [None, "", "Bearer ", "Bearer 0123456789abcdeF", "0123456789abcdef"])
async def test_calls_without_the_token_are_refused(token: str | None) -> None:
    async with _serving(Readiness()) as (port,), aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        metadata = [] if token is None else [("authorization", token)]
        with pytest.raises(aio.AioRpcError) as caught:
            await status_pb2_grpc.StatusServiceStub(channel).GetClient(
                status_pb2.GetClientRequest(client_id="known"), metadata=metadata
            )
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(aio.AioRpcError) as caught:
            await _reflect(channel, metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_reflection_lists_the_services() -> None:
    async with _serving(Readiness()) as (port,), aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await _reflect(channel, grpc_client.call_metadata(TOKEN))
        names = {service.name for service in answer.list_services_response.service}
        assert {"weimq.status.v1.StatusService", "grpc.health.v1.Health"} <= names


async def test_domain_errors_travel_with_their_metadata() -> None:
    async with _serving(Readiness()) as (port,), grpc_client.channel(f"127.0.0.1:{port}", TOKEN) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        assert (await stub.GetClient(status_pb2.GetClientRequest(client_id="known"))).online == 1
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.GetClient(status_pb2.GetClientRequest(client_id="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        error = grpc_errors.from_rpc_error(caught.value)
        assert isinstance(error, NotFoundError)
        assert error.metadata == {"resource": "client/other"}


async def test_health_follows_readiness() -> None:
    readiness = Readiness("nats")
    async with _serving(readiness) as (port,), aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        address = f"127.0.0.1:{port}"
        assert not await is_serving(address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]  # set at run time
        async with asyncio.timeout(30):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            readiness.mark("nats", present=True)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            readiness.mark("nats", present=False)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_is_followed_through_the_end_of_a_server_that_does_not_wait_for_it(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(30):
        channel = await stack.enter_async_context(grpc_client.channel(address, TOKEN))
        answers = await stack.enter_async_context(contextlib.aclosing(following(channel)))
        readiness = Readiness("nats")
        async with _serving(readiness, drain_s=3_600, listen=address):
            assert not await anext(answers)
            readiness.mark("nats", present=True)
            while not await anext(answers):
                pass
        assert not await anext(answers)
        async with _serving(Readiness(), listen=address):
            while not await anext(answers):
                pass


async def test_a_running_call_is_finished_when_the_server_stops() -> None:
    async with _serving(Readiness(), drain_s=5) as (port,):
        channel = aio.insecure_channel(f"127.0.0.1:{port}")
        stub = status_pb2_grpc.StatusServiceStub(channel)
        call = stub.GetClient(status_pb2.GetClientRequest(client_id="slow"), metadata=grpc_client.call_metadata(TOKEN))
        STARTED.clear()
        answering = asyncio.ensure_future(_finish(call))
        await STARTED.wait()
    assert (await answering).online == 1
    await channel.close()


async def test_an_address_in_use_is_an_error() -> None:
    async with _serving(Readiness()) as (port,):
        with pytest.raises(OSError, match="can't listen on"):
            async with grpc_server.serving(
                listen=[f"127.0.0.1:{port}"], token=TOKEN, readiness=Readiness(), register=_register, drain_s=0
            ):
                pass
