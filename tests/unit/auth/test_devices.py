"""Device credentials in memory, their stored form, and how they let devices in."""

from __future__ import annotations

import pytest

from services.auth.domain import credentials, devices
from services.auth.domain.credentials import Attempt, Outcome
from services.auth.domain.devices import BadDeviceError, DeviceCredential, Devices
from services.auth.domain.records import Group, Profile, Record, new_instance
from services.auth.domain.view import View
from services.common import signature
from services.common.signature import sign

CLIENT = "GID_Test@@@1"


def device(
    client_id: str = CLIENT,
    credential_id: str = "DC1",
    *,
    instance_id: str = "mqtt-demo",
    secret: str | None = "device secret",
) -> DeviceCredential:
    return DeviceCredential(
        instance_id=instance_id, client_id=client_id, credential_id=credential_id, create_time_ms=1, secret=secret
    )


@pytest.fixture
def view() -> View:
    made = View()
    records: list[Record] = [
        new_instance("mqtt-demo", Profile.LMQ, anonymous=False, create_time_ms=0),
        new_instance("open", Profile.STANDARD, anonymous=False, create_time_ms=0),
        Group(instance_id="mqtt-demo", group_id="GID_Test", account_id="mine"),
    ]
    made.resources.replace({record.key: record for record in records})
    made.devices.replace(
        [
            device(),
            device("GID_Gone@@@1", "DC2"),
            device("GID_Test@@@2", "DC3", secret=None),
            device("any id", "DC4", instance_id="open"),
            device("GID_Test@@@1", "DC5", instance_id="deleted"),
        ]
    )
    return made


def connect(view: View, user_name: str, password: str, client_id: str = CLIENT) -> credentials.Result:
    attempt = Attempt(client_id=client_id, user_name=user_name, password=password.encode())
    return credentials.authenticate(attempt, view, 0)


GOOD = sign("device secret", CLIENT)
BAD = Outcome.BAD_CREDENTIALS


@pytest.mark.parametrize(
    ("user_name", "password", "client_id", "outcome"),
    [
        ("DeviceCredential|DC1|mqtt-demo", GOOD, CLIENT, Outcome.ACCEPTED),
        ("DeviceCredential|DC1|mqtt-demo", sign("other", CLIENT), CLIENT, BAD),
        ("DeviceCredential|DC1|mqtt-demo", "", CLIENT, BAD),
        ("DeviceCredential|DC9|mqtt-demo", GOOD, CLIENT, BAD),
        ("DeviceCredential||mqtt-demo", GOOD, CLIENT, BAD),
        ("DeviceCredential|DC1|open", GOOD, CLIENT, BAD),
        ("DeviceCredential|DC5|deleted", GOOD, CLIENT, BAD),
        # Its secret may sign for its own client id only.
        ("DeviceCredential|DC1|mqtt-demo", sign("device secret", "GID_Test@@@2"), "GID_Test@@@2", BAD),
        # A secret that can't be decrypted lets nobody in.
        ("DeviceCredential|DC3|mqtt-demo", sign("x" * 32, "GID_Test@@@2"), "GID_Test@@@2", BAD),
        (
            "DeviceCredential|DC2|mqtt-demo",
            sign("device secret", "GID_Gone@@@1"),
            "GID_Gone@@@1",
            Outcome.NOT_AUTHORIZED,
        ),
        ("DeviceCredential|DC4|open", sign("device secret", "any id"), "any id", Outcome.ACCEPTED),
    ],
)
def test_attempts(view: View, user_name: str, password: str, client_id: str, outcome: Outcome) -> None:
    result = connect(view, user_name, password, client_id)
    assert result.outcome is outcome
    if outcome is not Outcome.ACCEPTED:
        assert result.reason
        assert not result.device_credential_id


def test_an_accepted_device_has_the_account_of_its_group(view: View) -> None:
    result = connect(view, "DeviceCredential|DC1|mqtt-demo", GOOD)
    assert (result.instance_id, result.account_id, result.access_key_id) == ("mqtt-demo", "mine", "")
    assert (result.device_credential_id, result.token_mode) == ("DC1", False)
    result = connect(view, "DeviceCredential|DC4|open", sign("device secret", "any id"), "any id")
    assert result.account_id == "default"


def test_unknown_device_and_wrong_signature_do_the_same_work(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = signature.is_signed

    def counted(secret: str, text: str, given: str | bytes) -> bool:
        calls.append(text)
        return real(secret, text, given)

    monkeypatch.setattr(signature, "is_signed", counted)
    for credential_id in ("DC1", "DC9", "DC3"):
        calls.clear()
        assert connect(view, f"DeviceCredential|{credential_id}|mqtt-demo", "x").outcome is BAD
        assert calls == [CLIENT]


def test_another_credential_of_a_client_displaces_the_first() -> None:
    view = Devices()
    assert view.put(device()) is None
    assert view.put(device()) is None
    assert view.put(device(credential_id="DC9")) == "DC1"
    assert view.credential("DC1") is None
    assert view.credential("DC9") is view.of_client("mqtt-demo", CLIENT)
    assert view.remove("mqtt-demo", CLIENT) == "DC9"
    assert view.remove("mqtt-demo", CLIENT) is None
    assert len(view) == 0
    assert view.of_instance("mqtt-demo") == {}


def test_replace_tells_what_is_gone() -> None:
    view = Devices()
    view.replace([device(), device("GID_Test@@@2", "DC2"), device("GID_Test@@@3", "DC3")])
    assert view.replace([device(), device("GID_Test@@@2", "DC9")]) == ["DC2", "DC3"]
    assert len(view) == 2


def test_pages_are_sorted_and_of_one_group() -> None:
    view = Devices()
    ids = [f"GID_{group}@@@{number}" for group in ("one", "two") for number in (3, 1, 2)]
    view.replace([device(client_id, f"DC{number}") for number, client_id in enumerate(ids)])

    def page(prefix: str, after: str, size: int) -> list[str]:
        return [credential.client_id for credential in view.page("mqtt-demo", prefix, after, size)]

    assert page("", "", 10) == sorted(ids)
    assert page("GID_two@@@", "", 2) == ["GID_two@@@1", "GID_two@@@2"]
    assert page("GID_two@@@", "GID_two@@@2", 2) == ["GID_two@@@3"]
    assert page("GID_none@@@", "", 2) == []
    assert view.page("other", "", "", 2) == []


def test_stored_form() -> None:
    stored = devices.encode(credential_id="DC1", sealed_secret="sealed", create_time_ms=7)
    assert devices.decode(stored) == ("DC1", "sealed", 7)


@pytest.mark.parametrize("stored", [b"", b"\xff", b"{}", b"[]", b'[2,"a","b",1]', b'[1,"a","b"]', b'[1,"a",2,3]'])
def test_bytes_that_are_no_device_credential(stored: bytes) -> None:
    with pytest.raises(BadDeviceError):
        devices.decode(stored)
