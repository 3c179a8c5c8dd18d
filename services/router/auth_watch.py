"""The router's watch on auth: what exists (docs/decisions/0003-router-watches-auth.md)."""

from __future__ import annotations

import asyncio
import logging
import random

from grpc import aio

from services.common.linking import BACKOFF_S
from services.router.domain.catalog import AccessKey, Catalog, Instance, Topic
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

logger = logging.getLogger(__name__)

SILENCE_S = 5.0
"""A watch without a message for so long is broken; auth sends one every two seconds."""

_Call = aio.UnaryStreamCall[auth_pb2.WatchResourcesRequest, auth_pb2.WatchResourcesResponse]


class AuthWatch:
    """Keeps `catalog` current. While auth is away the last view stays."""

    def __init__(self) -> None:
        self.catalog: Catalog | None = None
        """What exists; None until auth has told. Replaced as a whole by each new snapshot."""
        self.loaded = asyncio.Event()
        """Set with the first catalog."""

    async def run(self, channel: aio.Channel) -> None:
        """Watch until cancelled."""
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        while True:
            call = stub.WatchResources(auth_pb2.WatchResourcesRequest(), wait_for_ready=True)
            try:
                await self._follow(call)
            except (aio.AioRpcError, TimeoutError) as error:
                # A watch that never began is auth starting; its own log says so.
                if self.catalog is not None:
                    text = error.details() if isinstance(error, aio.AioRpcError) else "silent"
                    logger.warning("watch on auth ended", extra={"error": text})
            finally:
                call.cancel()
            await asyncio.sleep(random.uniform(*BACKOFF_S))  # noqa: S311 - spreads load, no secret

    async def _follow(self, call: _Call) -> None:
        catalog = Catalog()
        while True:
            async with asyncio.timeout(SILENCE_S):
                change = await call.read()
            if not isinstance(change, auth_pb2.WatchResourcesResponse):
                return
            _apply(catalog, change)
            if change.snapshot_complete:
                self.catalog = catalog
                self.loaded.set()


def _apply(catalog: Catalog, change: auth_pb2.WatchResourcesResponse) -> None:
    for instance in change.instances:
        catalog.instances[instance.instance_id] = Instance(
            instance_id=instance.instance_id,
            is_standard=instance.profile == auth_pb2.PROFILE_STANDARD,
            max_topic_characters=instance.max_topic_characters,
            max_topic_levels=instance.max_topic_levels,
            max_payload_bytes=instance.max_payload_bytes,
        )
    for topic in change.topics:
        catalog.topics[topic.instance_id, topic.topic] = Topic(
            instance_id=topic.instance_id,
            topic=topic.topic,
            account_id=topic.account_id,
            is_logged=topic.logged,
            is_ordered=topic.ordered,
        )
    for topic in change.removed_topics:
        catalog.topics.pop((topic.instance_id, topic.topic), None)
    for group in change.groups:
        catalog.groups[group.instance_id, group.group_id] = group.account_id
    for group in change.removed_groups:
        catalog.groups.pop((group.instance_id, group.group_id), None)
    for key in change.removed_access_keys:
        catalog.keys.pop((key.instance_id, key.access_key_id), None)
    for key in change.access_keys:
        catalog.keys[key.instance_id, key.access_key_id] = AccessKey(
            account_id=key.account_id, may_publish=key.publish, topic_filters=tuple(key.topic_filters)
        )
    for token_id in change.revoked_token_ids:
        catalog.revoke_token(token_id)
    for instance_id in change.removed_instance_ids:
        catalog.remove_instance(instance_id)
