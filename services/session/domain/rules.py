"""How sessions are kept: the rules of product.md 3.1 and 3.2, whose values come with each opening. Pure."""

from __future__ import annotations

import dataclasses

from services.common.topics import SHARE_PREFIX


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """Rules of a session; equal ones are one object (`Shard.intern`)."""

    keeps_qos2: bool = False
    """Whether subscriptions of QoS 2 are kept, too."""
    strict_order: bool = False
    """Whether everything goes in order by acknowledgement; otherwise the backlog by the clock, live ones beside it."""
    batch_messages: int = 30
    """Messages of a backlog batch; 0: no pacing."""
    batch_interval_ms: int = 5_000
    """Milliseconds between batches."""
    acknowledgement_timeout_ms: int = 5_000
    """Milliseconds without an acknowledgement after which a delivery counts as offline."""
    offline_retention_ms: int = 3 * 86_400_000
    """Milliseconds that offline messages are kept."""
    max_offline_messages: int = 1_000_000
    """Offline messages of the instance that are kept."""
    session_expiry_ms: int = 0
    """Milliseconds that a session outlives its last connection; 0: for ever."""

    def keeps(self, topic_filter: str, qos: int) -> bool:
        """Say whether messages of a subscription are kept for a client that is away; of a shared one they are not."""
        if topic_filter.startswith(SHARE_PREFIX):
            return False
        return qos == 1 or (qos == 2 and self.keeps_qos2)  # noqa: PLR2004 - the QoS


DEFAULT = Rules()
"""Of clients that brought none: those with cleanSession 1, which get kept P2P messages."""
