"""Back-off of those who guess."""

from __future__ import annotations

import pytest

from services.auth.domain import backoff
from services.auth.domain.backoff import Attempt, Backoff, Guard, host_of


def blocked_for(table: Backoff, name: str, now: float) -> float:
    """Return how long a name has to wait, to a tenth of a second."""
    return next(tenth / 10 for tenth in range(10_000) if not table.is_blocked(name, now + tenth / 10))


def test_the_first_failures_are_free_and_each_further_one_doubles_the_wait() -> None:
    table = Backoff(3)
    now = 0.0
    assert [table.failed("a", now) for _ in range(3)] == [False] * 3
    assert not table.is_blocked("a", now)
    waits = []
    for _ in range(9):
        assert table.failed("a", now)
        waits.append(blocked_for(table, "a", now))
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not table.is_blocked("b", now)


def test_failures_are_forgotten_when_none_came_for_long() -> None:
    table = Backoff(1)
    assert not table.failed("a", 0)
    assert table.failed("a", 1)
    assert not table.failed("a", 1 + backoff.FORGOTTEN_S + 1)
    assert not table.is_blocked("a", 1 + backoff.FORGOTTEN_S + 1)


def test_a_bound_of_zero_blocks_nobody() -> None:
    table = Backoff(0)
    for _ in range(100):
        assert not table.failed("a", 0)
    assert not table.is_blocked("a", 0)
    assert len(table) == 0


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_NAMES", 3)
    table = Backoff(1)
    for name in ("a", "a", "b", "c", "a", "d"):
        table.failed(name, 0)
    assert len(table) == 3
    assert table.is_blocked("a", 0)  # it failed after b


def test_a_guesser_is_refused_and_a_good_client_from_there_is_not() -> None:
    guard = Guard(free_per_address=2, free_per_key=100)
    good = Attempt("10.0.0.1", "Signature|AK1|one", "GID_one@@@1")
    guesser = Attempt("10.0.0.1", "Signature|AK2|one", "GID_one@@@2")
    guard.succeeded(good)
    for _ in range(3):
        assert guard.admits(guesser, 0)
        guard.failed(guesser, 0)
    assert not guard.admits(guesser, 0)
    assert not guard.admits(Attempt("10.0.0.1", "Signature|AK3|one", "GID_one@@@3"), 0)
    assert guard.admits(good, 0)
    assert guard.admits(Attempt("10.0.0.2", "Signature|AK2|one", "GID_one@@@2"), 0)
    assert guard.admits(guesser, 1)


def test_a_key_that_is_guessed_from_everywhere_is_for_known_clients_only() -> None:
    guard = Guard(free_per_address=100, free_per_key=2)
    good = Attempt("10.0.0.9", "Signature|AK1|one", "GID_one@@@1")
    guard.succeeded(good)
    for number in range(3):
        guard.failed(Attempt(f"10.0.0.{number}", "Signature|AK1|one", "x"), 0)
    assert not guard.admits(Attempt("10.0.0.7", "Signature|AK1|one", "x"), 0)
    assert not guard.admits(Attempt("10.0.0.8", "Signature|AK1|one", "GID_one@@@1"), 0)
    assert guard.admits(good, 0)
    assert guard.admits(Attempt("10.0.0.7", "Signature|AK2|one", "x"), 0)


def test_a_name_that_is_empty_or_too_long_counts_for_nothing() -> None:
    guard = Guard(free_per_address=1, free_per_key=1)
    for key in ("", "x" * 257):
        for _ in range(5):
            assert not guard.failed(Attempt(key=key), 0)
        assert guard.admits(Attempt(key=key), 0)


def test_good_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_GOOD", 2)
    guard = Guard(free_per_address=1, free_per_key=100)
    clients = [Attempt("a", "k", str(number)) for number in range(5)]
    for client in (clients[0], clients[0], *clients, clients[4]):
        guard.succeeded(client)
    for _ in range(2):
        guard.failed(Attempt("a"), 0)
    assert [guard.admits(client, 0) for client in clients] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1:1", "127.0.0.1"),
        ("[2001:db8::1]:5", "2001:db8::"),
        ("2001:db8::1:5", "2001:db8::"),
        ("[fe80::1%eth0]:5", "fe80::"),
        ("", ""),
        ("unix", "unix"),
        ("a:b:c", "a:b"),
    ],
)
def test_hosts(address: str, host: str) -> None:
    assert host_of(address) == host
