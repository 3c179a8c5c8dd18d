"""Composition root of the edge."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from grpc import aio

from services.common import grpc_client, grpc_server
from services.common.readiness import Readiness
from services.common.runtime import background, unless_stopped
from services.edge.auth_client import AuthClient
from services.edge.hub import Hub
from services.edge.policy import Policies
from services.edge.router_link import RouterLink
from services.edge.server import listening, specs
from services.edge.session_link import SessionLink
from services.edge.settings import EdgeSettings


def _register(_server: aio.Server) -> list[str]:
    return []  # health and reflection only: the edge calls, nobody calls it


async def serve(settings: EdgeSettings, stop: asyncio.Event) -> None:
    """Serve MQTT until `stop` is set; reads top to bottom as the start order."""
    specs(settings)  # refuses settings that do not fit, before anything starts
    readiness = Readiness("auth", "session", "router")
    incarnation = secrets.token_hex(8)
    hub = Hub(asyncio.get_running_loop())
    token = settings.cluster_token
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(
            grpc_server.serving(
                listen=settings.grpc_listen,
                token=token,
                readiness=readiness,
                register=_register,
                drain_s=settings.drain_s,
            )
        )
        policies = Policies()
        hub.auth = auth = AuthClient(
            channel=await enter(grpc_client.channel(settings.auth, token)),
            policies=policies,
            readiness=readiness,
            default_instance=settings.default_instance,
        )
        hub.sessions = sessions = SessionLink(
            channel=await enter(grpc_client.channel(settings.session, token)),
            token=token,
            hub=hub,
            readiness=readiness,
            edge_id=settings.id,
            edge_incarnation=incarnation,
        )
        hub.router = router = RouterLink(
            channel=await enter(grpc_client.channel(settings.router, token)),
            token=token,
            hub=hub,
            readiness=readiness,
            edge_id=settings.id,
            edge_incarnation=incarnation,
        )
        await enter(background(auth.run_watch(), auth.run_checks(), sessions.run(), router.run()))
        # Clients that come before could only be refused.
        await unless_stopped(stop, readiness.wait())
        async with listening(settings, hub, lambda: router.is_idle and sessions.is_idle):
            await stop.wait()
        router.say_goodbye()
        sessions.say_goodbye()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while not (router.is_idle and sessions.is_idle):  # noqa: ASYNC110 - polled only when stopping
                    await asyncio.sleep(0.01)
