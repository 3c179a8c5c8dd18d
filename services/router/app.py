"""Composition of the router service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import prometheus_client
from grpc import aio

from services.common import grpc_client, grpc_server, http_server, jetstream, log_health, runtime
from services.common.log_tail import LogTails
from services.common.log_writer import LogWriter
from services.common.readiness import Readiness
from services.router import members, metrics, retained, servicer
from services.router.auth_watch import AuthWatch
from services.router.calls import Calls
from services.router.inbound import Inbound
from services.router.kept import Kept
from services.router.log_rules import LogRules
from services.router.publisher import ExternalPublisher
from services.router.receipts import Receipts
from services.router.router import STREAM_TOKENS, Router
from services.router.settings import RouterSettings
from services.router.shards import Shards
from services.router.store import KnownEdges
from weimq.router.v1 import router_pb2, router_pb2_grpc


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; reads top to bottom as the start order.

    Edges may link from the beginning; what they publish waits until NATS answers, the retained messages are read and
    the edges that the process before this one knew are back.
    """
    readiness = Readiness(jetstream.DEPENDENCY, retained.DEPENDENCY, members.DEPENDENCY, log_health.DEPENDENCY)
    shards = Shards(settings.shard_count)
    kept = Kept(settings.index)
    retained_messages = retained.Retained(
        max_messages=settings.max_retained_messages, max_bytes=settings.max_retained_bytes
    )
    router = Router(retained=retained_messages, kept=kept, shards=shards, index=settings.index, count=settings.count)
    watch = AuthWatch()
    inbound = Inbound(router=router, catalog=lambda: watch.catalog, index=settings.index, count=settings.count)
    publisher = ExternalPublisher(router)
    receipts = Receipts(router)
    calls = Calls(watch=watch, publisher=publisher, receipts=receipts)
    known = KnownEdges(settings.index)
    edges = members.Members(
        router=router, shards=shards, known=known, readiness=readiness, edge_grace_s=settings.edge_grace_s
    )

    def register(server: aio.Server) -> Iterable[str]:
        router_pb2_grpc.add_RouterServiceServicer_to_server(servicer.RouterServicer(edges, calls), server)
        return [router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name]

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
        stack.callback(publisher.close)
        stack.callback(receipts.close)
        stack.callback(edges.close)  # ends the streams, which would use up the grace of the server
        auth = await enter(grpc_client.channel(settings.auth, settings.cluster_token))
        await enter(runtime.background(edges.run(), watch.run(auth)))
        connected = jetstream.connected(
            settings.nats_url, name="router", readiness=readiness, replicas=settings.nats_replicas
        )
        client = await runtime.unless_stopped(stop, enter(connected))
        js = client.jetstream()
        rules = LogRules(watch)
        log = LogWriter(
            client,
            stored=router.reports.stored,
            failed=router.reports.failed,
            stream_tokens=STREAM_TOKENS,
            is_ordered=rules.is_ordered,
            is_ours=rules.is_ours,
            is_gone=rules.is_gone,
            is_full=router.full_logs.note,
            tails=LogTails(client, rules.stream_of),
        )
        figures = metrics.RouterMetrics(router=router, retained=retained_messages, shards=shards, log=log, calls=calls)
        prometheus_client.REGISTRY.register(figures)
        stack.callback(prometheus_client.REGISTRY.unregister, figures)
        noted = await runtime.unless_stopped(stop, known.load(js))
        await runtime.unless_stopped(stop, retained_messages.load(client, router.serves))
        readiness.mark(retained.DEPENDENCY, present=True)
        running = log.run(), known.run(js), retained_messages.run(js, log), kept.streams.run(js, log)
        await enter(runtime.background(*running, inbound.run(client, log), log_health.watch(log, readiness)))
        edges.await_edges(noted, log)
        await stop.wait()
