"""Messages that clients will never get, and why. Pure."""

from __future__ import annotations

from typing import NamedTuple

EXPIRED = "expired"
"""Kept for longer than the retention, or deleted by the log's."""
OVER_LIMIT = "over_limit"
"""The oldest of an instance with too many."""
NOT_PERMITTED = "not_permitted"
"""The client may not have it any more."""
SESSION_EXPIRED = "session_expired"
"""The session outlived its last connection for too long."""
SESSION_DELETED = "session_deleted"
"""An operator deleted the session."""
LOG_DELETED = "log_deleted"
"""The stream that had it was deleted."""
NOT_STORED = "not_stored"
"""No log could store it: it is too large, or its topic was deleted meanwhile."""


class Dropped(NamedTuple):
    """A message that a client will never get."""

    instance_id: str
    client_id: str
    delivery_id: int
    reason: str
    topic: str = ""
    """Empty: its log knows."""
