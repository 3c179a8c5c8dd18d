"""Messages on their way from the logs to connections: each is wanted once, however many wait for it. Pure, hot path."""

from __future__ import annotations

from services.session.domain.positions import FLAG_BITS
from services.session.domain.sessions import Channel, Fetch


class Fetching:
    """What is being fetched. Owned by one event loop."""

    def __init__(self) -> None:
        self.wanted: list[int] = []
        """Delivery ids to be fetched from their logs, once each; `take` is called for each."""
        self._waiters: dict[int, list[Channel]] = {}  # by delivery id

    def fetch(self, channel: Channel, position: int, time_s: int, *, is_live: bool) -> None:
        """Have a message fetched for a connection; it is the last of those that are."""
        delivery_id = position >> FLAG_BITS
        channel.fetches[delivery_id] = Fetch(position, time_s, is_live=is_live)
        channel.live_fetches += is_live
        channel.outbox.fetching += 1
        waiters = self._waiters.get(delivery_id)
        if waiters is None:
            self._waiters[delivery_id] = [channel]
            self.wanted.append(delivery_id)
        else:
            waiters.append(channel)

    def take(self, delivery_id: int, topic: str, payload: bytes) -> list[Channel]:
        """Give a message to those that wait for it, and return them; an empty topic: the log does not have it."""
        given: list[Channel] = []
        for channel in self._waiters.pop(delivery_id, ()):
            fetch = channel.fetches.get(delivery_id)
            if fetch is not None and not fetch.is_done:
                fetch.is_done, fetch.topic, fetch.payload = True, topic, payload
                given.append(channel)
        return given


def release(channel: Channel, fetch: Fetch) -> None:
    """Note that a fetch of a connection ended."""
    channel.live_fetches -= fetch.is_live
    channel.outbox.fetching -= 1
