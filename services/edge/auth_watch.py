"""The edge's watch on auth: keeps `Policies` current, and carries out what changes mean for connections.

While auth is away the last view stays, and clients go on with what they had, up to a bound: an edge that has heard
nothing for longer can't know what was revoked, so it closes its clients and lets nobody in until it has a view again.
"""

from __future__ import annotations

import asyncio
import logging
import random

from grpc import aio

from services.common import ticks
from services.common.linking import BACKOFF_S
from services.common.readiness import Readiness
from services.edge.policies import Policies, Snapshot
from services.edge.policy import AccessKey, Instance, ParentTopic
from services.edge.roster import Roster
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

logger = logging.getLogger(__name__)

SILENCE_S = 5.0
"""A watch without a message for so long is broken; auth sends one every two seconds."""
EFFECTS_AT_ONCE = 100
"""Connections that are dealt with before others get their turn."""
MAX_CREDENTIALS = 10_000
"""Device credentials in one question."""
TIMEOUT_S = 10.0
"""Deadline of that question."""
LOOK_S = 1.0
"""How often the age of the view is looked at, at least."""
DEPENDENCY = "auth"

_INSTANCE_FIELDS = (
    "instance_id",
    "max_topic_characters",
    "max_payload_bytes",
    "max_subscriptions",
    "takeover",
    "refuse_filters",
    "strict_order",
    "offline_batch_messages",
    "offline_batch_interval_ms",
    "acknowledgement_timeout_ms",
    "offline_retention_ms",
    "max_offline_messages",
    "session_expiry_ms",
    "max_topic_levels",
    "max_publish_rate",
    "max_publish_bytes_rate",
)


class AuthWatch:
    """Follows auth; owned by one event loop."""

    def __init__(
        self, *, channel: aio.Channel, policies: Policies, roster: Roster, readiness: Readiness, max_age_s: float
    ) -> None:
        self._stub = auth_pb2_grpc.AuthServiceStub(channel)
        self._policies = policies
        self._roster = roster
        self._readiness = readiness
        self._max_age_s = max_age_s
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._has_effects = asyncio.Event()

    async def run(self) -> None:
        """Keep the view current until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._carry_out())
            group.create_task(self._guard())

    async def _watch(self) -> None:
        while True:
            call = self._stub.WatchResources(auth_pb2.WatchResourcesRequest(), wait_for_ready=True)
            try:
                await self._follow(call)
            except (aio.AioRpcError, TimeoutError) as error:
                text = error.details() if isinstance(error, aio.AioRpcError) else "silent"
                logger.warning("watch on auth ended", extra={"error": text})
            finally:
                self._readiness.mark(DEPENDENCY, present=False)
                call.cancel()
            await asyncio.sleep(random.uniform(*BACKOFF_S))  # noqa: S311 - spreads load, no secret

    async def _follow(
        self, call: aio.UnaryStreamCall[auth_pb2.WatchResourcesRequest, auth_pb2.WatchResourcesResponse]
    ) -> None:
        snapshot: Snapshot | None = Snapshot()
        while True:
            async with asyncio.timeout(SILENCE_S):
                change = await call.read()
            if not isinstance(change, auth_pb2.WatchResourcesResponse):
                return
            self._apply(change)
            if snapshot is not None:
                _note(snapshot, change)
                if change.snapshot_complete:
                    self._policies.keep_only(snapshot)
                    snapshot = None
                    await self._check_credentials()
                    self._policies.is_outdated = False
                    self._readiness.mark(DEPENDENCY, present=True)
            if snapshot is None:
                # Auth goes on sending while NATS is away; what it has then is as old as it says.
                self._heard = self._loop.time() - change.view_age_ms / 1000
            if self._policies.effects:
                self._has_effects.set()

    def _apply(self, change: auth_pb2.WatchResourcesResponse) -> None:
        policies = self._policies
        for instance_id in change.removed_instance_ids:
            policies.remove_instance(instance_id)
        for instance in change.instances:
            policies.put_instance(
                Instance(
                    is_standard=instance.profile == auth_pb2.PROFILE_STANDARD,
                    **{name: getattr(instance, name) for name in _INSTANCE_FIELDS},
                )
            )
        for removed_topic in change.removed_topics:
            policies.remove_topic(removed_topic.instance_id, removed_topic.topic)
        for topic in change.topics:
            policies.put_topic(
                topic.instance_id,
                ParentTopic(topic=topic.topic, account_id=topic.account_id, logged=topic.logged, ordered=topic.ordered),
            )
        for removed_group in change.removed_groups:
            policies.remove_group(removed_group.instance_id, removed_group.group_id)
        for group in change.groups:
            policies.put_group(group.instance_id, group.group_id, group.account_id)
        for removed_key in change.removed_access_keys:
            policies.remove_key(removed_key.instance_id, removed_key.access_key_id)
        for key in change.access_keys:
            policies.put_key(
                key.instance_id,
                key.access_key_id,
                AccessKey(
                    account_id=key.account_id,
                    publish=key.publish,
                    subscribe=key.subscribe,
                    topic_filters=tuple(key.topic_filters),
                    create_time_ms=key.create_time_ms,
                ),
            )
        for token_id in change.revoked_token_ids:
            policies.revoke_token(token_id)
        for credential_id in change.removed_device_credential_ids:
            policies.remove_credential(credential_id)

    async def _check_credentials(self) -> None:
        """Ask for the device credentials in use: changes of theirs are not part of a snapshot."""
        in_use = self._roster.device_credentials()
        for start in range(0, len(in_use), MAX_CREDENTIALS):
            request = auth_pb2.CheckDeviceCredentialsRequest(
                device_credential_ids=in_use[start : start + MAX_CREDENTIALS]
            )
            response = await self._stub.CheckDeviceCredentials(request, timeout=TIMEOUT_S)
            for credential_id in response.removed_device_credential_ids:
                self._policies.remove_credential(credential_id)

    async def _carry_out(self) -> None:
        """Tell connections what they have lost, some at a time."""
        effects = self._policies.effects
        while True:
            await self._has_effects.wait()
            self._has_effects.clear()
            while effects:
                for _ in range(min(EFFECTS_AT_ONCE, len(effects))):
                    effects.popleft()()
                await asyncio.sleep(0)

    async def _guard(self) -> None:
        """Fail closed when the view has become too old."""
        while True:
            await ticks.tick(min(LOOK_S, self._max_age_s / 4))
            age_s = self._loop.time() - self._heard
            if age_s > self._max_age_s and not self._policies.is_outdated:
                logger.error("auth away for too long, closing clients", extra={"age_s": round(age_s)})
                self._policies.is_outdated = True
                self._policies.withdraw_all()
                self._has_effects.set()


def _note(snapshot: Snapshot, change: auth_pb2.WatchResourcesResponse) -> None:
    snapshot.instances.update(instance.instance_id for instance in change.instances)
    snapshot.topics.update((topic.instance_id, topic.topic) for topic in change.topics)
    snapshot.groups.update((group.instance_id, group.group_id) for group in change.groups)
    snapshot.keys.update((key.instance_id, key.access_key_id) for key in change.access_keys)
