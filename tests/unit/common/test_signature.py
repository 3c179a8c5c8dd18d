"""Signatures: the vectors of product.md, and the rule of the string to sign."""

from __future__ import annotations

import base64
import hmac

import pytest

from services.common import signature

VECTORS = [
    ("XXXXX", "GID_Test@@@0001", "vI009IZJZVGRwBwZvnbwjfuXxVM="),
    ("secretKey", "GID_XXXX@@@00001", "ZW1SBgaGpkqO3EKaym5VEo+WNE0="),
    (
        "XXXXX",
        "actions=R,W&expireTime=1555329600000&instanceId=mqtt-xxxxx&resources=TopicA/+,TopicB/#&serviceName=mq",
        "/kQqzik/VVdOcHbOhnCN+oIdlVg=",
    ),
    ("XXXXX", "token=ABCDEF123456==", "v6RIfj3BzCNwnGiiKbGewJKj6mI="),
    (
        "XXXXX",
        "accessKey=YYYYY&instanceId=mqtt-xxxxx&resource=GID_Test@@@0001&timestamp=1555329600000",
        "ALOU2dqDzIiEoCeadsMbmxR16nI=",
    ),
]


@pytest.mark.parametrize(("secret", "text", "expected"), VECTORS, ids=[vector[2] for vector in VECTORS])
def test_signs_the_vectors_of_the_product(secret: str, text: str, expected: str) -> None:
    assert signature.sign(secret, text) == expected
    assert signature.is_signed(secret, text, expected)
    assert signature.is_signed(secret, text, expected.encode())


@pytest.mark.parametrize("length", [0, 1, 64, 65, 1000])
def test_a_signer_signs_text_after_text_with_secrets_of_any_length(length: int) -> None:
    secret = "s" * length
    signer = signature.signer(secret)
    for text in ("", "GID_Test@@@0001", "\u00e9" * 100, "GID_Test@@@0001"):
        expected = base64.b64encode(hmac.digest(secret.encode(), text.encode(), "sha1"))
        assert signature.sign(signer, text) == signature.sign(secret, text) == expected.decode()
        assert signature.is_signed(signer, text, expected)
        assert not signature.is_signed(signer, text + "x", expected)


@pytest.mark.parametrize(
    "given",
    ["", "vI009IZJZVGRwBwZvnbwjfuXxVM", "VI009IZJZVGRwBwZvnbwjfuXxVM=", " vI009IZJZVGRwBwZvnbwjfuXxVM=", "é", "\udc80"],
)
def test_refuses_every_other_signature(given: str) -> None:
    assert not signature.is_signed("XXXXX", "GID_Test@@@0001", given)


def test_refuses_bytes_that_are_no_text() -> None:
    assert not signature.is_signed("XXXXX", "GID_Test@@@0001", b"\xff\x00")


def test_string_to_sign_sorts_keys_and_the_values_of_a_key() -> None:
    parameters = {
        "serviceName": "mq",
        "resources": ["TopicB/#", "TopicA/+"],
        "actions": ["W", "R"],
        "instanceId": "mqtt-xxxxx",
        "expireTime": "1555329600000",
    }
    assert signature.string_to_sign(parameters) == VECTORS[2][1]


def test_string_to_sign_is_raw() -> None:
    assert signature.string_to_sign({"token": "a b&c=%2F"}) == "token=a b&c=%2F"
