"""Each outcome of a connection attempt and of a signed query."""

from __future__ import annotations

import pytest

from services.auth.domain import credentials, names
from services.auth.domain.credentials import Attempt, Mode, Outcome, QueryOutcome
from services.auth.domain.records import AccessKey, Group, Profile, Record, new_instance
from services.auth.domain.resources import Resources
from services.auth.domain.view import View
from services.common import signature
from services.common.signature import sign

SECRET = "XXXXX"
CLIENT = "GID_Test@@@0001"
NOW = 1_555_000_000_000


@pytest.fixture(scope="module")
def resources() -> Resources:
    view = Resources()
    records: list[Record] = [
        new_instance("mqtt-demo", Profile.LMQ, anonymous=False, create_time_ms=0),
        new_instance("mqtt-other", Profile.LMQ, anonymous=False, create_time_ms=0),
        new_instance("open", Profile.STANDARD, anonymous=True, create_time_ms=0),
        new_instance("closed", Profile.STANDARD, anonymous=False, create_time_ms=0),
        Group(instance_id="mqtt-demo", group_id="GID_Test", account_id="mine"),
        Group(instance_id="mqtt-demo", group_id="GID_Else", account_id="yours"),
    ]
    for instance_id in ("mqtt-demo", "open", "closed", "orphan"):
        for access_key_id, secret in (("AK1", SECRET), ("AKunreadable", None)):
            records.append(
                AccessKey(
                    instance_id=instance_id,
                    access_key_id=access_key_id,
                    account_id="mine",
                    sealed_secret="",
                    secret=secret,
                )
            )
    view.replace({record.key: record for record in records})
    return view


def attempt(user_name: str | None, password: str | bytes | None, client_id: str = CLIENT, default: str = "") -> Attempt:
    return Attempt(
        client_id=client_id,
        user_name=user_name,
        password=password.encode() if isinstance(password, str) else password,
        default_instance_id=default,
    )


GOOD = sign(SECRET, CLIENT)
OK, BAD = Outcome.ACCEPTED, Outcome.BAD_CREDENTIALS
REJECTED, UNAUTHORIZED = Outcome.IDENTIFIER_REJECTED, Outcome.NOT_AUTHORIZED

CASES = {
    "signature of the product's vector": (
        attempt("Signature|AK1|mqtt-demo", "vI009IZJZVGRwBwZvnbwjfuXxVM="),
        OK,
        "",
    ),
    "instance of the listener": (attempt("Signature|AK1|", GOOD, default="mqtt-demo"), OK, ""),
    "wrong signature": (attempt("Signature|AK1|mqtt-demo", sign("other", CLIENT)), BAD, "wrong signature"),
    "signature of another client": (
        attempt("Signature|AK1|mqtt-demo", GOOD, "GID_Test@@@0002"),
        BAD,
        "wrong signature",
    ),
    "no password": (attempt("Signature|AK1|mqtt-demo", None), BAD, "wrong signature"),
    "password of bytes": (attempt("Signature|AK1|mqtt-demo", b"\xff\x00"), BAD, "wrong signature"),
    "unknown key": (attempt("Signature|AK9|mqtt-demo", GOOD), BAD, "unknown AccessKey"),
    "key of another instance": (attempt("Signature|AK1|mqtt-other", GOOD), BAD, "unknown AccessKey"),
    "key that can't be decrypted": (
        attempt("Signature|AKunreadable|mqtt-demo", sign("x" * 32, CLIENT)),
        BAD,
        "can't be decrypted",
    ),
    "key with the stand-in secret": (
        attempt("Signature|AK9|mqtt-demo", sign("x" * 32, CLIENT)),
        BAD,
        "unknown AccessKey",
    ),
    "unknown instance": (attempt("Signature|AK1|nowhere", GOOD), BAD, "unknown instance"),
    "key left over from a deleted instance": (attempt("Signature|AK1|orphan", GOOD), BAD, "unknown instance"),
    "unknown group": (
        attempt("Signature|AK1|mqtt-demo", sign(SECRET, "GID_None@@@1"), "GID_None@@@1"),
        UNAUTHORIZED,
        "group",
    ),
    "group of another account": (
        attempt("Signature|AK1|mqtt-demo", sign(SECRET, "GID_Else@@@1"), "GID_Else@@@1"),
        UNAUTHORIZED,
        "group",
    ),
    "bad client id": (attempt("Signature|AK1|mqtt-demo", sign(SECRET, "device"), "device"), REJECTED, "client id"),
    "bad client id with a wrong signature": (attempt("Signature|AK1|mqtt-demo", "x", "device"), REJECTED, "client id"),
    "bad client id of an unknown instance": (attempt("Signature|AK1|nowhere", "x", "device"), REJECTED, "client id"),
    "empty client id": (attempt("Signature|AK1|mqtt-demo", sign(SECRET, ""), ""), REJECTED, "client id"),
    "token mode with no token of ours": (attempt("Token|AK1|mqtt-demo", "RW|token"), BAD, "token RW: forged"),
    "token mode without tokens": (attempt("Token|AK1|mqtt-demo", ""), OK, ""),
    "token mode without a password": (attempt("Token|AK1|mqtt-demo", None), OK, ""),
    "token mode, unknown key": (attempt("Token|AK9|mqtt-demo", ""), BAD, "unknown AccessKey"),
    "token mode, unknown instance": (attempt("Token|AK1|orphan", ""), BAD, "unknown instance"),
    "token mode, another account's group": (
        attempt("Token|AK1|mqtt-demo", "", "GID_Else@@@1"),
        UNAUTHORIZED,
        "group",
    ),
    "token mode, no set of tokens": (attempt("Token|AK1|mqtt-demo", "RW"), BAD, "do not alternate"),
    "unknown device": (attempt("DeviceCredential|AK1|mqtt-demo", "x"), BAD, "unknown device credential"),
    "unknown mode": (attempt("Magic|AK1|mqtt-demo", GOOD, default="mqtt-demo"), BAD, "no known mode"),
    "mode in lower case": (attempt("signature|AK1|mqtt-demo", GOOD, default="mqtt-demo"), BAD, "no known mode"),
    "too few parts": (attempt("Signature|AK1", GOOD, default="mqtt-demo"), BAD, "no known mode"),
    "too many parts": (attempt("Signature|AK1|mqtt-demo|x", GOOD, default="mqtt-demo"), BAD, "no known mode"),
    "no user name, no instance": (attempt(None, None), BAD, "neither user name nor listener names an instance"),
    "no user name, no instance, an id of plain MQTT": (
        attempt(None, None, "x"),
        REJECTED,
        "neither user name nor listener names an instance",
    ),
    "no user name at an lmq listener": (attempt(None, None, default="mqtt-demo"), BAD, "no known mode"),
    "listener names an unknown instance": (attempt(None, None, default="nowhere"), BAD, "unknown instance"),
    "anonymous": (attempt(None, None, "any id", default="open"), OK, ""),
    "anonymous with empty client id": (attempt(None, None, "", default="open"), OK, ""),
    "user and password beside anonymous": (attempt("bob", "pw", "#+/", default="open"), OK, ""),
    "odd user name beside anonymous": (attempt("a|b|c", "pw", "x", default="open"), OK, ""),
    "anonymous not allowed": (attempt(None, None, "x", default="closed"), BAD, "no anonymous"),
    "user and password without accounts": (attempt("bob", "pw", "x", default="closed"), BAD, "no anonymous"),
    "signature at a standard instance": (attempt("Signature|AK1|closed", sign(SECRET, "any"), "any"), OK, ""),
    "wrong signature at an open instance": (attempt("Signature|AK1|open", "x", "any"), BAD, "wrong signature"),
    "token mode at an open instance": (attempt("Token|AK1|open", "", "any"), OK, ""),
}


@pytest.mark.parametrize(("tried", "outcome", "reason"), CASES.values(), ids=CASES.keys())
def test_attempt(resources: Resources, tried: Attempt, outcome: Outcome, reason: str) -> None:
    result = credentials.authenticate(tried, View(resources), NOW)
    assert result.outcome is outcome
    assert reason in result.reason
    if outcome is OK:
        assert result.instance_id
    else:
        assert result.reason
        assert not result.instance_id
        assert not result.account_id


def test_accepted_signature_names_instance_and_account(resources: Resources) -> None:
    result = credentials.authenticate(attempt("Signature|AK1|mqtt-demo", GOOD), View(resources), NOW)
    assert (result.instance_id, result.account_id) == ("mqtt-demo", "mine")


def test_anonymous_has_no_account(resources: Resources) -> None:
    result = credentials.authenticate(attempt(None, None, "x", default="open"), View(resources), NOW)
    assert (result.instance_id, result.account_id) == ("open", "")


def test_reasons_repeat_nothing_that_was_sent(resources: Resources) -> None:
    hostile = "GID_Test@@@evil\r\nname"
    for user_name in ("Signature|evil\r\n|mqtt-demo", "Signature|AK1|evil\r\n", "evil\r\n"):
        for client_id in (hostile, CLIENT):
            result = credentials.authenticate(attempt(user_name, "evil\r\n", client_id), View(resources), NOW)
            assert "evil" not in result.reason


def test_attempt_does_not_show_its_password() -> None:
    assert GOOD not in repr(attempt("Signature|AK1|mqtt-demo", GOOD))


def test_unknown_key_and_wrong_signature_do_the_same_work(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = signature.is_signed

    def counted(secret: str, text: str, given: str | bytes) -> bool:
        calls.append(text)
        return real(secret, text, given)

    monkeypatch.setattr(signature, "is_signed", counted)
    for user_name in ("Signature|AK1|mqtt-demo", "Signature|AK9|mqtt-demo", "Signature|AK1|nowhere"):
        calls.clear()
        assert credentials.authenticate(attempt(user_name, "x"), View(resources), NOW).outcome is BAD
        assert calls == [CLIENT]


@pytest.mark.parametrize(
    ("user_name", "default", "identity"),
    [
        (None, "d", (Mode.PLAIN, "", "d")),
        ("", "d", (Mode.PLAIN, "", "d")),
        ("bob", "", (Mode.PLAIN, "", "")),
        ("|k|i", "d", (Mode.PLAIN, "", "d")),
        ("Signature|k|i", "d", (Mode.SIGNATURE, "k", "i")),
        ("Signature||", "d", (Mode.SIGNATURE, "", "d")),
        ("Token|k|i", "d", (Mode.TOKEN, "k", "i")),
    ],
)
def test_user_names(user_name: str | None, default: str, identity: tuple[Mode, str, str]) -> None:
    assert credentials.parse_user_name(user_name, default) == identity


QUERIES = {
    "allowed": ("mqtt-demo", "AK1", CLIENT, "", QueryOutcome.ALLOWED),
    "wrong signature": ("mqtt-demo", "AK1", CLIENT, "x", QueryOutcome.BAD_SIGNATURE),
    "signature of no text": ("mqtt-demo", "AK1", CLIENT, "\udc80", QueryOutcome.BAD_SIGNATURE),
    "unknown key": ("mqtt-demo", "AK9", CLIENT, "", QueryOutcome.BAD_SIGNATURE),
    "unknown instance": ("nowhere", "AK1", CLIENT, "", QueryOutcome.BAD_SIGNATURE),
    "deleted instance": ("orphan", "AK1", CLIENT, "", QueryOutcome.BAD_SIGNATURE),
    "unreadable key": ("mqtt-demo", "AKunreadable", CLIENT, "", QueryOutcome.BAD_SIGNATURE),
    "unknown group": ("mqtt-demo", "AK1", "GID_None@@@1", "", QueryOutcome.GROUP_NOT_OWNED),
    "another account's group": ("mqtt-demo", "AK1", "GID_Else@@@1", "", QueryOutcome.GROUP_NOT_OWNED),
    "no group": ("mqtt-demo", "AK1", "device", "", QueryOutcome.GROUP_NOT_OWNED),
    "standard instance": ("open", "AK1", "any", "", QueryOutcome.ALLOWED),
}


@pytest.mark.parametrize(
    ("instance_id", "access_key_id", "client_id", "given", "outcome"), QUERIES.values(), ids=QUERIES.keys()
)
def test_query(
    resources: Resources, instance_id: str, access_key_id: str, client_id: str, given: str, outcome: QueryOutcome
) -> None:
    text = "accessKey=AK1&instanceId=x&resource=y&timestamp=1"
    answer = credentials.authorize_query(
        instance_id=instance_id,
        access_key_id=access_key_id,
        group_id=names.group_of(client_id),
        topic="",
        signed_text=text,
        given=given or sign(SECRET, text),
        resources=resources,
    )
    assert answer is outcome
