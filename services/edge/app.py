"""Composition root of the edge."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time

from grpc import aio

from services.common import grpc_client, grpc_server
from services.common.readiness import Readiness, names
from services.common.runtime import background, unless_stopped
from services.edge import ordering
from services.edge.auth_client import AuthClient
from services.edge.auth_watch import AuthWatch
from services.edge.commands import ENABLE_ORDER, GET_OFFLINE_MESSAGES
from services.edge.credentials import Credentials
from services.edge.groups import SessionShards, router_group
from services.edge.hub import Hub
from services.edge.offline_pull import OfflinePull
from services.edge.policies import Policies
from services.edge.roster import Roster
from services.edge.router_link import RouterLink
from services.edge.sequences import Sequences
from services.edge.server import listening, specs
from services.edge.session_link import SessionLink
from services.edge.settings import EdgeSettings
from services.edge.tokens import UPLOAD_TOKEN

_LISTENERS = "listeners"
"""What the edge itself brings: healthy, it answers on its ports."""


def _register(_server: aio.Server) -> list[str]:
    return []  # health and reflection only: the edge calls, nobody calls it


async def serve(settings: EdgeSettings, stop: asyncio.Event) -> None:
    """Serve MQTT until `stop` is set; reads top to bottom as the start order."""
    specs(settings)  # refuses settings that do not fit, before anything starts
    session_names = names("session", len(settings.session))
    router_names = names("router", len(settings.router))
    readiness = Readiness("auth", *session_names, *router_names, _LISTENERS)
    incarnation = secrets.token_hex(8)
    hub = Hub(asyncio.get_running_loop())
    hub.commands.add(ENABLE_ORDER, ordering.enable)
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
        roster = Roster()
        policies = Policies(roster, hub.subscribers)
        auth_channel = await enter(grpc_client.channel(settings.auth, token))
        watch = AuthWatch(
            channel=auth_channel,
            policies=policies,
            roster=roster,
            readiness=readiness,
            max_age_s=settings.policy_max_age_s,
        )
        hub.auth = auth = AuthClient(
            channel=auth_channel, token=token, policies=policies, default_instance=settings.default_instance
        )
        hub.credentials = credentials = Credentials(
            roster=roster,
            policies=policies,
            checker=auth,
            release=lambda client: hub.sessions.of(client.instance_id, client.client_id).release(client),
        )
        hub.commands.add(UPLOAD_TOKEN, credentials.upload)
        sequences = Sequences()
        shards = [
            SessionLink(
                channel=await enter(grpc_client.channel(address, token)),
                token=token,
                hub=hub,
                readiness=readiness,
                edge_id=settings.id,
                edge_incarnation=incarnation,
                name=name,
            )
            for name, address in zip(session_names, settings.session, strict=True)
        ]
        routers = [
            RouterLink(
                channel=await enter(grpc_client.channel(address, token)),
                token=token,
                hub=hub,
                readiness=readiness,
                edge_id=settings.id,
                edge_incarnation=incarnation,
                sequences=sequences,
                name=name,
            )
            for name, address in zip(router_names, settings.router, strict=True)
        ]
        hub.sessions = SessionShards(shards)
        hub.router = router_group(routers)
        hub.commands.add(GET_OFFLINE_MESSAGES, OfflinePull(hub.sessions, time.monotonic).handle)
        links: list[SessionLink | RouterLink] = [*shards, *routers]

        def is_idle() -> bool:
            return all(link.is_idle for link in links)

        await enter(background(watch.run(), auth.run(), *(link.run() for link in links)))
        # Clients that come before could only be refused.
        await unless_stopped(stop, readiness.wait(besides={_LISTENERS}))
        async with listening(settings, hub, is_idle):
            readiness.mark(_LISTENERS, present=True)
            await stop.wait()
        for link in links:
            link.say_goodbye()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while not is_idle():  # noqa: ASYNC110 - polled only when stopping
                    await asyncio.sleep(0.01)
