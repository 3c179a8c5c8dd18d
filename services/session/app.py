"""Composition root of the session service."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from grpc import aio

from services.common import grpc_client, grpc_server, http_server, jetstream, log_health, ticks
from services.common.readiness import Readiness
from services.common.runtime import background, unless_stopped
from services.session.checkpoints import Checkpoints
from services.session.clock import Clock
from services.session.domain.events import Fold
from services.session.event_log import EventLog
from services.session.event_streams import keep_streams
from services.session.hub import Hub
from services.session.keeping import keeping
from services.session.presence_servicer import PresenceServicer
from services.session.servicer import SessionServicer
from services.session.settings import SessionSettings
from services.session.store import Store
from services.session.wills import RouterGroup, WillPublisher
from weimq.router.v1 import router_pb2_grpc
from weimq.session.v1 import presence_pb2, presence_pb2_grpc, session_pb2, session_pb2_grpc

logger = logging.getLogger(__name__)

TICK_S = 0.1
"""How often deadlines are looked at."""
PRESENCE = "presence"
"""Name under which `Readiness` lists the presence: the events of the past have been read."""


async def serve(settings: SessionSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; reads top to bottom as the start order."""
    readiness = Readiness(jetstream.DEPENDENCY, PRESENCE, log_health.DEPENDENCY)
    clock = Clock()
    place = (settings.shard_index, settings.shard_count)
    hub = Hub(edge_grace_s=settings.edge_grace_s, clock=clock, place=place)
    servicer = SessionServicer(hub)

    def register(server: aio.Server) -> list[str]:
        session_pb2_grpc.add_SessionServiceServicer_to_server(servicer, server)
        presence_pb2_grpc.add_PresenceServiceServicer_to_server(PresenceServicer(hub), server)
        return [
            session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
            presence_pb2.DESCRIPTOR.services_by_name["PresenceService"].full_name,
        ]

    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(
            grpc_server.serving(
                listen=settings.grpc_listen,
                token=settings.cluster_token,
                readiness=readiness,
                register=register,
                drain_s=settings.drain_s,
            )
        )
        await enter(
            http_server.serving_health(listen=settings.http_listen, readiness=readiness, drain_s=settings.drain_s)
        )
        stack.push_async_callback(servicer.end_links)  # open streams would use the grace up
        connected = jetstream.connected(
            settings.nats_url, name="weimq-session", readiness=readiness, replicas=settings.nats_replicas
        )
        client = await unless_stopped(stop, enter(connected))
        js = client.jetstream(timeout=5)

        store = Store(client, js, place=place)
        fold = Fold()
        sequences = await unless_stopped(stop, store.recover(fold))
        # Routers may be away: clients are let in without it, and wills wait.
        channels = [await enter(grpc_client.channel(address, settings.cluster_token)) for address in settings.router]
        wills = WillPublisher(RouterGroup([router_pb2_grpc.RouterServiceStub(each).Publish for each in channels]))
        events = EventLog(client, is_alone=settings.shard_count == 1)
        for instance_id, sequence in sequences.items():
            events.restore(instance_id, sequence)
        checkpoints = Checkpoints(hub.presence, events, store, interval_s=settings.checkpoint_s)
        running = events.run(), keep_streams(js, events), events.watch(readiness), wills.run(), checkpoints.run()
        await enter(background(*running))
        await enter(keeping(hub.keeper, settings, stop, client=client, channels=channels, clock=clock))
        hub.start(events, wills, fold)
        # Inside, since nothing may come due once the links have ended: no edge is lost because we stop.
        async with background(_tick(hub)):
            readiness.mark(PRESENCE, present=True)
            await stop.wait()
        readiness.mark(PRESENCE, present=False)
        await servicer.end_links()
        await _finish(events, wills, checkpoints, settings.drain_s)


async def _tick(hub: Hub) -> None:
    """Have done what is due, until cancelled."""
    while True:
        if hub.tick():
            await asyncio.sleep(0)
        elif hub.presence.is_waiting:
            await asyncio.sleep(TICK_S)
        else:
            await ticks.tick()


async def _finish(events: EventLog, wills: WillPublisher, checkpoints: Checkpoints, drain_s: float) -> None:
    """Have the last events stored, checkpoints written and wills published, within a time."""
    try:
        async with asyncio.timeout(drain_s):
            await events.drained.wait()
            await checkpoints.write()
            await wills.drained()
    except TimeoutError:
        extra = {"wills": wills.waiting}
        logger.warning("stopped before everything was stored; the edges will repeat it, but no wills", extra=extra)
