"""Parameters and answers of the online query (product.md section 4), without I/O."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence

from services.common import signature
from services.common.parameters import BadParameterError, given_signature, single_values

WINDOW_MS = 5 * 60 * 1_000
"""How far the timestamp may be off, before or after."""

_NUMBER = re.compile(r"-?[0-9]{1,19}\Z")

MAX_CHARACTERS = {"accessKey": 64, "resource": 4_096, "timestamp": 20, "instanceId": 64, "signature": 64}
"""Required parameters and their greatest lengths; a client id of the profile `standard` may be long."""


class Code(enum.IntEnum):
    """`code` of the body."""

    OK = 0
    BAD_PARAMETER = 1
    BAD_SIGNATURE = 2
    GROUP_NOT_OWNED = 3
    TIMESTAMP_OFF = 4
    UNAVAILABLE = 5
    """Auth does not answer; not one of the vendor's codes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """A well-formed query; nothing is checked about its signature yet."""

    access_key_id: str
    instance_id: str
    client_id: str
    timestamp_ms: int
    signature: str
    signed_text: str

    def is_fresh(self, now_ms: int) -> bool:
        """Say whether the timestamp is at most 5 minutes off."""
        return abs(now_ms - self.timestamp_ms) <= WINDOW_MS


def parse(parameters: Sequence[tuple[str, str]]) -> Query:
    """Return the query of decoded parameters, in any order; unknown ones are ignored.

    Raises:
        BadParameterError: they are none.
    """
    values = single_values(parameters, MAX_CHARACTERS)
    if not _NUMBER.match(values["timestamp"]):
        raise BadParameterError("parameter timestamp must be milliseconds since 1970")
    given = given_signature(values.pop("signature"))
    return Query(
        access_key_id=values["accessKey"],
        instance_id=values["instanceId"],
        client_id=values["resource"],
        timestamp_ms=int(values["timestamp"]),
        signature=given,
        signed_text=signature.string_to_sign(values),
    )


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the caller gets."""

    http_status: int
    code: Code
    message: str
    online: int = -1

    def body(self) -> dict[str, object]:
        """Return the JSON body."""
        success = self.code is Code.OK
        return {"code": int(self.code), "success": success, "online": self.online, "message": self.message}
