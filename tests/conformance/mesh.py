"""Two edges, a router, two session shards and NATS: all real but auth, in a thread, as plain MQTT clients see them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import uvloop
from grpc import aio

from services.common import grpc_server
from services.common.healthcheck import is_serving
from services.common.readiness import Readiness
from services.common.runtime import until_stopped
from services.common.settings import Secret
from services.edge import app as edge_app
from services.edge.settings import EdgeSettings
from services.router import app as router_app
from services.router.settings import RouterSettings
from services.session import app as session_app
from services.session.settings import SessionSettings
from tests.conformance.live import TOKEN, OpenAuth
from tests.support.edge_world import Device
from tests.support.nats import running_server
from tests.support.ports import free_ports
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

EDGES = 2
SHARDS = 2
START_S = 30.0


class SessionMesh:
    """Connections of one test to the edges."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._devices: list[Device] = []

    async def connect(self, edge: int = 0) -> Device:
        """Open a TCP connection to an edge."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[edge])
        device = Device(reader, writer)
        self._devices.append(device)
        return device

    def close(self) -> None:
        """Drop every connection."""
        for device in self._devices:
            device.abort()


async def _run(nats_url: str, folder: Path, ports: list[int], ready: threading.Event, stop: asyncio.Event) -> None:
    auth = OpenAuth(auth_pb2.PROFILE_STANDARD)

    def register(server: aio.Server) -> list[str]:
        auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
        return []

    url = Secret(nats_url)
    auth_address, router = f"unix:{folder}/auth.sock", f"unix:{folder}/router.sock"
    shards = tuple(f"unix:{folder}/session-{n}.sock" for n in range(SHARDS))
    edges = [f"unix:{folder}/edge-{n}.sock" for n in range(EDGES)]
    services = [
        router_app.serve(
            RouterSettings(
                cluster_token=TOKEN,
                drain_s=1,
                nats_url=url,
                grpc_listen=(router,),
                edge_grace_s=1,
                shard_count=SHARDS,
            ),
            stop,
        ),
        *(
            session_app.serve(
                SessionSettings(
                    cluster_token=TOKEN,
                    drain_s=1,
                    nats_url=url,
                    grpc_listen=(address,),
                    router=(router,),
                    shard_index=n,
                    shard_count=SHARDS,
                    edge_grace_s=1,
                ),
                stop,
            )
            for n, address in enumerate(shards)
        ),
        *(
            edge_app.serve(
                EdgeSettings(
                    cluster_token=TOKEN,
                    drain_s=1,
                    id=f"edge-{n}",
                    tcp_listen=f"127.0.0.1:{ports[n]}",
                    grpc_listen=(address,),
                    auth=auth_address,
                    session=shards,
                    router=(router,),
                ),
                stop,
            )
            for n, address in enumerate(edges)
        ),
    ]
    async with (
        grpc_server.serving(listen=[auth_address], token=TOKEN, readiness=Readiness(), register=register, drain_s=0),
        asyncio.TaskGroup() as group,
    ):
        for service in services:
            group.create_task(until_stopped(service))
        for address in edges:
            while not await is_serving(address):  # noqa: ASYNC110 - the health service is asked, it tells nobody
                await asyncio.sleep(0.01)
        ready.set()  # leaving waits until all have stopped


@contextlib.contextmanager
def running_mesh() -> Iterator[list[int]]:
    """Run it all; return the ports of the edges."""
    ports = free_ports(EDGES)
    ready = threading.Event()
    loop = uvloop.new_event_loop()
    stop = asyncio.Event()
    with running_server() as server, tempfile.TemporaryDirectory(prefix="weimq-") as folder:
        work = _run(server.url, Path(folder), ports, ready, stop)
        thread = threading.Thread(target=loop.run_until_complete, args=(work,))
        thread.start()
        try:
            assert ready.wait(START_S), "the mesh does not get ready"
            yield ports
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            loop.close()
