"""Parameters and answers of the token HTTP API (product.md section 2.3), without I/O."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence

from services.auth.domain.tokens import MAX_TOKEN_CHARACTERS, TokenType
from services.common import signature
from services.common.parameters import BadParameterError, given_signature, single_values

PROXY_TYPE = "MQTT"
SERVICE_NAME = "mq"

_NUMBER = re.compile(r"[0-9]{1,19}\Z")
_ACTIONS = {"R": TokenType.READ, "W": TokenType.WRITE, "R,W": TokenType.READ_WRITE, "W,R": TokenType.READ_WRITE}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a call, required everywhere."""

    name: str
    max_characters: int
    text: str
    example: str


_ACCESS_KEY = Parameter("accessKey", 64, "Id of the AccessKey that signs.", "AK1")
_SIGNATURE = Parameter(
    "signature", 64, "Base64 of the HMAC-SHA1 of the string to sign.", "/kQqzik/VVdOcHbOhnCN+oIdlVg="
)
_TOKEN = Parameter("token", MAX_TOKEN_CHARACTERS, "The token.", "AQAAAAE...")

APPLY = (
    Parameter("actions", 3, "`R` subscribe, `W` publish, or `R,W` both.", "R,W"),
    Parameter("resources", 16_384, "1 to 100 topics or filters, sorted and joined by commas.", "TopicA/+,TopicB/#"),
    _ACCESS_KEY,
    Parameter("expireTime", 20, "When it expires, milliseconds since 1970, 60 s ahead or more.", "1555329600000"),
    Parameter("proxyType", 16, f"`{PROXY_TYPE}`.", PROXY_TYPE),
    Parameter("serviceName", 16, f"`{SERVICE_NAME}`.", SERVICE_NAME),
    Parameter("instanceId", 64, "Instance that the token is for.", "mqtt-xxxxx"),
    _SIGNATURE,
)
EXISTING = (_TOKEN, _ACCESS_KEY, _SIGNATURE)
"""Parameters of revoke and query."""


class Code(enum.IntEnum):
    """`code` of the body."""

    OK = 200
    FORGED = 1
    EXPIRED = 2
    REVOKED = 3
    BAD_PARAMETER = 400
    BAD_SIGNATURE = 407
    NOT_ISSUED = 409
    NOT_REVOKED = 410


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signed:
    """Who signed what; nothing is checked about it yet."""

    access_key_id: str
    signature: str = dataclasses.field(repr=False)
    signed_text: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApplyQuery:
    """A well-formed call of apply."""

    signed: Signed
    instance_id: str
    actions: TokenType
    resources: tuple[str, ...]
    expire_time_ms: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenQuery:
    """A well-formed call of revoke or query."""

    signed: Signed
    token: str = dataclasses.field(repr=False)


def parse_apply(parameters: Sequence[tuple[str, str]]) -> ApplyQuery:
    """Return the call of decoded parameters, in any order; unknown ones are ignored.

    Raises:
        BadParameterError: they are none.
    """
    values = _values(parameters, APPLY)
    if values["actions"] not in _ACTIONS:
        raise BadParameterError("parameter actions must be R, W or R,W")
    if values["proxyType"] != PROXY_TYPE:
        raise BadParameterError(f"parameter proxyType must be {PROXY_TYPE}")
    if values["serviceName"] != SERVICE_NAME:
        raise BadParameterError(f"parameter serviceName must be {SERVICE_NAME}")
    if not _NUMBER.match(values["expireTime"]):
        raise BadParameterError("parameter expireTime must be milliseconds since 1970")
    resources = values["resources"].split(",")
    signed = {name: values[name] for name in ("expireTime", "instanceId", "serviceName")}
    return ApplyQuery(
        signed=_signed(values, {**signed, "actions": values["actions"].split(","), "resources": resources}),
        instance_id=values["instanceId"],
        actions=_ACTIONS[values["actions"]],
        resources=tuple(resources),
        expire_time_ms=int(values["expireTime"]),
    )


def parse_existing(parameters: Sequence[tuple[str, str]]) -> TokenQuery:
    """Return the call of revoke or query of decoded parameters; unknown ones are ignored.

    Raises:
        BadParameterError: they are none.
    """
    values = _values(parameters, EXISTING)
    return TokenQuery(signed=_signed(values, {"token": values["token"]}), token=values["token"])


def _values(parameters: Sequence[tuple[str, str]], expected: tuple[Parameter, ...]) -> dict[str, str]:
    return single_values(parameters, {parameter.name: parameter.max_characters for parameter in expected})


def _signed(values: Mapping[str, str], signed: Mapping[str, str | list[str]]) -> Signed:
    return Signed(
        access_key_id=values["accessKey"],
        signature=given_signature(values["signature"]),
        signed_text=signature.string_to_sign(signed),
    )


def answer(code: Code, message: str, token: str | None = None) -> dict[str, object]:
    """Return the JSON body of an answer; `token` only from apply."""
    body: dict[str, object] = {"success": code is Code.OK, "message": message, "code": int(code)}
    return body if token is None else {**body, "tokenData": token}
