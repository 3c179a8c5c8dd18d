"""The spread of clients and topics: fixed for ever, and even."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from services.common.sharding import ROUTER_SLOTS, router_of, shard_of

BOTH = pytest.mark.parametrize("place_of", [shard_of, router_of])


NAMES = ("GID_demo@@@device1", "demo", "", "ü")


def test_place_never_changes() -> None:
    # Stored sessions and inbound messages are found by it: these figures may not change.
    assert [shard_of("mqtt-demo", name, 1000) for name in NAMES] == [210, 90, 92, 663]
    assert [router_of("mqtt-demo", name, ROUTER_SLOTS) for name in NAMES] == [5, 22, 8, 46]


@BOTH
def test_single_process_has_everything(place_of: Callable[[str, str, int], int]) -> None:
    assert {place_of("mqtt-demo", f"name{n}", 1) for n in range(100)} == {0}


@BOTH
def test_spread_is_even(place_of: Callable[[str, str, int], int]) -> None:
    counts = Counter(place_of("mqtt-demo", f"GID_demo@@@device{n}", 4) for n in range(10_000))
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_instances_are_spread_differently() -> None:
    assert len({shard_of(f"mqtt-{n}", "device", 16) for n in range(100)}) == 16
