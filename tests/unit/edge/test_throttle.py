"""How long a client that is too fast is not read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.mqtt.events import Event
from services.edge.mqtt.packets import Publish, Subscribe
from services.edge.policy import Instance
from services.edge.throttle import Bucket, Throttle, throttle_of


def _publications(count: int) -> list[Event]:
    return [Publish("a", b"", 0, False, False, 0) for _ in range(count)]


def test_a_burst_of_one_second_is_free_and_the_rest_is_waited_for() -> None:
    throttle = Throttle(10, 0, now=0.0)
    assert throttle.take(1000, _publications(10), 0.0) == 0.0
    assert throttle.take(1000, _publications(5), 0.0) == pytest.approx(0.5)
    assert throttle.take(0, [], 0.5) == 0.0


def test_only_publications_count_as_messages() -> None:
    throttle = Throttle(1, 0, now=0.0)
    assert throttle.take(1000, [Subscribe(1, [("a", 0)])] * 100, 0.0) == 0.0


def test_the_slower_of_both_rates_counts() -> None:
    throttle = Throttle(1000, 100, now=0.0)
    assert throttle.take(300, _publications(1), 0.0) == pytest.approx(2.0)
    throttle = Throttle(1, 100_000, now=0.0)
    assert throttle.take(300, _publications(4), 0.0) == pytest.approx(3.0)


def _instance(messages: int, size: int) -> Instance:
    return Instance(
        instance_id="i",
        is_standard=True,
        max_topic_characters=0,
        max_payload_bytes=1,
        max_subscriptions=1,
        takeover=True,
        refuse_filters=True,
        max_publish_rate=messages,
        max_publish_bytes_rate=size,
    )


def test_no_rate_is_no_throttle_and_a_new_rate_a_new_one() -> None:
    assert throttle_of(_instance(0, 0), None, 0.0) is None
    first = throttle_of(_instance(5, 0), None, 0.0)
    assert first is not None
    assert throttle_of(_instance(5, 0), first, 9.0) is first
    second = throttle_of(_instance(5, 7), first, 9.0)
    assert second is not None
    assert (second.messages_per_s, second.bytes_per_s) == (5, 7)
    assert throttle_of(_instance(0, 0), second, 9.0) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 3)), min_size=1, max_size=50), st.integers(1, 100))
def test_a_reader_that_waits_as_told_never_exceeds_rate_and_burst(reads: list[tuple[int, float]], rate: int) -> None:
    bucket = Bucket(rate, 0.0)
    now = 0.0
    taken = 0
    last = 0
    for amount, idle_s in reads:
        now += idle_s
        # All but the last read, which is taken whole, fits what the time so far allows.
        assert taken <= rate * (now + 1.0) + 1e-6
        now += bucket.take(amount, now)
        taken += amount
        last = amount
    assert taken - last <= rate * (now + 1.0) + 1e-6
