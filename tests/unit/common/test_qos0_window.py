"""How much of QoS 0 a link has under way."""

from __future__ import annotations

import pytest

from services.common import qos0_window
from services.common.qos0_window import FLOW_S, MOST_FRAMES, PATIENCE, Qos0Window

NOW = 1000.0


@pytest.fixture
def window() -> Qos0Window:
    return Qos0Window()


def fill(window: Qos0Window, first: int, now: float = NOW) -> int:
    """Send frames while they may go, and return the number of the last one."""
    while window.has_turn(False, now):
        window.sent(first)
        first += 1
    return first - 1


def test_alone_it_has_the_whole_window_at_once(window: Qos0Window) -> None:
    assert window.is_empty
    assert fill(window, 1) == MOST_FRAMES
    assert not window.is_empty
    window.confirmed(1)
    assert window.has_turn(False, NOW)


def test_while_others_flow_one_frame_is_under_way_and_it_is_small(window: Qos0Window) -> None:
    for frame in range(1, 100, 2):
        window.passed(NOW)
        assert window.is_narrow
        assert window.frame_bytes == qos0_window.NARROW_BYTES
        assert window.frame_messages == qos0_window.NARROW_MESSAGES
        assert fill(window, frame) == frame
        assert not window.has_turn(False, NOW)
        window.confirmed(frame)


def test_it_has_the_whole_window_again_once_others_rest(window: Qos0Window) -> None:
    for _ in range(20):
        window.passed(NOW)
    assert fill(window, 1, NOW + 0.9 * FLOW_S) == 1
    assert fill(window, 2, NOW + 1.1 * FLOW_S) == MOST_FRAMES
    assert not window.is_narrow
    assert window.frame_bytes == qos0_window.FRAME_BYTES
    assert window.frame_messages == qos0_window.FRAME_MESSAGES


def test_questions_that_go_first_are_no_messages_that_flow(window: Qos0Window) -> None:
    assert not window.has_turn(True, NOW)
    assert not window.is_narrow


def test_others_go_first_but_not_for_ever(window: Qos0Window) -> None:
    for _ in range(PATIENCE):
        assert not window.has_turn(True, NOW)
        window.passed(NOW)
    assert window.has_turn(True, NOW)
    window.sent(1)
    assert not window.has_turn(True, NOW)


def test_a_frame_that_nearly_closes_the_window_is_to_be_confirmed_at_once(window: Qos0Window) -> None:
    awaited = [window.sent(frame) for frame in range(1, MOST_FRAMES + 1)]
    assert awaited == [frame * 2 >= MOST_FRAMES for frame in range(1, MOST_FRAMES + 1)]
    window.confirmed(MOST_FRAMES)
    window.passed(NOW)
    assert window.sent(MOST_FRAMES + 1)


def test_what_is_held_waits_until_the_peer_says_so_or_knows_nothing_more(window: Qos0Window) -> None:
    window.sent(1)
    window.is_held = True
    assert not window.has_turn(False, NOW)
    window.passed(NOW)
    window.reset()
    assert window.has_turn(False, NOW)
    assert window.is_empty
    assert not window.is_narrow
