"""An auth service that knows what the test says, for services that watch it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from grpc import aio
from typing_extensions import override

from weimq.auth.v1 import auth_pb2, auth_pb2_grpc


class FakeAuth(auth_pb2_grpc.AuthServiceServicer):
    """Serves `WatchResources` only."""

    def __init__(self) -> None:
        self._snapshot: list[auth_pb2.WatchResourcesResponse] = []
        self._watches: list[asyncio.Queue[auth_pb2.WatchResourcesResponse]] = []

    def tell(self, **fields: Any) -> None:
        """Tell a change to all that watch, now and later."""
        change = auth_pb2.WatchResourcesResponse(**fields)
        self._snapshot.append(change)
        for watch in self._watches:
            watch.put_nowait(change)

    def put_instance(self, instance_id: str, **fields: Any) -> None:
        limits = {"profile": auth_pb2.PROFILE_LMQ, "max_topic_characters": 64, "max_payload_bytes": 1 << 16}
        self.tell(instances=[auth_pb2.InstancePolicy(instance_id=instance_id, **{**limits, **fields})])

    def put_topic(self, instance_id: str, topic: str, *, logged: bool = True, ordered: bool = False) -> None:
        self.tell(topics=[auth_pb2.TopicPolicy(instance_id=instance_id, topic=topic, logged=logged, ordered=ordered)])

    def put_group(self, instance_id: str, group_id: str, account_id: str = "") -> None:
        self.tell(groups=[auth_pb2.GroupPolicy(instance_id=instance_id, group_id=group_id, account_id=account_id)])

    def put_key(self, instance_id: str, access_key_id: str, account_id: str, **fields: Any) -> None:
        policy = auth_pb2.AccessKeyPolicy(
            instance_id=instance_id, access_key_id=access_key_id, account_id=account_id, **{"publish": True, **fields}
        )
        self.tell(access_keys=[policy])

    def remove_topic(self, instance_id: str, topic: str) -> None:
        self.tell(removed_topics=[auth_pb2.TopicPolicy(instance_id=instance_id, topic=topic)])

    @override
    async def WatchResources(
        self, request: auth_pb2.WatchResourcesRequest, context: Any
    ) -> AsyncIterator[auth_pb2.WatchResourcesResponse]:
        watch: asyncio.Queue[auth_pb2.WatchResourcesResponse] = asyncio.Queue()
        self._watches.append(watch)
        try:
            for change in self._snapshot:
                yield change
            yield auth_pb2.WatchResourcesResponse(snapshot_complete=True)
            while True:
                try:
                    yield await asyncio.wait_for(watch.get(), 1)
                except TimeoutError:
                    yield auth_pb2.WatchResourcesResponse()
        finally:
            self._watches.remove(watch)

    @contextlib.asynccontextmanager
    async def serving(self, address: str) -> AsyncGenerator[FakeAuth]:
        """Serve at `unix:/path`."""
        server = aio.server()
        auth_pb2_grpc.add_AuthServiceServicer_to_server(self, server)
        server.add_insecure_port(address)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)
