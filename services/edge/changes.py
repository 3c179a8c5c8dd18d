"""Changes of subscriptions on their way to a session shard.

Each stays here until the shard answered it or its connection ended, and is sent again to a shard that was restarted.
Bounded by the requests that a connection may have unanswered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weimq.session.v1 import session_pb2


class Changes:
    """The changes of all connections, numbered for each. Owned by the link with the shard."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._waiting: dict[str, dict[int, tuple[session_pb2.SubscriptionChange, Callable[[], None]]]] = {}
        self._unsent: list[session_pb2.SubscriptionChange] = []

    @property
    def has_unsent(self) -> bool:
        """Whether there is something to send."""
        return bool(self._unsent)

    def add(
        self, channel_id: str, added: Sequence[tuple[str, int]], removed: Sequence[str], done: Callable[[], None]
    ) -> None:
        """Take a change of a connection; `done` is called when it is stored."""
        number = self._numbers[channel_id] = self._numbers.get(channel_id, 0) + 1
        change = session_pb2.SubscriptionChange(
            channel_id=channel_id,
            number=number,
            added=[session_pb2.Subscription(topic_filter=topic_filter, qos=qos) for topic_filter, qos in added],
            removed_topic_filters=removed,
        )
        self._waiting.setdefault(channel_id, {})[number] = (change, done)
        self._unsent.append(change)

    def take(self, count: int) -> list[session_pb2.SubscriptionChange]:
        """Return and forget up to `count` that are to be sent, in order."""
        taken = self._unsent[:count]
        del self._unsent[:count]
        return taken

    def stored(self, channel_id: str, number: int) -> None:
        """Note that the shard has stored a change."""
        waiting = self._waiting.get(channel_id)
        if waiting is None or number not in waiting:
            return
        _, done = waiting.pop(number)
        if not waiting:
            del self._waiting[channel_id]
        done()

    def forget(self, channel_id: str) -> None:
        """Note that a connection is gone: what it asked for before is still sent, and nobody waits for the answer."""
        self._numbers.pop(channel_id, None)
        self._waiting.pop(channel_id, None)

    def start_anew(self) -> None:
        """Have everything that is not answered sent again."""
        self._unsent = [change for waiting in self._waiting.values() for change, _ in waiting.values()]
