"""Composition root of auth; reads top to bottom as the start order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator

from grpc import aio

from services.auth import backend_api
from services.auth.administration import Administration
from services.auth.auth_servicer import AuthServicer
from services.auth.bootstrap import bootstrap
from services.auth.device_servicer import DeviceServicer
from services.auth.device_store import DeviceStore
from services.auth.domain.backoff import Guard
from services.auth.domain.resources import Resources
from services.auth.domain.view import View
from services.auth.gate import Gate
from services.auth.issuing import TokenIssuer
from services.auth.resource_servicer import ResourceServicer
from services.auth.revocation_store import RevocationStore
from services.auth.sealing import Sealer
from services.auth.settings import AuthSettings
from services.auth.store import Store
from services.auth.streams import Streams
from services.auth.token_http import TokenApi, application
from services.auth.token_keys import TokenKeys
from services.auth.token_servicer import TokenServicer
from services.auth.watchers import Watchers
from services.common import grpc_server, http_server, jetstream
from services.common.errors import UnavailableError
from services.common.readiness import Readiness
from services.common.runtime import background, unless_stopped
from weimq.auth.v1 import (
    auth_pb2,
    auth_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)

logger = logging.getLogger(__name__)

RESOURCES = "resources"
"""Name under which `Readiness` lists the loaded resources, with their streams."""

RETRY_S = 0.5


@dataclasses.dataclass(frozen=True)
class Ports:
    """Where a running service listens."""

    grpc: list[int]
    http: int
    https: int | None = None


async def serve(settings: AuthSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    async with running(settings, stop):
        await stop.wait()


@contextlib.asynccontextmanager
async def running(settings: AuthSettings, stop: asyncio.Event) -> AsyncGenerator[Ports]:
    """Serve while the body runs; the body begins when everything is loaded.

    Raises:
        StopRequestedError: `stop` was set before.
        SealError: the master key is none.
        SettingsError: the files of HTTPS can't be used.
        BootstrapError: the bootstrap file can't be used.
        OSError: an address can't be bound.
    """
    sealer = Sealer(settings.master_key)
    tls = http_server.tls_context(
        settings.https_listen, settings.https_certificate_file, settings.https_key_file, "AUTH_"
    )
    readiness = Readiness(jetstream.DEPENDENCY, RESOURCES)
    gate = Gate()
    view = View()
    resources = view.resources
    guard = Guard(free_per_address=settings.free_failures_per_address, free_per_key=settings.free_failures_per_key)
    watchers = Watchers(view)
    auth_servicer = AuthServicer(view=view, guard=guard, watchers=watchers, gate=gate)
    resource_servicer = ResourceServicer(resources=resources, gate=gate)
    device_servicer = DeviceServicer(view=view, gate=gate)
    token_servicer = TokenServicer(gate)
    token_api = TokenApi(view=view, guard=guard, gate=gate)
    http = application(token_api, readiness)

    def register(server: aio.Server) -> list[str]:
        auth_pb2_grpc.add_AuthServiceServicer_to_server(auth_servicer, server)
        resource_pb2_grpc.add_ResourceServiceServicer_to_server(resource_servicer, server)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(device_servicer, server)
        token_pb2_grpc.add_TokenServiceServicer_to_server(token_servicer, server)
        files = [auth_pb2.DESCRIPTOR, resource_pb2.DESCRIPTOR, device_pb2.DESCRIPTOR, token_pb2.DESCRIPTOR]
        return [service.full_name for file in files for service in file.services_by_name.values()]

    # What is entered into `dependencies` outlives the servers, since running calls need it until they end.
    async with (
        contextlib.AsyncExitStack() as dependencies,
        grpc_server.serving(
            listen=settings.grpc_listen,
            token=settings.cluster_token,
            readiness=readiness,
            register=register,
            drain_s=settings.drain_s,
        ) as grpc_ports,
        http_server.serving(
            listen=settings.http_listen,
            app=http,
            drain_s=settings.drain_s,
        ) as http_port,
        http_server.also_serving(
            listen=settings.https_listen, app=http, drain_s=settings.drain_s, tls=tls
        ) as https_port,
    ):
        connected = jetstream.connected(
            settings.nats_url, name="auth", readiness=readiness, replicas=settings.nats_replicas
        )
        client = await unless_stopped(stop, dependencies.enter_async_context(connected))
        store = Store(client=client, resources=resources, sealer=sealer, changed=watchers.tell)
        device_store = DeviceStore(client=client, view=view.devices, sealer=sealer, changed=watchers.tell)
        administration = Administration(
            streams=Streams(client), store=store, devices=device_store, resources=resources, sealer=sealer
        )
        revocation_store = RevocationStore(client=client, revocations=view.revocations, changed=watchers.tell)
        work = store.run(), revocation_store.run(), device_store.run(), backend_api.serve(client)
        await dependencies.enter_async_context(background(*work))
        await unless_stopped(stop, revocation_store.loaded.wait())
        await unless_stopped(stop, device_store.loaded.wait())
        token_keys = TokenKeys(store=store, resources=resources, sealer=sealer)
        await unless_stopped(stop, _load(settings, store, token_keys, administration, resources))
        stores = store, revocation_store, device_store
        auth_servicer.view_age_s = lambda: max(each.age_s for each in stores)
        auth_servicer.revision = lambda: store.revision
        resource_servicer.administration = administration
        device_servicer.store = device_store
        token_servicer.token_keys = token_keys
        token_servicer.issuer = token_api.issuer = TokenIssuer(view=view, store=revocation_store)
        gate.open()
        readiness.mark(RESOURCES, present=True)
        try:
            yield Ports(list(grpc_ports), http_port, https_port)
        finally:
            # Open watches would use up the grace of all other calls.
            gate.close()
            watchers.close()


async def _load(
    settings: AuthSettings,
    store: Store,
    token_keys: TokenKeys,
    administration: Administration,
    resources: Resources,
) -> None:
    """Wait for the resources, make the first ones, and bring the streams into line."""
    await store.loaded.wait()
    while True:
        try:
            await token_keys.ensure()
            if settings.bootstrap_file is not None:
                await bootstrap(settings.bootstrap_file, administration, resources)
        except UnavailableError as error:
            logger.warning("first token key or instance is not made yet, trying on", extra={"cause": str(error)})
            await asyncio.sleep(RETRY_S)
        else:
            break
    await administration.reconcile()
