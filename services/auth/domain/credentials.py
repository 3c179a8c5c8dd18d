"""Decides whether a CONNECT packet, or a signed query, may pass (product.md sections 2.1, 2.2, 2.4 and 4).

An unknown instance, an unknown AccessKey and a wrong signature are answered alike and after the same work, so that a
stranger can't find out which ids exist: an unknown instance is taken for an `lmq` one without keys. Reasons are for
the logs of operators; they repeat nothing that was sent.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from services.auth.domain import names, signatures, token_checks
from services.auth.domain.records import DEFAULT_ACCOUNT, AccessKey, Profile
from services.auth.domain.resources import Resources
from services.auth.domain.token_checks import BadPasswordError, TokenCode, Verdict
from services.auth.domain.view import View

_PARTS = 3


class Mode(enum.Enum):
    """How a client proves who it is; the first part of its user name."""

    SIGNATURE = "Signature"
    TOKEN = "Token"  # noqa: S105 - a word of the protocol
    DEVICE = "DeviceCredential"
    PLAIN = ""
    """No user name, or one without a mode."""


_MODES = {mode.value: mode for mode in Mode if mode is not Mode.PLAIN}


class Attempt:
    """What a CONNECT packet brought."""

    __slots__ = ("client_id", "default_instance_id", "password", "user_name")

    def __init__(
        self, *, client_id: str, user_name: str | None, password: bytes | None, default_instance_id: str = ""
    ) -> None:
        self.client_id = client_id
        self.user_name = user_name
        self.password = password
        self.default_instance_id = default_instance_id


class Outcome(enum.IntEnum):
    """What becomes of an attempt."""

    ACCEPTED = enum.auto()
    IDENTIFIER_REJECTED = enum.auto()
    BAD_CREDENTIALS = enum.auto()
    NOT_AUTHORIZED = enum.auto()


class Result(NamedTuple):
    """Answer to an attempt; everything but outcome and reason is empty unless it is accepted."""

    outcome: Outcome
    instance_id: str = ""
    account_id: str = ""
    reason: str = ""
    is_guess: bool = False
    """Whether it was refused for what somebody sends who guesses; a token that has expired is no guess."""
    access_key_id: str = ""
    token_mode: bool = False
    tokens: tuple[Verdict, ...] = ()
    """Valid ones, at most one for each type."""
    device_credential_id: str = ""


class QueryOutcome(enum.Enum):
    """What becomes of a query about a client."""

    ALLOWED = enum.auto()
    BAD_SIGNATURE = enum.auto()
    GROUP_NOT_OWNED = enum.auto()


def parse_user_name(user_name: str | None, default_instance_id: str) -> tuple[Mode, str, str]:
    """Take a user name such as `Signature|<AccessKeyId>|<InstanceId>` apart.

    Args:
        user_name: as sent; None: there was none.
        default_instance_id: serves user names that name no instance.

    Returns:
        The mode, the id of the AccessKey or device credential, and the instance id.
    """
    parts = (user_name or "").split("|")
    if len(parts) == _PARTS and (mode := _MODES.get(parts[0])) is not None:
        return mode, parts[1], parts[2] or default_instance_id
    return Mode.PLAIN, "", default_instance_id


def authenticate(attempt: Attempt, view: View, now_ms: int) -> Result:
    """Decide about one connection attempt.

    Args:
        attempt: what the client sent.
        view: what exists and what was revoked.
        now_ms: milliseconds since 1970.
    """
    resources = view.resources
    mode, key_id, instance_id = parse_user_name(attempt.user_name, attempt.default_instance_id)
    instance = resources.instance(instance_id)
    is_standard = instance is not None and instance.profile is Profile.STANDARD
    if not is_standard and (fault := names.client_id_fault(attempt.client_id)):
        # Who has no instance is most likely a plain MQTT client, whose client id is not at fault.
        unnamed = "" if instance_id else "; neither user name nor listener names an instance"
        return Result(Outcome.IDENTIFIER_REJECTED, reason=f"client id {fault}{unnamed}")
    if mode is Mode.SIGNATURE:
        return _by_signature(attempt, instance_id, key_id, resources, is_standard=is_standard)
    if mode is Mode.TOKEN:
        return _by_tokens(attempt, instance_id, key_id, view, now_ms, is_standard=is_standard)
    if mode is Mode.DEVICE:
        return _by_device(attempt, instance_id, key_id, view, is_standard=is_standard)
    if instance is None:
        reason = "unknown instance" if instance_id else "neither user name nor listener names an instance"
    elif not is_standard:
        reason = "user name has no known mode"
    elif not instance.anonymous:
        reason = "instance allows no anonymous clients"
    else:
        return Result(Outcome.ACCEPTED, instance.instance_id)
    return _guess(reason)


def authorize_query(
    *,
    instance_id: str,
    access_key_id: str,
    group_id: str,
    topic: str,
    signed_text: str,
    given: str,
    resources: Resources,
) -> QueryOutcome:
    """Decide about a signed query: the key must have signed it, and its account own the group or parent topic.

    Args:
        instance_id: that the query names.
        access_key_id: of the key that signed.
        group_id: that the query, or the client it is about, names; may be empty.
        topic: that the query is about; empty: it is about a client or a group.
        signed_text: what was signed.
        given: the signature.
        resources: what exists.
    """
    key, _ = signatures.signer(instance_id, access_key_id, signed_text, given.encode(errors="replace"), resources)
    if key is None:
        return QueryOutcome.BAD_SIGNATURE
    instance = resources.instance(instance_id)
    # Plain MQTT knows no groups: every key of the instance may ask about its clients.
    is_standard = instance is not None and instance.profile is Profile.STANDARD
    if topic:
        parent = resources.topic(instance_id, topic.partition("/")[0])
        is_owned = parent is not None and parent.account_id == key.account_id
    else:
        group = resources.group(instance_id, group_id)
        is_owned = group is not None and group.account_id == key.account_id
    return QueryOutcome.ALLOWED if is_standard or is_owned else QueryOutcome.GROUP_NOT_OWNED


def _by_signature(
    attempt: Attempt, instance_id: str, access_key_id: str, resources: Resources, *, is_standard: bool
) -> Result:
    key, reason = signatures.signer(instance_id, access_key_id, attempt.client_id, attempt.password or b"", resources)
    if key is None:
        return _guess(reason)
    if not is_standard and not _owns_group(key, attempt.client_id, resources):
        return Result(Outcome.NOT_AUTHORIZED, reason="group does not exist or is another account's")
    return Result(Outcome.ACCEPTED, instance_id, key.account_id, access_key_id=access_key_id)


def _by_tokens(
    attempt: Attempt, instance_id: str, access_key_id: str, view: View, now_ms: int, *, is_standard: bool
) -> Result:
    key = view.resources.access_key(instance_id, access_key_id)
    if view.resources.instance(instance_id) is None:
        return _guess("unknown instance")
    if key is None:
        return _guess("unknown AccessKey")
    try:
        given = token_checks.parse_password(attempt.password or b"")
    except BadPasswordError as error:
        return _guess(f"password is no set of tokens: {error}")
    verdicts = tuple(
        token_checks.check(
            text, token_type, instance_id=instance_id, access_key_id=access_key_id, view=view, now_ms=now_ms
        )
        for token_type, text in given.items()
    )
    for verdict in verdicts:
        if verdict.code is not TokenCode.VALID:
            reason = f"token {verdict.token_type}: {verdict.code.name.lower()}"
            is_guess = verdict.code in {TokenCode.FORGED, TokenCode.BAD_SIGNATURE}
            return Result(Outcome.BAD_CREDENTIALS, reason=reason, is_guess=is_guess)
    if not is_standard and not _owns_group(key, attempt.client_id, view.resources):
        return Result(Outcome.NOT_AUTHORIZED, reason="group does not exist or is another account's")
    return Result(
        Outcome.ACCEPTED,
        instance_id,
        key.account_id,
        access_key_id=access_key_id,
        token_mode=True,
        tokens=verdicts,
    )


def _by_device(attempt: Attempt, instance_id: str, credential_id: str, view: View, *, is_standard: bool) -> Result:
    credential = view.devices.credential(credential_id)
    secret = credential.secret if credential is not None else None
    is_right = signatures.is_signed_by(secret, attempt.client_id, attempt.password or b"")
    if credential is None or credential.instance_id != instance_id:
        return _guess("unknown device credential")
    if not is_right or credential.client_id != attempt.client_id:
        return _guess("wrong signature of a device")
    if view.resources.instance(instance_id) is None:
        return _guess("unknown instance")
    group = view.resources.group(instance_id, names.group_of(attempt.client_id))
    if group is None and not is_standard:
        return Result(Outcome.NOT_AUTHORIZED, reason="group does not exist")
    return Result(
        Outcome.ACCEPTED,
        instance_id,
        group.account_id if group is not None else DEFAULT_ACCOUNT,
        device_credential_id=credential_id,
    )


def _guess(reason: str) -> Result:
    return Result(Outcome.BAD_CREDENTIALS, reason=reason, is_guess=True)


def _owns_group(key: AccessKey, client_id: str, resources: Resources) -> bool:
    group = resources.group(key.instance_id, names.group_of(client_id))
    return group is not None and group.account_id == key.account_id
