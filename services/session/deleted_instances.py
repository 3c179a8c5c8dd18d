"""Sessions of instances that were deleted: forgotten, with all that waits for them, and their connections closed.

Auth deletes the entries of an instance in the bucket `sessions`, and leaves a mark there (`subjects.sessions_mark`). A
shard asks for the marks of the instances that it has sessions of; one that starts finds no entries any more. A mark is
acted on in the round of questions after it was left: an instance that is made again under its id meanwhile may lose
sessions of that time, of `POLL_S`; one that had no sessions when it was deleted loses none that are made later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from services.common import subjects
from services.common.errors import UnavailableError
from services.session import subscriptions
from services.session.domain.roster import Roster
from services.session.domain.sessions import Session

logger = logging.getLogger(__name__)

POLL_S = 30.0
"""How often is asked for marks."""
SLICE = 500
"""Sessions forgotten at once."""


class DeletedInstances:
    """Looks for marks. Owned by one event loop; `run` is its pump.

    Args:
        js: of NATS.
        roster: has the sessions.
        known_through: sequence of the bucket through which it was read.
        forget: forgets a session, and closes its connection.
    """

    def __init__(
        self, *, js: JetStreamContext, roster: Roster, known_through: int, forget: Callable[[Session], None]
    ) -> None:
        self._js = js
        self._roster = roster
        self._looked_through = known_through  # sequence of the bucket; older marks were acted on, or told nothing
        self._done: dict[str, int] = {}  # newer marks that were acted on: sequence by instance
        self._forget = forget

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._look()
            except (UnavailableError, nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
                logger.warning("can't see whether instances were deleted, trying on", extra={"error": repr(error)})

    async def _look(self) -> None:
        through = await subscriptions.last_sequence(self._js)
        for instance_id in [each.instance_id for each in self._roster.instances.values() if each.sessions]:
            await self._look_at(instance_id)
        self._looked_through = through
        self._done = {instance_id: sequence for instance_id, sequence in self._done.items() if sequence > through}

    async def _look_at(self, instance_id: str) -> None:
        try:
            mark = await self._js.get_last_msg(subjects.SESSIONS_STREAM, subjects.sessions_mark(instance_id))
        except nats.js.errors.NotFoundError:
            return
        sequence = mark.seq or 0
        instance = self._roster.instances.get(instance_id)
        if instance is None or sequence <= self._done.get(instance_id, self._looked_through):
            return
        self._done[instance_id] = sequence
        sessions = list(instance.sessions.values())
        logger.info("instance was deleted", extra={"instance_id": instance_id, "sessions": len(sessions)})
        for number, session in enumerate(sessions, 1):
            if self._roster.sessions.get(session.slot) is session:
                self._forget(session)
            if number % SLICE == 0:
                await asyncio.sleep(0)
