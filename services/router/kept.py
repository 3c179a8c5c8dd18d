"""Where messages are kept for sessions when their topic has no log, or the receiver of a P2P message may be away.

Each router has a stream of its own for each instance, since a position is one only where messages are stored in the
order of their reports. It is made when the first such message comes; without one, nothing is written.
"""

from __future__ import annotations

from nats.js import api

from services.common import subjects
from services.router.ports import Log
from services.router.streams import StreamMaker

MAX_AGE_S = 3 * 86_400
"""How long messages are kept for clients that are away, in seconds."""
DUPLICATE_WINDOW_S = 600
"""How long JetStream knows message ids, in seconds: as for ordered topics."""


class Kept:
    """The streams of kept messages that one router writes.

    Args:
        router_index: of the router.
    """

    def __init__(self, router_index: int) -> None:
        self._router_index = router_index
        self._names: dict[str, tuple[str, str]] = {}
        self.streams = StreamMaker(self._config)
        """Makes them."""
        self.messages = 0
        """Messages that were written to them."""

    def write(
        self,
        log: Log,
        instance_id: str,
        payload: bytes,
        message_id: str,
        lines: bytes,
        token: object,
        may_repeat: bool,  # noqa: FBT001 - hot path
    ) -> None:
        """Write a message to the stream of an instance; see `StreamMaker.write`."""
        self.messages += 1
        subject = self.subject(instance_id)
        self.streams.write(log, instance_id, subject, payload, message_id, lines, token, may_repeat)

    def subject(self, instance_id: str) -> str:
        """Return the subject of the kept messages of an instance."""
        return self._name(instance_id)[0]

    def log(self, instance_id: str) -> str:
        """Return the name of their stream."""
        return self._name(instance_id)[1]

    def _name(self, instance_id: str) -> tuple[str, str]:
        names = self._names.get(instance_id)
        if names is None:
            names = self._names[instance_id] = (
                subjects.kept_subject(instance_id, self._router_index),
                subjects.kept_stream(instance_id, self._router_index),
            )
        return names

    def _config(self, instance_id: str) -> api.StreamConfig:
        return api.StreamConfig(
            name=self.log(instance_id),
            subjects=[self.subject(instance_id)],
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_age=MAX_AGE_S,
            duplicate_window=DUPLICATE_WINDOW_S,
            allow_direct=True,
        )
