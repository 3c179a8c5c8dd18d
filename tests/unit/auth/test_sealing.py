"""Encryption of secrets."""

from __future__ import annotations

import base64

import pytest

from services.auth.sealing import Sealer, SealError
from services.common.settings import Secret


def master(byte: int) -> Secret:
    return Secret(base64.b64encode(bytes([byte]) * 32).decode())


def test_round_trip() -> None:
    sealed = Sealer(master(1)).seal("秘密 secret", "one", "AK1")
    assert "secret" not in sealed
    assert Sealer(master(1)).unseal(sealed, "one", "AK1") == "秘密 secret"


def test_no_two_sealed_forms_are_alike() -> None:
    sealer = Sealer(master(1))
    forms = {sealer.seal("secret", "one", "AK1") for _ in range(10)}
    assert len(forms) == 10


@pytest.mark.parametrize("ids", [("two", "AK1"), ("one", "AK2")])
def test_a_sealed_secret_can_not_be_moved(ids: tuple[str, str]) -> None:
    sealer = Sealer(master(1))
    sealed = sealer.seal("secret", "one", "AK1")
    with pytest.raises(SealError, match="changed"):
        sealer.unseal(sealed, *ids)


def test_another_master_key_is_told_apart() -> None:
    sealed = Sealer(master(1)).seal("secret", "one", "AK1")
    with pytest.raises(SealError, match="another master key"):
        Sealer(master(2)).unseal(sealed, "one", "AK1")


def test_every_changed_byte_is_noticed() -> None:
    sealer = Sealer(master(1))
    blob = base64.b64decode(sealer.seal("secret", "one", "AK1"))
    for index in range(len(blob)):
        changed = blob[:index] + bytes([blob[index] ^ 1]) + blob[index + 1 :]
        with pytest.raises(SealError):
            sealer.unseal(base64.b64encode(changed).decode(), "one", "AK1")


@pytest.mark.parametrize("sealed", ["", "!", "AAAA", base64.b64encode(bytes(20)).decode()])
def test_what_is_no_sealed_secret(sealed: str) -> None:
    with pytest.raises(SealError):
        Sealer(master(1)).unseal(sealed, "one", "AK1")


def test_a_sealed_secret_without_its_end() -> None:
    sealer = Sealer(master(1))
    blob = base64.b64decode(sealer.seal("secret", "one", "AK1"))
    for length in range(len(blob)):
        with pytest.raises(SealError):
            sealer.unseal(base64.b64encode(blob[:length]).decode(), "one", "AK1")


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(bytes(31)).decode(), "?" * 44])
def test_what_is_no_master_key(text: str) -> None:
    with pytest.raises(SealError, match="Base64 of 32 bytes") as caught:
        Sealer(Secret(text))
    assert not text or text not in str(caught.value)
