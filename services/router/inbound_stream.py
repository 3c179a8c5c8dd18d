"""The streams of inbound messages: their configuration, and the consumer of each router."""

from __future__ import annotations

import contextlib

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext, api

from services.common import subjects
from services.common.errors import UnavailableError
from services.common.jetstream import DEPENDENCY as NATS
from services.common.jetstream import ensure_stream
from services.common.sharding import ROUTER_SLOTS

DUPLICATE_WINDOW_S = 600
"""How long a backend's `Nats-Msg-Id` keeps its message from being stored twice."""
MAX_IN_BYTES = 4 << 30
"""Bound of what waits while no router takes it; beyond, NATS refuses what backends publish."""
MAX_DEAD_AGE_S = 7 * 86_400
MAX_DEAD_BYTES = 1 << 30
"""Bounds of the messages that can't be routed; the oldest go."""
ACK_WAIT_S = 30.0
MAX_ACK_PENDING = 32_768
"""Above what a router takes."""

_PREFIX = "router-"


def in_config() -> api.StreamConfig:
    """Return the configuration of the stream of inbound messages, a work queue sorted by the slots of topics."""
    names = "{{wildcard(1)}}.{{wildcard(2)}}"
    return api.StreamConfig(
        name=subjects.IN_STREAM,
        subjects=[f"{subjects.IN}.*.*"],
        subject_transform=api.SubjectTransform(
            src=f"{subjects.IN}.*.*", dest=f"{subjects.IN}.{{{{partition({ROUTER_SLOTS},1,2)}}}}.{names}"
        ),
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.WORK_QUEUE,
        discard=api.DiscardPolicy.NEW,
        max_bytes=MAX_IN_BYTES,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


def dead_config() -> api.StreamConfig:
    """Return the configuration of the stream of messages that can't be routed."""
    return api.StreamConfig(
        name=subjects.DEAD_STREAM,
        subjects=[f"{subjects.DEAD}.>"],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_age=MAX_DEAD_AGE_S,
        max_bytes=MAX_DEAD_BYTES,
        duplicate_window=DUPLICATE_WINDOW_S,
        allow_direct=True,
    )


async def open_consumer(js: JetStreamContext, index: int, count: int) -> tuple[str, str, int]:
    """Make the consumer of a router anew, so that what was delivered and not acknowledged comes first, in order.

    Args:
        js: connected.
        index: of the router.
        count: of routers.

    Returns:
        The name of the consumer, what tells this stream from one of the same name before it, and the last sequence that
        the router before this one may have pulled.

    Raises:
        UnavailableError: JetStream does not answer as it should; routers of another count may still be there.
    """
    try:
        await ensure_stream(js, in_config())
        await ensure_stream(js, dead_config())
        for info in await js.consumers_info(subjects.IN_STREAM):
            number = info.name.removeprefix(_PREFIX)
            if number.isdecimal() and (int(number) == index or int(number) >= count):
                with contextlib.suppress(nats.js.errors.NotFoundError):  # another router was quicker
                    await js.delete_consumer(subjects.IN_STREAM, info.name)
        # Two consumers of a work queue may not overlap: those of a router of another count are refused, or refuse us.
        slots = [f"{subjects.IN}.{slot}.>" for slot in range(ROUTER_SLOTS) if slot % count == index]
        config = api.ConsumerConfig(
            durable_name=f"{_PREFIX}{index}",
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=MAX_ACK_PENDING,
            filter_subjects=slots if count > 1 else None,
        )
        await js.add_consumer(subjects.IN_STREAM, config)
        stream = await js.stream_info(subjects.IN_STREAM)
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"consumer of inbound messages: {error!r}", dependency=NATS) from error
    return f"{_PREFIX}{index}", str(stream.created), stream.state.last_seq
