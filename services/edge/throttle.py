"""Inbound rates of one client: two token buckets that say how long not to read. Pure.

Nothing is dropped and nothing is refused: a client beyond its rate is read more slowly, so that TCP slows it down. What
one read of the socket brought is taken whole, as a debt that the pause pays off.
"""

from __future__ import annotations

from services.edge.mqtt.events import Event
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.policy import Instance

BURST_S = 1.0
"""Seconds of its rate that a client may save up."""


class Bucket:
    """Tokens that come at a rate, up to those of `BURST_S`; may be overdrawn."""

    __slots__ = ("_level", "_rate", "_time")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._level = rate * BURST_S
        self._time = now

    def take(self, amount: int, now: float) -> float:
        """Spend `amount` and return the seconds until the debt is paid, 0.0: there is none."""
        level = self._level + (now - self._time) * self._rate
        level = min(level, self._rate * BURST_S) - amount
        self._level = level
        self._time = now
        return -level / self._rate if level < 0 else 0.0


class Throttle:
    """What a client may publish and send in a second."""

    __slots__ = ("_bytes", "_messages", "bytes_per_s", "messages_per_s")

    def __init__(self, messages_per_s: int, bytes_per_s: int, now: float) -> None:
        """Start with full buckets; 0 is no bound."""
        self.messages_per_s = messages_per_s
        self.bytes_per_s = bytes_per_s
        self._messages = Bucket(messages_per_s, now) if messages_per_s else None
        self._bytes = Bucket(bytes_per_s, now) if bytes_per_s else None

    def take(self, size: int, events: list[Event], now: float) -> float:
        """Count what one read brought and return the seconds for which not to read.

        Args:
            size: bytes of the read.
            events: what they held; each PUBLISH counts.
            now: monotonic seconds.
        """
        pause_s = self._bytes.take(size, now) if self._bytes is not None else 0.0
        if self._messages is not None:
            published = sum(1 for event in events if isinstance(event, Publish))
            published += sum(event.count for event in events if isinstance(event, PublishRun))
            pause_s = max(pause_s, self._messages.take(published, now))
        return pause_s


def throttle_of(instance: Instance, current: Throttle | None, now: float) -> Throttle | None:
    """Return `current` if it has the rates of the instance, else one that has; None: there are none."""
    rates = (instance.max_publish_rate, instance.max_publish_bytes_rate)
    if rates == (0, 0):
        return None
    if current is not None and (current.messages_per_s, current.bytes_per_s) == rates:
        return current
    return Throttle(*rates, now)
