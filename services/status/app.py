"""Composition root of status; reads top to bottom as the start order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator

from grpc import aio

from services.common import grpc_client, grpc_server, http_server
from services.common.readiness import Readiness, names
from services.common.runtime import background
from services.status import api
from services.status.adapters import AUTH, SESSION, Auth, Sessions, follow_health
from services.status.clients import Clients
from services.status.http import OnlineQuery, application
from services.status.queries import Queries
from services.status.servicer import StatusServicer
from services.status.settings import StatusSettings
from weimq.status.v1 import status_pb2, status_pb2_grpc


@dataclasses.dataclass(frozen=True)
class Ports:
    """Where a running service listens."""

    grpc: list[int]
    http: int
    https: int | None = None


async def serve(settings: StatusSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    async with running(settings):
        await stop.wait()


@contextlib.asynccontextmanager
async def running(settings: StatusSettings) -> AsyncGenerator[Ports]:
    """Serve while the body runs. Auth and session may come and go; health tells when they are there.

    Raises:
        OSError: an address can't be bound.
        SettingsError: the files of HTTPS can't be used.
    """
    session_names = names(SESSION, len(settings.session))
    tls = http_server.tls_context(
        settings.https_listen, settings.https_certificate_file, settings.https_key_file, "STATUS_"
    )
    readiness = Readiness(AUTH, *session_names)
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        auth_channel = await enter(grpc_client.channel(settings.auth, settings.cluster_token))
        session_channels = [
            await enter(grpc_client.channel(address, settings.cluster_token)) for address in settings.session
        ]
        sessions = Sessions(session_channels)
        queries = Queries(sessions, Clients(session_channels))
        servicer = StatusServicer(queries)
        auth = Auth(auth_channel)
        online_query = OnlineQuery(auth=auth, sessions=sessions)
        gate = api.Gate(auth=auth, token=settings.cluster_token)
        http = application(online_query, api.application(queries, gate), readiness)

        def register(server: aio.Server) -> list[str]:
            status_pb2_grpc.add_StatusServiceServicer_to_server(servicer, server)
            return [service.full_name for service in status_pb2.DESCRIPTOR.services_by_name.values()]

        # The channels outlive the servers, since running calls need them until they end.
        async with (
            grpc_server.serving(
                listen=settings.grpc_listen,
                token=settings.cluster_token,
                readiness=readiness,
                register=register,
                drain_s=settings.drain_s,
            ) as grpc_ports,
            http_server.serving(listen=settings.http_listen, app=http, drain_s=settings.drain_s) as http_port,
            http_server.also_serving(
                listen=settings.https_listen, app=http, drain_s=settings.drain_s, tls=tls
            ) as https_port,
            background(
                follow_health(auth_channel, AUTH, readiness),
                *(
                    follow_health(channel, name, readiness)
                    for name, channel in zip(session_names, session_channels, strict=True)
                ),
            ),
        ):
            yield Ports(list(grpc_ports), http_port, https_port)
