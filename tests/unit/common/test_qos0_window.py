"""How much of QoS 0 a link has under way."""

from __future__ import annotations

import pytest

from services.common.qos0_window import MOST_FRAMES, PATIENCE, Qos0Window


@pytest.fixture
def window() -> Qos0Window:
    return Qos0Window()


def fill(window: Qos0Window, first: int) -> int:
    """Send frames while they may go, and return the number of the last one."""
    while window.has_turn(False):
        window.sent(first)
        first += 1
    return first - 1


def test_alone_it_has_the_whole_window_at_once(window: Qos0Window) -> None:
    assert window.is_empty
    assert fill(window, 1) == MOST_FRAMES
    assert not window.is_empty
    window.confirmed(1)
    assert window.has_turn(False)


def test_while_others_flow_one_frame_is_under_way(window: Qos0Window) -> None:
    for frame in range(1, 100, 2):
        window.passed()
        window.passed()
        window.passed()
        if frame > 10:
            assert fill(window, frame) == frame
            assert not window.has_turn(False)
            window.confirmed(frame)


def test_it_widens_with_what_is_confirmed_once_others_rest(window: Qos0Window) -> None:
    for _ in range(20):
        window.passed()
    last, before, rounds = 0, 0, 0
    while last - before < MOST_FRAMES:
        before, last = last, fill(window, last + 1)
        window.confirmed(last)
        rounds += 1
        assert rounds < 10
    assert window.is_empty


def test_others_go_first_but_not_for_ever(window: Qos0Window) -> None:
    for _ in range(PATIENCE):
        assert not window.has_turn(True)
        window.passed()
    assert window.has_turn(True)
    window.sent(1)
    assert not window.has_turn(True)


def test_a_frame_that_nearly_closes_the_window_is_to_be_confirmed_at_once(window: Qos0Window) -> None:
    awaited = [window.sent(frame) for frame in range(1, MOST_FRAMES + 1)]
    assert awaited == [frame * 2 >= MOST_FRAMES for frame in range(1, MOST_FRAMES + 1)]


def test_what_is_held_waits_until_the_peer_says_so_or_knows_nothing_more(window: Qos0Window) -> None:
    window.sent(1)
    window.is_held = True
    assert not window.has_turn(False)
    window.reset()
    assert window.has_turn(False)
    assert window.is_empty


def test_while_others_are_late_it_goes_after_some_of_their_frames(window: Qos0Window) -> None:
    window.is_late = True
    assert window.is_narrow
    assert not window.has_turn(False)
    for _ in range(PATIENCE):
        window.passed()
    assert fill(window, 1) == 1
    window.is_late = False
    window.confirmed(1)
    assert window.has_turn(False)
