"""Retained messages of an instance, their quota, and what is written of them."""

from __future__ import annotations

import logging

import hypothesis
import pytest
from hypothesis import strategies as st

from services.common.subjects import retained_subject
from services.common.topics import matches
from services.router.domain.outbox import Receipt
from services.router.domain.retained import LEVEL_BYTES, RetainedMessage, RetainedTopics
from services.router.retained import Retained, RetainedWrite

LEVELS = st.sampled_from(["", "a", "b", "$SYS", "$a"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, last: "/".join([*levels, *last]),
    st.lists(st.one_of(LEVELS, st.just("+")), max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


def message(payload: bytes = b"1") -> RetainedMessage:
    return RetainedMessage(payload, 1)


@hypothesis.given(st.lists(TOPICS), st.lists(TOPICS), FILTERS)
def test_match_is_that_of_the_standard(added: list[str], removed: list[str], topic_filter: str) -> None:
    topics = RetainedTopics(1_000, 1 << 20)
    expected: dict[str, RetainedMessage] = {}
    for topic in added:
        expected[topic] = message()
        assert topics.put(topic, expected[topic])
    for topic in removed:
        assert topics.remove(topic) == (expected.pop(topic, None) is not None)
    found, visited = topics.match(topic_filter)
    assert visited >= len(found)
    assert len({each.topic for each in found}) == len(found)
    assert {each.topic: each.message for each in found} == {
        topic: kept for topic, kept in expected.items() if matches(topic_filter, topic)
    }
    assert topics.messages == len(expected)
    for topic, kept in expected.items():
        assert topics.get(topic) is kept
        assert topics.remove(topic)
    assert topics.size == topics.messages == 0
    assert not topics._root.children  # nothing is left behind


def test_topic_of_very_many_levels_is_kept_and_forgotten() -> None:
    topics = RetainedTopics(10, 1 << 30)
    topic = "/" * 65_534
    assert topics.put(topic, message())
    assert [each.topic for each in topics.match("#")[0]] == [topic]
    assert topics.size > LEVEL_BYTES * 65_535  # its levels count
    assert topics.remove(topic)
    assert not topics._root.children


def test_quotas_refuse_new_topics_only() -> None:
    topics = RetainedTopics(2, 10_000)
    assert topics.put("a", message())
    assert topics.put("b", message())
    assert not topics.put("c", message())
    assert topics.put("a", message(bytes(20_000)))
    assert topics.remove("b")
    assert not topics.put("c", message())  # the bytes are used up
    assert topics.put("c", message(), is_stored=True)
    assert topics.get("a") is not None
    assert topics.get("b") is None
    assert topics.get("a/b") is None
    assert topics.messages == 2


def test_size_follows_replacements() -> None:
    topics = RetainedTopics(10, 10_000)
    topics.put("a/b", message(bytes(100)))
    assert topics.size == 100 + 3 + 2 * LEVEL_BYTES
    topics.put("a/b", message(bytes(10)))
    assert topics.size == 10 + 3 + 2 * LEVEL_BYTES


class FakeLog:
    def __init__(self) -> None:
        self.is_connected = True
        self.backlog_bytes = 0
        self.written: list[tuple[str, bytes, dict[str, str], RetainedWrite]] = []

    def is_stuck(self, subject: str) -> bool:
        return False

    def probe(self, subject: str) -> None:
        pass

    def push(self) -> None:
        pass

    def write(self, subject: str, payload: bytes, headers: dict[str, str], token: object) -> None:
        raise AssertionError(subject)

    def write_lines(
        self,
        subject: str,
        payload: bytes,
        message_id: str,
        lines: bytes,
        token: object,
        may_repeat: bool,
        is_found: bool,
    ) -> None:
        assert isinstance(token, RetainedWrite)
        assert not message_id
        headers = dict(line.split(": ", 1) for line in lines.decode().splitlines())
        self.written.append((subject, payload, headers, token))

    def write_run(
        self,
        subject: str,
        packets: bytes,
        count: int,
        payload_bytes: int,
        ids: str,
        first: int,
        lines: bytes,
        token: object,
    ) -> None:
        raise AssertionError(subject)

    def take(self) -> RetainedWrite:
        return self.written.pop(0)[3]


class FakePublisher:
    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def acknowledge(self, sequence: int) -> None:
        self.acknowledged.append(sequence)


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def retained(log: FakeLog) -> Retained:
    made = Retained(max_messages=2, max_bytes=100_000)
    made.begin(log)
    return made


def payloads(retained: Retained) -> dict[str, bytes]:
    return {each.topic: each.message.payload for each in retained.match("i", "#")[0] if each.message is not None}


def test_change_is_seen_at_once_and_settled_when_stored(retained: Retained, log: FakeLog) -> None:
    publisher = FakePublisher()
    retained.keep("i", "a/b", b"1", 2, "client", Receipt(publisher, 7, 1))
    assert payloads(retained) == {"a/b": b"1"}
    ((subject, payload, headers, write),) = log.written
    assert (subject, payload) == (retained_subject("i", "a/b"), b"1")
    assert headers == {"clientId": "client", "qoslevel": "2"}  # no message id: see `Retained._write`
    assert not publisher.acknowledged
    retained.stored(write)
    assert publisher.acknowledged == [7]


def test_deletion_waits_for_the_one_before_it(retained: Retained, log: FakeLog) -> None:
    publisher = FakePublisher()
    retained.keep("i", "a", b"1", 0, "c", None)
    retained.stored(log.take())
    retained.keep("i", "a", b"", 0, "c", None)
    retained.keep("i", "a", b"", 1, "c", Receipt(publisher, 1, 1))
    assert [(payload, "Nats-TTL" in headers) for _, payload, headers, _ in log.written] == [(b"", True)] * 2
    assert not publisher.acknowledged
    retained.stored(log.take())
    retained.stored(log.take())
    assert publisher.acknowledged == [1]
    retained.keep("i", "a", b"", 1, "c", Receipt(publisher, 2, 1))  # nothing to delete, nothing on its way
    assert publisher.acknowledged == [1, 2]
    assert not log.written


def test_message_over_quota_is_settled_counted_and_logged_once(
    retained: Retained, log: FakeLog, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = FakePublisher()
    with caplog.at_level(logging.WARNING):
        for number, topic in enumerate("abcde"):
            retained.keep("i", topic, b"1", 1, "c", Receipt(publisher, number, 1))
    assert publisher.acknowledged == [2, 3, 4]
    assert retained.over_quota_messages == 3
    assert [record.message for record in caplog.records] == ["instance has its quota of retained messages"]
    assert len(log.written) == 2
    retained.keep("j", "a", b"1", 1, "c", None)  # each instance has its own
    assert len(log.written) == 3


def test_refused_message_takes_the_stored_one_with_it(retained: Retained, log: FakeLog) -> None:
    publisher = FakePublisher()
    retained.keep("i", "a", b"large", 1, "c", Receipt(publisher, 1, 1))
    retained.failed(log.take())
    assert payloads(retained) == {}
    assert not publisher.acknowledged
    ((_, payload, _, write),) = log.written
    assert payload == b""
    retained.failed(write)  # a subject that NATS never takes: nothing is stored under it
    assert publisher.acknowledged == [1]


def test_refused_message_that_was_replaced_changes_nothing(retained: Retained, log: FakeLog) -> None:
    publisher = FakePublisher()
    retained.keep("i", "a", b"large", 1, "c", Receipt(publisher, 1, 1))
    retained.keep("i", "a", b"2", 1, "c", Receipt(publisher, 2, 1))
    retained.failed(log.take())
    assert payloads(retained) == {"a": b"2"}
    assert publisher.acknowledged == [1]
    assert len(log.written) == 1
