"""Who gives way when there are too many connections without CONNECT."""

from __future__ import annotations

import pytest

from services.edge.transports import strangers as strangers_module
from services.edge.transports.strangers import TLS_S, WAIT_S, Strangers


class Transport:
    def __init__(self, *, is_tls: bool) -> None:
        self._is_tls = is_tls

    def get_extra_info(self, name: str, default: object = None) -> object:
        return object() if name == "sslcontext" and self._is_tls else default


PLAIN = Transport(is_tls=False)
SECURE = Transport(is_tls=True)


class Layer:
    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def _aborted(*layers: Layer) -> list[bool]:
    return [layer.is_aborted for layer in layers]


def test_the_one_that_got_no_further_for_the_longest_time_gives_way() -> None:
    strangers = Strangers(limit=2)
    a, b, c, d = Layer(), Layer(), Layer(), Layer()
    strangers.enter(a, PLAIN)
    strangers.enter(b, PLAIN)
    strangers.enter(c, PLAIN)
    assert _aborted(a, b, c) == [True, False, False]
    strangers.leave(a)  # its connection is lost later
    strangers.leave(b)
    strangers.enter(b, PLAIN)  # the next layer of the same connection
    strangers.enter(d, PLAIN)
    assert _aborted(b, c, d) == [False, True, False]
    assert (len(strangers), strangers.closed_count) == (2, 2)


def test_those_in_tls_have_a_bound_of_their_own_and_some_seconds_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("services.edge.transports.strangers.time.monotonic", lambda: now)
    strangers = Strangers(limit=10, tls_limit=2)
    silent, a, b, c = Layer(), Layer(), Layer(), Layer()
    strangers.enter(silent, PLAIN)
    strangers.enter(a, PLAIN)
    assert strangers.tls_wait_s() == 0
    strangers.start_tls(a)
    now += 1
    strangers.enter(b, SECURE)
    assert strangers.tls_wait_s() == WAIT_S
    strangers.leave(b)
    assert strangers.tls_wait_s() == 0
    strangers.enter(c, SECURE)
    now += TLS_S - 1.5
    assert strangers.tls_wait_s() == WAIT_S
    now += 1
    assert strangers.tls_wait_s() == 0
    assert _aborted(silent, a, c) == [False, True, False]


def test_all_can_be_closed() -> None:
    strangers = Strangers()
    a, b = Layer(), Layer()
    assert not strangers.close_oldest()
    strangers.enter(a, PLAIN)
    strangers.enter(b, SECURE)
    strangers.close_all()
    assert _aborted(a, b) == [True, True]
    assert len(strangers) == 0


def test_they_share_a_budget_for_large_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers_module, "STRANGERS_BYTES", 20_000)
    strangers = Strangers()
    assert strangers.may_hold("a", 4096)
    assert strangers.may_hold("a", 10_000)
    assert strangers.may_hold("b", 10_000)
    assert not strangers.may_hold("c", 5000)
    assert strangers.may_hold("small", 4096)
    strangers.release("a")
    strangers.release("c")
    assert strangers.may_hold("c", 5000)


def test_giving_way_is_told_once_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    strangers = Strangers(limit=1)
    for _ in range(4):
        strangers.enter(Layer(), PLAIN)
    assert [record.message for record in caplog.records] == ["too many connections without CONNECT, closing the oldest"]
