"""Tokens: their form, and what each is worth."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from services.auth.domain import credentials, token_checks, tokens
from services.auth.domain.credentials import Attempt, Outcome
from services.auth.domain.records import AccessKey, Group, Profile, Record, TokenKey, new_instance
from services.auth.domain.revocations import MIN_SWEPT, Revocations
from services.auth.domain.token_checks import BadPasswordError, TokenCode
from services.auth.domain.tokens import BadTokenError, Token, TokenType
from services.auth.domain.view import View

NOW = 1_555_000_000_000
R, W, RW = TokenType


def token_key(byte: int, create_time_ms: int = 0) -> TokenKey:
    cipher = AESGCM(bytes([byte]) * tokens.KEY_BYTES)
    return TokenKey(key_id=f"{byte:08x}", sealed_secret="", create_time_ms=create_time_ms, cipher=cipher)


FIRST, SECOND, GONE = token_key(1), token_key(2), token_key(3)

TOKEN = Token(
    token_id="0" * 32,
    instance_id="mqtt-demo",
    access_key_id="AK1",
    key_time_ms=7,
    actions=RW,
    resources=("demo/+", "demo/温度/#"),
    expire_time_ms=NOW + 60_000,
)


@pytest.fixture
def view() -> View:
    made = View()
    records: list[Record] = [
        new_instance("mqtt-demo", Profile.LMQ, anonymous=False, create_time_ms=0),
        Group(instance_id="mqtt-demo", group_id="GID_Test", account_id="mine"),
        FIRST,
        SECOND,
    ]
    for instance_id, access_key_id in (("mqtt-demo", "AK1"), ("mqtt-demo", "AK2"), ("orphan", "AK1")):
        records.append(
            AccessKey(
                instance_id=instance_id,
                access_key_id=access_key_id,
                account_id="mine",
                sealed_secret="",
                create_time_ms=7,
                secret="XXXXX",
            )
        )
    made.resources.replace({record.key: record for record in records})
    return made


def sealed(key: TokenKey = FIRST, nonce: bytes = bytes(12), **changes: object) -> str:
    return tokens.seal(dataclasses.replace(TOKEN, **changes), key, nonce)  # type: ignore[arg-type]


def code(text: str, view: View, token_type: TokenType = RW, *, now_ms: int = NOW) -> TokenCode:
    return token_checks.check(
        text, token_type, instance_id="mqtt-demo", access_key_id="AK1", view=view, now_ms=now_ms
    ).code


def test_a_token_says_what_was_sealed_with_any_known_key(view: View) -> None:
    for key in (FIRST, SECOND):
        text = sealed(key)
        assert tokens.unseal(text, view.resources.token_cipher) == TOKEN
        assert not set("|,&=+/ ") & set(text)


def test_every_changed_character_is_noticed(view: View) -> None:
    text = sealed()
    for index in range(len(text) - 1):  # the last one has bits that stand for nothing
        changed = text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]
        with pytest.raises(BadTokenError):
            tokens.unseal(changed, view.resources.token_cipher)
        with pytest.raises(BadTokenError):
            tokens.unseal(text[:index], view.resources.token_cipher)


@given(st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(b"\x01" + raw).decode().rstrip("="))))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with pytest.raises(BadTokenError):
        tokens.unseal(text, {FIRST.key_id: FIRST.cipher}.get)


def test_a_long_text_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(BadTokenError):
        tokens.unseal("A" * (tokens.MAX_TOKEN_CHARACTERS + 1), lambda _: pytest.fail("decoded"))


def test_three_of_the_largest_tokens_fit_into_a_password() -> None:
    resource = "x" * (tokens.MAX_RESOURCES_BYTES // tokens.MAX_RESOURCES)
    largest = sealed(resources=(resource,) * tokens.MAX_RESOURCES, instance_id="i" * 64, access_key_id="k" * 64)
    assert len(f"R|{largest}|W|{largest}|RW|{largest}") <= 65_535


CODES = {
    "valid": ({}, TokenCode.VALID),
    "sealed with another known key": ({"key": SECOND}, TokenCode.VALID),
    "sealed with a key that is gone": ({"key": GONE}, TokenCode.FORGED),
    "of another AccessKey": ({"access_key_id": "AK2"}, TokenCode.BAD_SIGNATURE),
    "of another instance": ({"instance_id": "orphan"}, TokenCode.BAD_SIGNATURE),
    "of an AccessKey made again": ({"key_time_ms": 6}, TokenCode.NOT_PERMITTED),
    "expired": ({"expire_time_ms": NOW}, TokenCode.EXPIRED),
    "about to expire": ({"expire_time_ms": NOW + 1}, TokenCode.VALID),
    "revoked": ({"token_id": "f" * 32}, TokenCode.REVOKED),
    "expired and revoked": ({"token_id": "f" * 32, "expire_time_ms": NOW}, TokenCode.EXPIRED),
    "for reading only": ({"actions": R}, TokenCode.WRONG_TYPE),
}


@pytest.mark.parametrize(("changes", "expected"), CODES.values(), ids=CODES.keys())
def test_codes(view: View, changes: dict[str, object], expected: TokenCode) -> None:
    view.revocations.add("f" * 32, NOW + 60_000, NOW)
    assert code(sealed(**changes), view) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "R", "AAAA", "A" * 400])
def test_what_is_no_token_is_forged(view: View, text: str) -> None:
    assert code(text, view) is TokenCode.FORGED


def test_a_token_of_a_deleted_key_or_instance_is_not_permitted(view: View) -> None:
    text = sealed()
    view.resources.apply("accesskey.mqtt-demo.AK1", None)
    assert code(text, view) is TokenCode.NOT_PERMITTED
    verdict = token_checks.check(
        sealed(instance_id="orphan"), RW, instance_id="orphan", access_key_id="AK1", view=view, now_ms=NOW
    )
    assert verdict.code is TokenCode.NOT_PERMITTED


@pytest.mark.parametrize(
    ("actions", "wanted", "covered"),
    [(R, R, True), (R, W, False), (R, RW, False), (W, W, True), (W, R, False), (RW, R, True), (RW, W, True)],
)
def test_a_token_serves_as_a_type_that_its_actions_cover(
    view: View, actions: TokenType, wanted: TokenType, covered: bool
) -> None:
    expected = TokenCode.VALID if covered else TokenCode.WRONG_TYPE
    assert code(sealed(actions=actions), view, wanted) is expected


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        (b"", {}),
        (b"R|a", {R: "a"}),
        (b"R|a|W|b", {R: "a", W: "b"}),
        (b"W|b|R|a", {R: "a", W: "b"}),
        (b"RW|c", {RW: "c"}),
        (b"RW|c|R|a|W|b", {RW: "c", R: "a", W: "b"}),
        (b"R|", {R: ""}),
    ],
)
def test_passwords(password: bytes, expected: dict[TokenType, str]) -> None:
    assert token_checks.parse_password(password) == expected


@pytest.mark.parametrize("password", [b"R", b"R|a|W", b"R|a|R|b", b"r|a", b"X|a", b"|", b"a|R", b"R|a|", b"\xff|a"])
def test_what_is_no_set_of_tokens(password: bytes) -> None:
    with pytest.raises(BadPasswordError):
        token_checks.parse_password(password)


def connect(view: View, password: str) -> credentials.Result:
    attempt = Attempt(client_id="GID_Test@@@1", user_name="Token|AK1|mqtt-demo", password=password.encode())
    return credentials.authenticate(attempt, view, NOW)


def test_an_accepted_set_is_told_with_its_tokens(view: View) -> None:
    result = connect(view, f"W|{sealed(actions=W)}|R|{sealed()}")
    assert result.outcome is Outcome.ACCEPTED
    assert (result.access_key_id, result.account_id, result.token_mode) == ("AK1", "mine", True)
    assert [(verdict.token_type, verdict.token and verdict.token.actions) for verdict in result.tokens] == [
        (W, W),
        (R, RW),
    ]


def test_one_bad_token_spoils_the_set(view: View) -> None:
    bad = sealed(expire_time_ms=NOW)
    for password in (f"R|{sealed()}|W|{bad}", f"R|{bad}|W|{sealed()}"):
        result = connect(view, password)
        assert (result.outcome, result.tokens) == (Outcome.BAD_CREDENTIALS, ())
        assert "expired" in result.reason
        assert bad not in result.reason


def test_without_tokens_a_client_gets_in_and_may_do_nothing(view: View) -> None:
    result = connect(view, "")
    assert (result.outcome, result.token_mode, result.tokens) == (Outcome.ACCEPTED, True, ())


def test_a_new_key_seals_when_every_replica_knows_it() -> None:
    old, new = token_key(1, NOW - 20_000), token_key(2, NOW)
    assert tokens.sealing_key([new, old], NOW) is old
    assert tokens.sealing_key([new, old], NOW + tokens.KEY_SETTLING_MS) is new
    assert tokens.sealing_key([new], NOW) is new
    assert tokens.sealing_key([], NOW) is None
    unreadable = dataclasses.replace(new, cipher=None)
    assert tokens.sealing_key([unreadable, old], NOW + tokens.KEY_SETTLING_MS) is old


def test_keys_whose_tokens_have_all_expired_are_spent() -> None:
    lifetime = tokens.MAX_LIFETIME_MS + 2 * tokens.KEY_SETTLING_MS
    first, second, third = token_key(1, NOW - 3 * lifetime), token_key(2, NOW - lifetime), token_key(3, NOW - 1)
    assert tokens.spent_keys([third, first, second], NOW) == [first]
    assert tokens.spent_keys([third, first, second], NOW - 1) == []
    assert tokens.spent_keys([first], NOW) == []


def test_expired_revocations_are_forgotten_when_their_number_doubles() -> None:
    revocations = Revocations()
    for number in range(MIN_SWEPT - 1):
        assert revocations.add(f"old{number}", NOW, NOW - 1)
    assert not revocations.add("old0", NOW, NOW)
    assert len(revocations) == MIN_SWEPT - 1
    assert revocations.add("new", NOW + 1, NOW)
    assert (revocations.ids(), revocations.is_revoked("new"), revocations.is_revoked("old0")) == (["new"], True, False)
