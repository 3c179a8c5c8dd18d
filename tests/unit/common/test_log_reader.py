"""What a stream says of its messages."""

from __future__ import annotations

import pytest

from services.common.log_reader import StoredMessage


@pytest.mark.parametrize(
    ("stamp", "time_ms"),
    [
        ("2026-11-26T13:00:00.999876543Z", 999),
        ("2026-11-26T13:00:00.05Z", 50),  # trailing zeros are left out
        ("2026-11-26T13:00:00Z", 0),
    ],
)
def test_the_time_of_a_message_has_its_milliseconds(stamp: str, time_ms: int) -> None:
    """A subscription is compared with it: up to a second less would take the room that differing clocks have."""
    message = StoredMessage({"Nats-Subject": "mq.out.i.a", "Nats-Sequence": "1", "Nats-Time-Stamp": stamp}, b"")
    assert message.time_ms % 60_000 == time_ms
