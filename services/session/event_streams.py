"""The streams of lifecycle events: those that are missing are made, and how far an instance's events are stored.

A stream that does not exist is created, also when it was deleted while events wait for it: an edge must not wait for
ever.
"""

from __future__ import annotations

import asyncio
import logging

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext, api

from services.common import jetstream, subjects
from services.common.errors import UnavailableError
from services.session.event_log import EventLog, InstanceLog

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often instances whose events are not stored are looked at."""
RETENTION_S = 3 * 86_400.0
DUPLICATE_WINDOW_S = 600.0


async def accounted_sequence(log: InstanceLog) -> int:
    """Wait until what is written now is stored, and return the sequence of the last of it; one caller at a time.

    Takes its mark before it waits for the first time.
    """
    if log.stored == log.written:
        return log.sequence
    mark = log.set_mark()
    try:
        await mark.reached.wait()
    finally:
        log.mark = None
    return mark.sequence


def stream_config(instance_id: str) -> api.StreamConfig:
    """Return the stream of an instance's events."""
    return api.StreamConfig(
        name=subjects.event_stream(instance_id),
        subjects=[subjects.event_filter(instance_id)],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        max_age=RETENTION_S,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


async def keep_streams(js: JetStreamContext, events: EventLog) -> None:
    """Create the streams that are missing, until cancelled."""
    looked_at: dict[str, int] = {}  # by instance: how many of its events were stored then
    while True:
        for instance_id in sorted(events.unsure):
            if await _ensure(js, events, instance_id):
                events.unsure.discard(instance_id)
        events.wanted.clear()
        try:
            async with asyncio.timeout(LOOK_S):
                await events.wanted.wait()
        except TimeoutError:
            for instance_id in events.instances:
                log = events.of(instance_id)
                if log.stored != log.written and log.stored == looked_at.get(instance_id, 0):
                    events.unsure.add(instance_id)
                looked_at[instance_id] = log.stored


async def _ensure(js: JetStreamContext, events: EventLog, instance_id: str) -> bool:
    config = stream_config(instance_id)
    try:
        await js.stream_info(subjects.event_stream(instance_id))
    except nats.js.errors.NotFoundError:
        try:
            await jetstream.ensure_stream(js, config)
        except UnavailableError as error:
            logger.warning("event stream not created, trying on", extra={"stream": config.name, "error": str(error)})
            return False
        events.of(instance_id).sequence = 0  # whatever went before, went with the stream
        logger.info("event stream created", extra={"stream": config.name})
    except (nats.errors.Error, TimeoutError):
        return False
    return True
