"""The edge's calls to auth: checks of CONNECT, gathered, and the watch on what exists."""

from __future__ import annotations

import asyncio
import logging
import random

from grpc import aio

from services.common.linking import BACKOFF_S
from services.common.readiness import Readiness
from services.edge.mqtt.packets import Connect, ConnectReturnCode
from services.edge.policy import Instance, ParentTopic, Policies
from services.edge.ports import Client
from weimq.auth.v1 import auth_pb2, auth_pb2_grpc

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 500
"""CONNECT packets in one call."""
MAX_WAITING = 20_000
"""CONNECT packets that may wait for their call; a further one is answered CONNACK 3."""
TIMEOUT_S = 5.0
"""Deadline of a call."""
SILENCE_S = 5.0
"""A watch without a message for so long is broken; auth sends one every second."""
DEPENDENCY = "auth"

_RETURN_CODES = {
    auth_pb2.CONNECT_OUTCOME_IDENTIFIER_REJECTED: ConnectReturnCode.IDENTIFIER_REJECTED,
    auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS: ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD,
    auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED: ConnectReturnCode.NOT_AUTHORIZED,
}


class AuthClient:
    """Checks credentials and keeps `policies` current; owned by one event loop."""

    def __init__(
        self, *, channel: aio.Channel, policies: Policies, readiness: Readiness, default_instance: str
    ) -> None:
        self._stub = auth_pb2_grpc.AuthServiceStub(channel)
        self._policies = policies
        self._readiness = readiness
        self._default_instance = default_instance
        self._waiting: list[tuple[Client, auth_pb2.ConnectAttempt]] = []
        self._wake = asyncio.Event()

    def authenticate(self, client: Client, connect: Connect) -> None:
        """Check a CONNECT; see `ports.Authenticator`."""
        if len(self._waiting) >= MAX_WAITING:
            client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "too many connections at once")
            return
        attempt = auth_pb2.ConnectAttempt(
            client_id=connect.client_id,
            user_name=connect.username,
            password=connect.password,
            default_instance_id=self._default_instance,
            address=client.address,
        )
        self._waiting.append((client, attempt))
        self._wake.set()

    async def run_checks(self) -> None:
        """Send what has gathered, one call at a time, until cancelled."""
        while True:
            await self._wake.wait()
            batch = self._waiting[:MAX_ATTEMPTS]
            del self._waiting[:MAX_ATTEMPTS]
            if not self._waiting:
                self._wake.clear()
            await self._check(batch)

    async def _check(self, batch: list[tuple[Client, auth_pb2.ConnectAttempt]]) -> None:
        request = auth_pb2.AuthenticateRequest(attempts=[attempt for _, attempt in batch])
        try:
            response = await self._stub.Authenticate(request, timeout=TIMEOUT_S)
        except aio.AioRpcError as error:
            logger.warning("auth did not answer", extra={"code": error.code().name, "error": error.details()})
            for client, _ in batch:
                client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "auth did not answer")
            return
        for (client, _), result in zip(batch, response.results, strict=True):
            if result.outcome != auth_pb2.CONNECT_OUTCOME_ACCEPTED:
                # An outcome that this edge does not know yet is a refusal, too.
                code = _RETURN_CODES.get(result.outcome, ConnectReturnCode.NOT_AUTHORIZED)
                client.on_authenticated(None, code, result.reason)
                continue
            grant = self._policies.grant(result.instance_id, result.account_id)
            if grant is None:
                # The watch has not brought the instance yet.
                client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "instance not known yet")
            else:
                client.on_authenticated(grant, ConnectReturnCode.ACCEPTED, "")

    async def run_watch(self) -> None:
        """Keep `policies` current until cancelled. While auth is away the last view stays."""
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
        instances: set[str] = set()
        topics: set[tuple[str, str]] = set()
        in_snapshot = True
        while True:
            async with asyncio.timeout(SILENCE_S):
                change = await call.read()
            if not isinstance(change, auth_pb2.WatchResourcesResponse):
                return
            self._apply(change)
            if in_snapshot:
                instances.update(policy.instance_id for policy in change.instances)
                topics.update((policy.instance_id, policy.topic) for policy in change.topics)
                if change.snapshot_complete:
                    in_snapshot = False
                    self._policies.keep_only(instances, topics)
                    self._readiness.mark(DEPENDENCY, present=True)

    def _apply(self, change: auth_pb2.WatchResourcesResponse) -> None:
        for instance in change.instances:
            self._policies.put_instance(
                Instance(
                    instance_id=instance.instance_id,
                    is_standard=instance.profile == auth_pb2.PROFILE_STANDARD,
                    max_topic_characters=instance.max_topic_characters,
                    max_payload_bytes=instance.max_payload_bytes,
                    max_subscriptions=instance.max_subscriptions,
                    takeover=instance.takeover,
                    refuse_filters=instance.refuse_filters,
                    strict_order=instance.strict_order,
                    offline_batch_messages=instance.offline_batch_messages,
                    offline_batch_interval_ms=instance.offline_batch_interval_ms,
                    acknowledgement_timeout_ms=instance.acknowledgement_timeout_ms,
                    offline_retention_ms=instance.offline_retention_ms,
                    max_offline_messages=instance.max_offline_messages,
                    session_expiry_ms=instance.session_expiry_ms,
                )
            )
        for topic in change.topics:
            self._policies.put_topic(
                topic.instance_id,
                ParentTopic(topic=topic.topic, account_id=topic.account_id, logged=topic.logged),
            )
        for topic in change.removed_topics:
            self._policies.remove_topic(topic.instance_id, topic.topic)
        for instance_id in change.removed_instance_ids:
            self._policies.remove_instance(instance_id)
