"""Which rules of an instance can be changed, and between which values. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from services.auth.domain.records import Instance, Profile

TEN_YEARS_S = 10 * 366 * 86_400
"""JetStream counts in nanoseconds and would overflow at some 292 years."""

_MAX_INT32 = (1 << 31) - 1

SWITCHES = frozenset({"anonymous", "takeover", "refuse_filters", "strict_order"})
RANGES: Mapping[str, tuple[int, int]] = {
    "max_topic_characters": (0, 65_535),
    "max_topic_levels": (0, 65_535),
    # One message must fit JetStream (8 MiB) with its headers.
    "max_payload_bytes": (1, 7 << 20),
    "max_subscriptions": (1, 1_000_000),
    "offline_batch_messages": (0, 10_000),
    "offline_batch_interval_ms": (100, 3_600_000),
    "acknowledgement_timeout_ms": (1_000, 600_000),
    "offline_retention_ms": (60_000, TEN_YEARS_S * 1_000),
    "max_offline_messages": (0, 1_000_000_000),
    "session_expiry_ms": (0, TEN_YEARS_S * 1_000),
    "max_publish_rate": (0, 1_000_000),
    "max_publish_bytes_rate": (0, _MAX_INT32),
}
SETTABLE = SWITCHES | RANGES.keys()


def fault(name: str, value: int, instance: Instance) -> str | None:
    """Return what is wrong with a new value of a settable rule of `instance`, or None."""
    if name == "anonymous" and value and instance.profile is not Profile.STANDARD:
        return "is allowed in PROFILE_STANDARD only"
    if name in RANGES:
        minimum, maximum = RANGES[name]
        if not minimum <= value <= maximum:
            return f"must be {minimum} to {maximum}"
    return None
