"""Sessions of instances that were deleted: forgotten, with all that waits for them, and their connections closed.

Auth deletes the entries of an instance in the bucket `sessions`, and leaves a mark there (`subjects.sessions_mark`). A
shard asks for the marks of the instances that it has sessions of; one that starts finds no entries any more. An
instance that is made again under its id within `POLL_S` may lose sessions of that time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from services.common import subjects
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
        self._known_through = known_through
        self._known: dict[str, int] = {}  # sequence of the mark that was acted on
        self._forget = forget

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            for instance_id in [each.instance_id for each in self._roster.instances.values() if each.sessions]:
                try:
                    await self._look(instance_id)
                except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
                    extra = {"instance_id": instance_id, "error": repr(error)}
                    logger.warning("can't see whether an instance was deleted, trying on", extra=extra)

    async def _look(self, instance_id: str) -> None:
        try:
            mark = await self._js.get_last_msg(subjects.SESSIONS_STREAM, subjects.sessions_mark(instance_id))
        except nats.js.errors.NotFoundError:
            return
        sequence = mark.seq or 0
        if sequence <= self._known.get(instance_id, self._known_through):
            return
        self._known[instance_id] = sequence
        sessions = list(self._roster.instances[instance_id].sessions.values())
        logger.info("instance was deleted", extra={"instance_id": instance_id, "sessions": len(sessions)})
        for number, session in enumerate(sessions, 1):
            if self._roster.sessions.get(session.slot) is session:
                self._forget(session)
            if number % SLICE == 0:
                await asyncio.sleep(0)
