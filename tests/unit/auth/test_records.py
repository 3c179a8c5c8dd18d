"""Stored form of resources."""

from __future__ import annotations

import dataclasses
import json

import pytest

from services.auth.domain import records
from services.auth.domain.records import AccessKey, BadRecordError, Group, Instance, Profile, Record, TokenKey, Topic
from services.common.signature import sign

ALL: list[Record] = [
    records.new_instance("mqtt-demo", Profile.LMQ, anonymous=False, create_time_ms=1),
    records.new_instance("plain", Profile.STANDARD, anonymous=True, create_time_ms=2),
    Instance(instance_id="going", deleting=True),
    AccessKey(
        instance_id="mqtt-demo", access_key_id="AK1", account_id="default", sealed_secret="c2VhbGVk", create_time_ms=3
    ),
    Group(instance_id="mqtt-demo", group_id="GID_demo", account_id="default", create_time_ms=4),
    Topic(
        instance_id="mqtt-demo", topic="demo", account_id="default", logged=True, ordered=False, retention_s=3 * 86_400
    ),
    AccessKey(
        instance_id="mqtt-demo",
        access_key_id="AK2",
        account_id="default",
        sealed_secret="c2VhbGVk",
        publish=False,
        topic_filters=("demo/+", "demo/p2p/#"),
    ),
    TokenKey(key_id="00ff00ff", sealed_secret="c2VhbGVk", create_time_ms=5),
]


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.key)
def test_round_trip(record: Record) -> None:
    assert records.decode(record.key, records.encode(record)) == record


@pytest.mark.parametrize(
    ("record", "key"),
    [
        (ALL[0], "instance.mqtt-demo"),
        (ALL[3], "accesskey.mqtt-demo.AK1"),
        (ALL[4], "group.mqtt-demo.GID_demo"),
        (ALL[5], "topic.mqtt-demo.demo"),
        (Group(instance_id="a.b", group_id="*", account_id="x"), "group.a=2Eb.=2A"),
    ],
)
def test_keys(record: Record, key: str) -> None:
    assert record.key == key


def test_defaults_of_an_lmq_instance_are_those_of_the_product() -> None:
    instance = records.new_instance("abc", Profile.LMQ, anonymous=False, create_time_ms=0)
    assert (instance.max_topic_characters, instance.max_payload_bytes, instance.max_subscriptions) == (64, 65_536, 30)
    assert (instance.takeover, instance.refuse_filters) == (False, False)


def test_defaults_of_a_standard_instance_are_those_of_plain_mqtt() -> None:
    instance = records.new_instance("abc", Profile.STANDARD, anonymous=True, create_time_ms=0)
    assert instance.max_topic_characters == 0
    assert instance.max_payload_bytes > 1 << 20
    assert (instance.takeover, instance.refuse_filters, instance.anonymous) == (True, True, True)


def test_the_secret_is_neither_stored_nor_shown() -> None:
    stored = ALL[3]
    assert isinstance(stored, AccessKey)
    key = dataclasses.replace(stored, secret="hidden-secret")
    assert b"hidden-secret" not in records.encode(key)
    assert "hidden-secret" not in repr(key)
    assert "c2VhbGVk" not in repr(key)
    assert b"signer" not in records.encode(key)
    assert "signer" not in repr(key)


def test_the_signer_of_an_access_key_is_that_of_its_secret() -> None:
    stored = ALL[3]
    assert isinstance(stored, AccessKey)
    assert stored.signer is None
    assert dataclasses.replace(stored, secret="").signer is None
    for secret in ("first", "second"):
        stored = dataclasses.replace(stored, secret=secret)
        assert stored.signer is not None
        assert sign(stored.signer, "text") == sign(secret, "text")
        assert stored == ALL[3]


def test_unknown_keys_are_ignored_and_missing_ones_take_their_default() -> None:
    stored = json.dumps({"version": 1, "instance_id": "abc", "colour": "blue"}).encode()
    assert records.decode("instance.abc", stored) == Instance(instance_id="abc")


def test_a_secret_in_the_stored_form_is_ignored() -> None:
    body = {"version": 1, "instance_id": "i", "access_key_id": "k", "account_id": "a", "sealed_secret": "s"}
    decoded = records.decode("accesskey.i.k", json.dumps(body | {"secret": "planted"}).encode())
    assert isinstance(decoded, AccessKey)
    assert decoded.secret is None


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        ("instance.abc", b""),
        ("instance.abc", b"\xff"),
        ("instance.abc", b"[]"),
        ("instance.abc", b'{"instance_id":"abc"}'),
        ("instance.abc", b'{"version":2,"instance_id":"abc"}'),
        ("instance.abc", b'{"version":1}'),
        ("instance.abc", b'{"version":1,"instance_id":"other"}'),
        ("instance.abc", b'{"version":1,"instance_id":7}'),
        ("instance.abc", b'{"version":1,"instance_id":"abc","anonymous":1}'),
        ("instance.abc", b'{"version":1,"instance_id":"abc","max_subscriptions":true}'),
        ("instance.abc", b'{"version":1,"instance_id":"abc","profile":"odd"}'),
        ("accesskey.i.k", b'{"version":1,"instance_id":"i","access_key_id":"k","account_id":"a","topic_filters":[1]}'),
        ("house.abc", b'{"version":1,"instance_id":"abc"}'),
    ],
)
def test_bytes_that_are_no_record(key: str, stored: bytes) -> None:
    with pytest.raises(BadRecordError):
        records.decode(key, stored)
