from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.edge.mqtt.codec import encode
from services.edge.mqtt.errors import LocalUseError
from services.edge.mqtt.inflight import UNKEPT, Identifiers, ReceivedIds, SessionState
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Publish, PublishRun
from services.edge.mqtt.window import MAX_IDENTIFIER, SentWindow

MESSAGE = OutboundMessage(b"a", b"payload", False)


@pytest.mark.spec("MQTT-2.3.1-2")
@pytest.mark.spec("MQTT-2.3.1-4")
def test_identifiers_wrap_to_1_and_skip_those_in_use() -> None:
    window = SentWindow(3)
    assert window.add(MESSAGE, 1, None) == 1
    for expected in range(2, MAX_IDENTIFIER + 1):
        assert window.add(MESSAGE, 1, None) == expected
        assert window.complete_qos1(expected) is not None
    assert window.add(MESSAGE, 2, None) == 2, "1 is still in use"
    assert window.release(2)
    assert window.complete_qos1(1) is not None
    for expected in [*range(3, MAX_IDENTIFIER + 1), 1, 3]:
        assert window.add(MESSAGE, 1, None) == expected
        assert window.complete_qos1(expected) is not None


def test_window_refuses_more_than_its_limit() -> None:
    window = SentWindow(1)
    window.add(MESSAGE, 2, None)
    assert not window.has_room
    with pytest.raises(LocalUseError):
        window.add(MESSAGE, 1, None)
    assert window.release(1)
    assert not window.has_room, "released counts until PUBCOMP"


def test_a_run_takes_identifiers_that_follow_one_another() -> None:
    window = SentWindow(MAX_IDENTIFIER)
    window.expect(3, 99)
    window.expect(MAX_IDENTIFIER, 98)
    assert window.add_run(run_of(2)) == 0, "others are under way"
    assert window.release(3)
    assert window.release(MAX_IDENTIFIER)
    assert window.add_run(run_of(2)) == 1
    assert window.add_run(run_of(2)) == 4, "3 is in use"
    assert window.complete_in_order(1, 9) == 2
    window._last_identifier = MAX_IDENTIFIER - 3
    window._free_stop = 0
    assert window.add_run(run_of(3)) == 6, "two are left before the wrap, two before 3"
    window._last_identifier = MAX_IDENTIFIER - 3
    assert window.add_run(run_of(2)) == MAX_IDENTIFIER - 2
    assert window.complete_in_order(4, 2) == 2
    assert window.add(MESSAGE, 1, None) == 1


def test_acknowledgements_in_order_complete_the_oldest_deliveries_alone() -> None:
    window = SentWindow(20)
    assert [window.add_run(run_of(3)), window.add(MESSAGE, 1, None), window.add_run(run_of(2))] == [1, 4, 5]
    assert window.complete_in_order(2, 3) == 0, "1 is older"
    assert window.complete_in_order(1, 2) == 2
    assert window.complete_in_order(1, 2) == 0, "again"
    assert window.complete_in_order(3, 3) == 3
    assert window.complete_in_order(6, 9) == 1
    assert len(window) == 0


def test_receipts_and_completions_in_order_are_those_of_the_oldest_deliveries_alone() -> None:
    window = SentWindow(20)
    assert [window.add_run(run_of(3, 2)), window.add(MESSAGE, 2, None), window.add_run(run_of(2))] == [1, 4, 5]
    assert window.complete_in_order(1, 3) == 0, "PUBACK for QoS 2"
    assert window.release_in_order(2, 2) == 0, "1 is older"
    assert window.complete_released_in_order(1, 1) == 0, "PUBCOMP before PUBREC"
    assert window.release_in_order(1, 2) == 2
    assert window.release_in_order(1, 2) == 0, "again"
    assert window.release_in_order(3, 9) == 2, "the others are of QoS 1"
    assert window.complete_released_in_order(2, 1) == 0, "1 was released first"
    assert window.complete_released_in_order(1, 3) == 3
    assert window.add_run(run_of(2, 2)) == 7
    assert window.released() == [(4, None)]
    assert [(number, qos) for number, (_, qos, _) in window.unacknowledged()] == [(5, 1), (6, 1), (7, 2), (8, 2)]
    assert window.release_in_order(5, 1) == 0, "each is kept by itself now"


@pytest.mark.parametrize("limit", [0, -1, MAX_IDENTIFIER + 1])
def test_window_limit_fits_the_identifiers(limit: int) -> None:
    with pytest.raises(LocalUseError):
        SentWindow(limit)


@pytest.mark.spec("MQTT-2.3.1-3")
def test_acknowledgement_of_the_wrong_kind_frees_nothing() -> None:
    window = SentWindow(4)
    qos1 = window.add(MESSAGE, 1, "one")
    qos2 = window.add(MESSAGE, 2, "two")
    assert window.complete_qos1(qos2) is None
    assert not window.release(qos1)
    assert not window.is_released(qos1)
    assert not window.is_released(qos2), "PUBCOMP before PUBREC"
    assert len(window) == 2


def test_queue_counts_bytes() -> None:
    session = SessionState(1)
    output: list[bytes] = []
    session.send((MESSAGE, 1, None), output)
    session.push_queued((MESSAGE, 1, None))
    session.push_queued((MESSAGE, 1, None))
    session.send_queued(output)
    assert (session.queued_count, session.queued_bytes) == (2, 14)
    session.sent.complete_qos1(1)
    session.send_queued(output)
    assert (session.queued_count, session.queued_bytes) == (1, 7)
    assert output[1::3] == [b"\0\1", b"\0\2"]


def test_identifiers_of_another_connection_are_kept_for_their_messages() -> None:
    session = SessionState(8)
    session.restore(Identifiers([(1, 11), (3, 13)], [(2, 12)], [7]))
    assert [session.sent.add(MESSAGE, 1, None) for _ in range(2)] == [4, 5]
    output: list[bytes] = []
    session.resume(output)
    assert output[0] == b"\x62\x02\0\2", "PUBREL at once, messages when they come"
    assert not session.send_expected(1, MESSAGE, 1, 99, output), "another delivery"
    assert not session.send_expected(2, MESSAGE, 2, 12, output), "it had its PUBREC"
    del output[:]
    assert session.send_expected(3, MESSAGE, 2, 13, output)
    assert output == [MESSAGE.head_dup(2), b"\0\3", b"payload"]
    assert not session.send_expected(3, MESSAGE, 2, 13, output), "once"
    assert session.received.is_recorded(7)
    assert not session.received.add(7)


@pytest.mark.parametrize("qos", [1, 2])
def test_an_identifier_whose_message_has_yet_to_come_is_completed_by_either_answer(qos: int) -> None:
    session = SessionState(8)
    session.restore(Identifiers([(1, 11)], [], []))
    if qos == 1:
        delivery = session.sent.complete_qos1(1)
        assert delivery is not None
        assert delivery[2] == 11
    else:
        assert session.sent.release(1)
        assert session.sent.complete_qos2(1) == 11
    assert len(session.sent) == 0
    assert not session.send_expected(1, MESSAGE, qos, 11, [])


def test_a_numbered_delivery_has_the_same_identifier_whenever_it_is_free() -> None:
    number = (7 << 42) + 123_456_789
    expected = number % MAX_IDENTIFIER + 1
    for before in (0, 5):
        window = SentWindow(8)
        for _ in range(before):
            window.add(MESSAGE, 1, None)
        assert window.add(MESSAGE, 2, number) == expected
        assert window.add(MESSAGE, 2, number + 1) == expected + 1
        assert window.add(MESSAGE, 2, number + MAX_IDENTIFIER) == expected + 2, "it is in use"
    assert SentWindow(1).add(MESSAGE, 1, MAX_IDENTIFIER - 1) == MAX_IDENTIFIER


def test_identifiers_in_use_are_those_of_numbered_deliveries_in_order() -> None:
    session = SessionState(8)
    for token, qos in ((5, 1), (None, 1), (6, 2), ("shared", 2), (7, 2), (8, 1)):
        session.sent.add(MESSAGE, qos, token)
    for identifier in (10, 9, 8):
        assert session.sent.release(identifier)
    session.received.add(20)
    session.received.add(21)
    session.received.record(21)
    used = session.identifiers()
    assert (used.unacknowledged, used.released, used.received) == (
        [(6, 5), (11, 8)],
        [(10, 7), (9, UNKEPT), (8, 6)],
        [21],
    )
    again = SessionState(8)
    again.restore(used)
    found = again.identifiers()
    assert (found.unacknowledged, found.released, found.received) == (used.unacknowledged, used.released, [21])
    assert not SessionState(8).identifiers()


class ReceivedModel(RuleBasedStateMachine):
    """ReceivedIds against two plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.received = ReceivedIds()
        self.forwarded: set[int] = set()
        self.recorded: set[int] = set()

    @rule(identifier=st.integers(1, 4))
    def publish(self, identifier: int) -> None:
        is_new = identifier not in self.forwarded | self.recorded
        assert self.received.add(identifier) == is_new
        if is_new:
            self.forwarded.add(identifier)

    @rule(identifiers=st.lists(st.integers(1, 4), min_size=1, max_size=4), limit=st.sampled_from([3, 9]))
    def publish_together(self, identifiers: list[int], limit: int) -> None:
        known = self.forwarded | self.recorded
        are_new = len(set(identifiers) - known) == len(identifiers) and len(known) + len(identifiers) <= limit
        assert self.received.add_run(identifiers, limit) == are_new
        if are_new:
            self.forwarded.update(identifiers)

    @rule(identifiers=st.sets(st.integers(1, 4), min_size=1).map(list))
    def acknowledge_together(self, identifiers: list[int]) -> None:
        are_forwarded = self.forwarded.issuperset(identifiers)
        assert self.received.record_run(identifiers) == are_forwarded
        if are_forwarded:
            self.forwarded.difference_update(identifiers)
            self.recorded.update(identifiers)

    @rule(identifiers=st.lists(st.integers(1, 4), min_size=1, max_size=4))
    def release_together(self, identifiers: list[int]) -> None:
        places = [place for place, identifier in enumerate(identifiers) if identifier in self.forwarded]
        count = places[0] if places else len(identifiers)
        assert self.received.release(identifiers) == count
        self.recorded.difference_update(identifiers[:count])

    @rule(identifier=st.integers(1, 4))
    def acknowledge(self, identifier: int) -> None:
        assert self.received.record(identifier) == (identifier in self.forwarded)
        if identifier in self.forwarded:
            self.forwarded.discard(identifier)
            self.recorded.add(identifier)

    @rule(identifier=st.integers(1, 4))
    def release(self, identifier: int) -> None:
        self.received.discard(identifier)
        self.forwarded.discard(identifier)
        self.recorded.discard(identifier)

    @invariant()
    def agrees(self) -> None:
        assert self.received.forwarded_count == len(self.forwarded)
        assert len(self.received) == len(self.forwarded) + len(self.recorded)
        for identifier in range(1, 5):
            assert self.received.is_forwarded(identifier) == (identifier in self.forwarded)
            assert self.received.is_recorded(identifier) == (identifier in self.recorded)


def run_of(count: int, qos: int = 1) -> PublishRun:
    frames = b"".join(encode(Publish("a", b"payload", qos, False, False, 1 + n)) for n in range(count))
    return PublishRun("a", frames, count, 7, list(range(1, count + 1)))


class SentModel(RuleBasedStateMachine):
    """SentWindow against lists: order of sending, unique identifiers, never above the limit."""

    LIMIT = 6

    def __init__(self) -> None:
        super().__init__()
        self.window = SentWindow(self.LIMIT)
        self.window._last_identifier = MAX_IDENTIFIER - 5  # the wrap is near
        self.unacknowledged: list[tuple[int, int, int | None]] = []
        self.released: list[tuple[int, int | None]] = []
        self.count = 0

    @property
    def room(self) -> int:
        return self.LIMIT - len(self.unacknowledged) - len(self.released)

    def note(self, identifier: int, qos: int, token: int | None) -> None:
        assert 1 <= identifier <= MAX_IDENTIFIER
        used = {entry[0] for entry in self.unacknowledged} | {entry[0] for entry in self.released}
        assert identifier not in used
        self.unacknowledged.append((identifier, qos, token))

    @precondition(lambda self: self.room > 0)
    @rule(qos=st.sampled_from([1, 1, 2]), has_token=st.booleans())
    def add(self, qos: int, has_token: bool) -> None:
        self.count += 1
        token = self.count if has_token else None
        self.note(self.window.add(MESSAGE, qos, token), qos, token)

    @rule(count=st.integers(2, LIMIT), qos=st.sampled_from([1, 2]))
    def add_run(self, count: int, qos: int) -> None:
        first = self.window.add_run(run_of(count, qos))
        if first:
            assert count <= self.room
            for identifier in range(first, first + count):
                self.note(identifier, qos, None)
        else:
            assert self.unacknowledged or self.released or count > self.room

    @precondition(lambda self: self.unacknowledged)
    @rule(data=st.data())
    def first_answer(self, data: st.DataObject) -> None:
        identifier, qos, token = entry = data.draw(st.sampled_from(self.unacknowledged))
        self.unacknowledged.remove(entry)
        if qos == 1:
            delivery = self.window.complete_qos1(identifier)
            assert delivery is not None
            assert (delivery[0].payload, *delivery[1:]) == (MESSAGE.payload, 1, token)
        else:
            assert self.window.release(identifier)
            self.released.append((identifier, token))

    @rule(count=st.integers(1, LIMIT), behind=st.sampled_from([0, 0, 0, 1]))
    def answers_in_order(self, count: int, behind: int) -> None:
        oldest = self.unacknowledged[0][0] if self.unacknowledged else 1
        completed = self.window.complete_in_order(oldest + behind, count)
        for identifier in range(oldest + behind, oldest + behind + completed):
            assert self.unacknowledged.pop(0) == (identifier, 1, None)

    @rule(count=st.integers(1, LIMIT), behind=st.sampled_from([0, 0, 0, 1]))
    def receipts_in_order(self, count: int, behind: int) -> None:
        oldest = self.unacknowledged[0][0] if self.unacknowledged else 1
        released = self.window.release_in_order(oldest + behind, count)
        for identifier in range(oldest + behind, oldest + behind + released):
            assert self.unacknowledged.pop(0) == (identifier, 2, None)
            self.released.append((identifier, None))

    @rule(count=st.integers(1, LIMIT), behind=st.sampled_from([0, 0, 0, 1]))
    def completions_in_order(self, count: int, behind: int) -> None:
        oldest = self.released[0][0] if self.released else 1
        completed = self.window.complete_released_in_order(oldest + behind, count)
        for identifier in range(oldest + behind, oldest + behind + completed):
            assert self.released.pop(0) == (identifier, None)

    @precondition(lambda self: self.released)
    @rule(data=st.data())
    def pubcomp(self, data: st.DataObject) -> None:
        identifier, token = entry = data.draw(st.sampled_from(self.released))
        self.released.remove(entry)
        assert self.window.is_released(identifier)
        assert self.window.complete_qos2(identifier) == token

    @rule()
    def look(self) -> None:
        assert [
            (identifier, qos, token) for identifier, (_, qos, token) in self.window.unacknowledged()
        ] == self.unacknowledged
        assert self.window.released() == self.released
        for identifier in [entry[0] for entry in self.unacknowledged] + [entry[0] for entry in self.released]:
            assert self.window.is_under_way(identifier)

    @invariant()
    def agrees(self) -> None:
        assert len(self.window) == len(self.unacknowledged) + len(self.released)
        assert self.window.has_room == (len(self.window) < self.LIMIT)


TestReceivedModel = ReceivedModel.TestCase
TestReceivedModel.settings = settings(max_examples=50, stateful_step_count=30)
TestSentModel = SentModel.TestCase
TestSentModel.settings = settings(max_examples=50, stateful_step_count=30)
