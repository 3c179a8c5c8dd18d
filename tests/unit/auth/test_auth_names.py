"""Rules of names, product.md section 1."""

from __future__ import annotations

import pytest

from services.auth.domain import names

LONGEST = "a" * 64


@pytest.mark.parametrize("name", ["mqtt-demo", "a_b", "123", "-_-", LONGEST])
def test_created_names_that_are_allowed(name: str) -> None:
    assert names.instance_id_fault(name) is None
    assert names.access_key_id_fault(name) is None
    assert names.topic_fault(name) is None
    assert names.account_id_fault(name) is None


@pytest.mark.parametrize(
    "name", ["", "ab", LONGEST + "a", "a.b", "a/b", "a b", "äbc", "abc\n", "a+b", "a#b", "$SYS", "a*b", "a>b", "a\0b"]
)
def test_created_names_that_are_refused(name: str) -> None:
    assert names.instance_id_fault(name)
    assert names.access_key_id_fault(name)
    assert names.topic_fault(name)


def test_account_may_have_one_character() -> None:
    assert names.account_id_fault("a") is None
    assert names.account_id_fault("")


@pytest.mark.parametrize("name", ["GID_abc", "GID-abc", "GID_" + "a" * 60, "GID___-"])
def test_groups_that_are_allowed(name: str) -> None:
    assert names.group_id_fault(name) is None


@pytest.mark.parametrize("name", ["", "GID_ab", "GID_" + "a" * 61, "GIDabcd", "gid_abc", "XGID_abc", "GID_a.b"])
def test_groups_that_are_refused(name: str) -> None:
    assert names.group_id_fault(name)


@pytest.mark.parametrize(
    "client_id",
    [
        "GID_Test@@@0001",
        "GID-Test@@@x",
        "GID_Test@@@a.b_c-d",
        "GID_Test@@@dev ice",
        "GID_Test@@@设备",
        "GID_Test@@@a@@@b",
        "GID_Test@@@" + "x" * 53,
    ],
)
def test_client_ids_that_are_allowed(client_id: str) -> None:
    assert names.client_id_fault(client_id) is None


@pytest.mark.parametrize(
    "client_id",
    [
        "",
        "device",
        "GID_Test",
        "GID_Test@@",
        "GID_Test@@@",
        "@@@0001",
        "GID_T@@@0001",
        "Test@@@0001",
        "GID_Te st@@@0001",
        "GID_Test@@@" + "x" * 54,
        "GID_Test@@@a+b",
        "GID_Test@@@a#b",
        "GID_Test@@@a/b",
        "GID_Test@@@a\nb",
        "GID_Test@@@a\0b",
        "GID_Test@@@a\u200bb",
        "GID_Test@@@\ufeff",
        "GID_Test@@@\ue000",
    ],
)
def test_client_ids_that_are_refused(client_id: str) -> None:
    assert names.client_id_fault(client_id)


@pytest.mark.parametrize(
    ("client_id", "group_id"),
    [("GID_Test@@@0001", "GID_Test"), ("GID_Test@@@a@@@b", "GID_Test"), ("device", ""), ("", ""), ("@@@x", "")],
)
def test_group_of_a_client_id(client_id: str, group_id: str) -> None:
    assert names.group_of(client_id) == group_id
