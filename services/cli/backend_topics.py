"""The logged parent topics of every instance, as auth's watch tells them; for `weimq backend follow`."""

from __future__ import annotations

import asyncio

from grpc import aio

from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

SILENCE_S = 5.0
"""A watch without a message for so long is broken; auth sends one every two seconds."""


class TopicWatch:
    """Follows auth. Owned by one event loop."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when `logged` has changed; cleared by who takes it."""
        self.logged: dict[str, set[str]] = {}
        """Topics by instance. Nothing before the first change is told."""

    async def run(self, channel: aio.Channel) -> None:
        """Follow until auth ends the watch, or is silent.

        Raises:
            aio.AioRpcError: auth does not answer.
        """
        call = auth_pb2_grpc.AuthServiceStub(channel).WatchResources(auth_pb2.WatchResourcesRequest())
        snapshot: dict[str, set[str]] | None = {}
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    change = await call.read()
                if not isinstance(change, auth_pb2.WatchResourcesResponse):
                    return
                has_changed = _apply(change, self.logged if snapshot is None else snapshot)
                if snapshot is not None and change.snapshot_complete:
                    self.logged, snapshot = snapshot, None
                    has_changed = True
                if has_changed and snapshot is None:
                    self.changed.set()
        except TimeoutError:
            return
        finally:
            call.cancel()


def _apply(change: auth_pb2.WatchResourcesResponse, logged: dict[str, set[str]]) -> bool:
    """Bring `logged` up to date; returns whether that may have changed it."""
    for instance_id in change.removed_instance_ids:
        logged.pop(instance_id, None)
    for instance in change.instances:
        logged.setdefault(instance.instance_id, set())
    for topic in (*change.removed_topics, *change.topics):
        logged.setdefault(topic.instance_id, set()).discard(topic.topic)
    for topic in change.topics:
        if topic.logged:
            logged[topic.instance_id].add(topic.topic)
    return bool(change.removed_instance_ids or change.instances or change.removed_topics or change.topics)
