"""Names in NATS are a contract with stored data and backend applications: a table, and the round trip."""

from __future__ import annotations

import re

import hypothesis
import pytest
from hypothesis import strategies as st

from services.common import subjects

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TOKEN = re.compile(r"[A-Za-z0-9_=-]+")


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("plain-Name_1", "plain-Name_1"),
        ("", "="),
        ("a.b", "a=2Eb"),
        ("*", "=2A"),
        (">", "=3E"),
        ("a b", "a=20b"),
        ("a=b", "a=3Db"),
        ("GID_x@@@1", "GID_x=40=40=401"),
        ("é", "=C3=A9"),
        ("\r\n", "=0D=0A"),
    ],
)
def test_token_table(text: str, token: str) -> None:
    assert subjects.encode_token(text) == token
    assert subjects.decode_token(token) == text


@hypothesis.given(TEXT)
def test_every_text_is_a_valid_token_and_comes_back(text: str) -> None:
    token = subjects.encode_token(text)
    assert TOKEN.fullmatch(token)
    assert subjects.decode_token(token) == text


@pytest.mark.parametrize("token", ["", "a.b", "=4", "=zz", "=41", "é", "a b", "=FF", "=2e"])
def test_text_that_no_token_stands_for_is_refused(token: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - wrong UTF-8 has its own text
        subjects.decode_token(token)


@hypothesis.given(TEXT, st.lists(TEXT.map(lambda text: text.replace("/", "")), min_size=1, max_size=5))
def test_log_subject_comes_back_as_instance_and_topic(instance_id: str, levels: list[str]) -> None:
    topic = "/".join(levels)
    subject = subjects.log_subject(instance_id, topic)
    assert all(TOKEN.fullmatch(token) for token in subject.split("."))
    assert subjects.log_topic(subject) == (instance_id, topic)


@pytest.mark.parametrize("subject", ["mq.in.i.a", "mq.out.i", "x.mq.out.i.a", "mq.out.i.a..b"])
def test_subject_of_no_log_is_refused(subject: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - several texts
        subjects.log_topic(subject)


def test_log_names() -> None:
    assert subjects.log_subject("mqtt-demo", "demo/a//b.c") == "mq.out.mqtt-demo.demo.a.=.b=2Ec"
    assert subjects.log_filter("i", "p") == ["mq.out.i.p", "mq.out.i.p.>"]
    assert subjects.log_stream("mqtt-demo", "demo") == "MQ_mqtt-demo_demo"


def test_stream_names_of_different_parts_differ() -> None:
    assert subjects.log_stream("a_b", "c") != subjects.log_stream("a", "b_c")


def test_event_names() -> None:
    assert subjects.event_stream("i_1") == "EVENTS_i=5F1"
    assert subjects.event_filter("i") == "mq.event.i.>"
    assert subjects.event_subject("i", "GID_demo", "tcpclean") == "mq.event.i.GID_demo_MQTT.tcpclean"


@hypothesis.given(TEXT, st.lists(TEXT.map(lambda text: text.replace("/", "")), min_size=1, max_size=5))
def test_retained_subject_comes_back_as_instance_and_topic(instance_id: str, levels: list[str]) -> None:
    topic = "/".join(levels)
    subject = subjects.retained_subject(instance_id, topic)
    assert all(TOKEN.fullmatch(token) for token in subject.split("."))
    assert subjects.retained_topic(subject) == (instance_id, topic)
    assert subject.startswith(subjects.retained_filter(instance_id).removesuffix(">"))


def test_long_topic_of_a_retained_message_is_in_the_header() -> None:
    topic = "a/" * 5_000
    subject = subjects.retained_subject("i.1", topic)
    assert TOKEN.fullmatch(subject.split(".")[-1])
    assert len(subject) < 200
    assert subjects.needs_topic_header(subject)
    assert not subjects.needs_topic_header(subjects.retained_subject("i", "/=/a"))
    assert subjects.retained_topic(subject, subjects.encode_topic(topic)) == ("i.1", topic)
    with pytest.raises(ValueError):  # noqa: PT011 - what Python says of the bytes
        subjects.retained_topic(subject)


@pytest.mark.parametrize("subject", ["mq.out.i.a", "mq.retained.i", "x.mq.retained.i.a", "mq.retained.i.a..b"])
def test_subject_of_no_retained_message_is_refused(subject: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - several texts
        subjects.retained_topic(subject)


def test_retained_names() -> None:
    assert subjects.retained_subject("mqtt-demo", "/demo/a b") == "mq.retained.mqtt-demo.=.demo.a=20b"
    assert subjects.retained_filter("i.1") == "mq.retained.i=2E1.>"
    assert subjects.retained_stream("i_1") == "RETAINED_i=5F1"


@hypothesis.given(TEXT, st.lists(TEXT.map(lambda text: text.replace("/", "")), min_size=1, max_size=5), st.integers(0))
def test_topic_of_a_kept_message_comes_back_from_its_header(
    instance_id: str, levels: list[str], router_index: int
) -> None:
    topic = "/".join(levels)
    header = subjects.encode_topic(topic)
    assert re.fullmatch(r"[A-Za-z0-9_=.-]+", header)
    subject = subjects.kept_subject(instance_id, router_index)
    assert subjects.message_topic(subject, header) == (instance_id, topic)
    assert subjects.message_topic(subjects.log_subject(instance_id, "p"), header) == (instance_id, topic)
    assert subjects.message_topic(subjects.log_subject(instance_id, topic), None) == (instance_id, topic)


@pytest.mark.parametrize(
    ("subject", "header"),
    [("mq.kept.i.0", None), ("mq.kept.i.0", ""), ("mq.kept.i.0", "a b"), ("mq.out.i.a", "a b"), ("mq.event.i.a", "a")],
)
def test_message_without_its_topic_is_refused(subject: str, header: str | None) -> None:
    with pytest.raises(ValueError, match="is not"):
        subjects.message_topic(subject, header)


def test_kept_names() -> None:
    assert subjects.kept_stream("mqtt_x", 3) == "KEPT_mqtt=5Fx_3"
    assert subjects.kept_subject("mqtt-x", 3) == "mq.kept.mqtt-x.3"
