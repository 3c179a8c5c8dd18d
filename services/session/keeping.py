"""Composition of the persistent sessions: files, logs, links with the routers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import AsyncGenerator

from grpc import aio
from nats.aio.client import Client

from services.common.log_reader import LogReader
from services.common.log_writer import LogWriter
from services.common.runtime import background, unless_stopped
from services.session import subscriptions
from services.session.announcer import Announcer
from services.session.catch_up import CatchUp
from services.session.clock import Clock
from services.session.deleted_instances import DeletedInstances
from services.session.files import Files
from services.session.keeper import Keeper
from services.session.router_link import RouterLink
from services.session.settings import SessionSettings

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def keeping(
    keeper: Keeper,
    settings: SessionSettings,
    stop: asyncio.Event,
    *,
    client: Client,
    channels: list[aio.Channel],
    clock: Clock,
) -> AsyncGenerator[None]:
    """Read what is stored, then keep sessions until left; on leaving the last checkpoint is stored.

    Args:
        keeper: owns the sessions.
        settings: of the service.
        stop: ends the reading when it is set.
        client: of NATS.
        channels: to the routers, in the order of their index.
        clock: tells the time.
    """
    js = client.jetstream(timeout=5)
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        index, count = keeper.place
        files: Files | None = None
        if settings.data_dir is not None:
            files = await asyncio.to_thread(Files, settings.data_dir, f"{index} of {count}")
            stack.callback(files.close)
        reader = LogReader(client)
        writer = LogWriter(client, stored=keeper.stored, failed=keeper.failed)
        await enter(background(reader.run(), writer.run()))
        await unless_stopped(stop, keeper.load(js, reader, files))
        announcer = Announcer(js=js, writer=writer, reader=reader, losses=keeper.losses, clock=clock)
        incarnation = secrets.token_hex(8)
        keeper.links = [
            RouterLink(
                index=number,
                channel=channel,
                token=settings.cluster_token,
                place=keeper.place,
                incarnation=incarnation,
                shard=keeper.shard,
                clock=clock,
                flush=keeper.flush,
                read_again=keeper.read_again,
                keep_until_stored=functools.partial(keeper.checkpointer.keep_until_stored, acknowledges=False),
            )
            for number, channel in enumerate(channels)
        ]
        readings = [
            CatchUp(
                client=client,
                reader=reader,
                shard=keeper.shard,
                link=link,
                routers=len(channels),
                clock=clock,
                flush=keeper.flush,
                is_last=keeper.is_caught_up,
            )
            for link in keeper.links
        ]
        keeper.begin(writer, reader)
        checkpoint = keeper.checkpointer.checkpoint
        stack.push_async_callback(checkpoint)  # to forget what was announced
        stack.push_async_callback(announcer.finish)  # without files the next process knows nothing of these losses
        stack.push_async_callback(checkpoint)
        deleted = DeletedInstances(
            js=js, roster=keeper.shard.roster, known_through=keeper.read_through, forget=keeper.forget
        )
        await enter(
            background(
                keeper.run(),
                keeper.checkpointer.run(),
                announcer.run(),
                deleted.run(),
                subscriptions.clear(js, keeper.markers if index == 0 else []),
                *(link.run() for link in keeper.links),
                *(reading.run() for reading in readings),
            )
        )
        yield
