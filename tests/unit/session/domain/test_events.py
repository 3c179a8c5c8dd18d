"""Lifecycle events: their form, and what they leave behind."""

from __future__ import annotations

import pytest

from services.session.domain.events import Event, Fold, RecentChannels, group_of, parse_event


def event(tag: str, channel: str, time_ms: int = 1, index: int = 9) -> Event:
    return Event("i", "GID_XXX@@@YYY", tag, channel, "192.168.0.1:13345", time_ms, "edge/1", index)


def test_the_body_is_that_of_the_specification() -> None:
    body = event("connect", "2b9b1281046046faafe5e0b458e4f553", 1212121212000).body()
    assert body == (
        b'{"clientId":"GID_XXX@@@YYY","time":1212121212000,"eventType":"connect",'
        b'"channelId":"2b9b1281046046faafe5e0b458e4f553","clientIp":"192.168.0.1:13345","eventIndex":9}'
    )
    parsed = parse_event("i", body, "edge/1")
    assert parsed.body() == body
    assert (parsed.instance_id, parsed.edge) == ("i", "edge/1")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"clientId":"a"}', b"\xff"])
def test_a_foreign_body_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is not part of the promise
        parse_event("i", body, "")


@pytest.mark.parametrize(
    ("client_id", "group"),
    [
        ("GID_A@@@1", "GID_A"),
        ("GID_A@@@1@@@2", "GID_A"),
        ("plain", "-"),
        ("@@@1", "-"),
        ("", "-"),
        ("x" * 64 + "@@@1", "x" * 64),
        ("x" * 65 + "@@@1", "-"),
        ("ü" * 33 + "@@@1", "-"),
    ],
)
def test_the_group_is_what_comes_before_the_separator(client_id: str, group: str) -> None:
    assert group_of(client_id) == group


def test_events_may_repeat_in_a_fold() -> None:
    fold = Fold()
    for tag in ("connect", "connect", "disconnect", "tcpclean", "tcpclean", "connect"):
        fold.apply(event(tag, "a"))
    fold.apply(event("connect", "b", 7))
    fold.apply(event("disconnect", "b", 5))
    assert set(fold.opened) == {"b"}
    assert fold.last_time_ms == 7


def test_an_event_of_a_version_without_index_is_understood() -> None:
    body = b'{"clientId":"a","time":3,"eventType":"connect","channelId":"c","clientIp":"x"}'
    assert parse_event("i", body, "edge/1").index == 0


def test_recent_channels_are_bounded_and_keep_the_latest() -> None:
    recent = RecentChannels(size=10)
    for number in range(100):
        recent.add(str(number))
        recent.add(str(number))
        assert [n for n in range(100) if str(n) in recent] == list(range(max(0, number - 9), number + 1))
