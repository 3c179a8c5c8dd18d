"""Answers what backend applications ask of JetStream's API; see `services.auth.domain.backend_api`.

Every replica of auth takes a part of the requests (a queue group). While auth is away, backends go on fetching,
acknowledging and publishing; only new consumers wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.auth.domain import backend_api
from services.common import subjects

logger = logging.getLogger(__name__)

API = "$JS.API"
TIMEOUT_S = 2.0
CONCURRENCY = 8
"""Requests that are answered at the same time; each is a subscription, whose messages nats-py hands over in turn."""
PENDING_MESSAGES = 1_000
"""Requests that wait for each of them; further ones are dropped, and their backends ask again."""


async def serve(client: Client) -> None:
    """Answer until cancelled."""

    async def on_request(message: Msg) -> None:
        try:
            await _answer(client, message)
        except (nats.errors.Error, TimeoutError) as error:
            logger.warning("backend's request got no answer", extra={"subject": message.subject, "error": repr(error)})

    subscriptions = [
        await client.subscribe(
            f"{subjects.BACKEND}.*.api.>", queue="auth", cb=on_request, pending_msgs_limit=PENDING_MESSAGES
        )
        for _ in range(CONCURRENCY)
    ]
    try:
        await asyncio.Event().wait()
    finally:
        for subscription in subscriptions:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()


async def _answer(client: Client, message: Msg) -> None:
    _, token, _, call = message.subject.split(".", 3)
    instance_id = subjects.decode_token(token)
    if not message.reply:
        return
    if call == "INFO":
        await client.publish(message.reply, backend_api.NO_USAGE)
        return
    try:
        backend_api.check(instance_id, call, message.data)
    except backend_api.DeniedError as error:
        logger.info("backend denied", extra={"instance_id": instance_id, "call": call, "reason": str(error)})
        if call.startswith("DIRECT."):  # answers with the message itself, and tells failures in headers
            await client.publish(message.reply, headers={"Status": "403", "Description": str(error)})
        else:
            await client.publish(message.reply, _denied(str(error)))
        return
    answer = await client.request(f"{API}.{call}", message.data, timeout=TIMEOUT_S)
    data = backend_api.only_own(instance_id, call, answer.data)
    await client.publish(message.reply, data, headers=answer.headers)


def _denied(reason: str) -> bytes:
    return json.dumps({"error": {"code": 403, "err_code": 0, "description": reason}}).encode()
