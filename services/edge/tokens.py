"""Tokens of one connection, and what they let it do (product.md section 2.2). Pure."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from typing_extensions import override

from services.common.topics import split_share
from services.edge.policy import Coverage, Grant, Permissions, TopicRule, is_p2p_to

UPLOAD_TOKEN = "$SYS/uploadToken"  # noqa: S105 - a topic

READ = "R"
WRITE = "W"
READ_WRITE = "RW"
TYPES = (READ, WRITE, READ_WRITE)

NOTICE_AHEAD_MS = 300_000
"""How long before its expiry a token is announced to expire."""

MAX_CACHED_TOPICS = 64
"""Verdicts that a connection keeps: each has a cache of its own."""

# Codes of `$SYS/tokenInvalidNotice`.
FORGED = 1
EXPIRED = 2
REVOKED = 3
NOT_COVERED = 4
WRONG_TYPE = 5
BAD_SIGNATURE = 8
ACCOUNT_NOT_PERMITTED = -1


class Fault(NamedTuple):
    """What `$SYS/tokenInvalidNotice` says."""

    code: int
    type: str
    """Of the token, or of the one that is missing."""


@dataclasses.dataclass(slots=True, eq=False)
class Token:
    """A valid token. One object for a connection."""

    token_id: str
    type: str
    coverage: Coverage
    expire_time_ms: int
    is_announced: bool = False
    """Whether its expiry was announced."""

    @property
    def due_ms(self) -> int:
        """When something is to be done about it, milliseconds since 1970."""
        return self.expire_time_ms - (0 if self.is_announced else NOTICE_AHEAD_MS)


class TokenSet:
    """The tokens in force: at most one of each type."""

    __slots__ = ("_tokens", "due_ms")

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self.due_ms: float = float("inf")
        """When `take_due` has something to say."""

    def __bool__(self) -> bool:
        return bool(self._tokens)

    @property
    def may_read(self) -> bool:
        """Whether one of them lets the client subscribe to anything."""
        return READ in self._tokens or READ_WRITE in self._tokens

    def ids(self) -> list[str]:
        """Return the ids of the tokens."""
        return [token.token_id for token in self._tokens.values()]

    def put(self, token: Token) -> Token | None:
        """Put a token in force and return the one of its type that it replaces."""
        replaced = self._tokens.get(token.type)
        self._tokens[token.type] = token
        self._arm()
        return replaced

    def type_of(self, token_id: str) -> str | None:
        """Return the type of a token, None if it is not (any more) in force."""
        return next((token.type for token in self._tokens.values() if token.token_id == token_id), None)

    def any_type(self) -> str:
        """Return the type of the first token, for a fault that is none of a token's own."""
        return next(iter(self._tokens), READ_WRITE)

    def allows(self, needed: str, topic_filter: str) -> bool:
        """Return whether a token for `needed`, `READ` or `WRITE`, covers a topic name or filter."""
        return any(
            token is not None and token.coverage.covers(topic_filter)
            for token in (self._tokens.get(needed), self._tokens.get(READ_WRITE))
        )

    def fault(self, needed: str, topic_filter: str) -> Fault:
        """Say why the client may not do what it tried."""
        held = needed if needed in self._tokens else READ_WRITE
        if held not in self._tokens:
            return Fault(WRONG_TYPE, needed)
        if not self.allows(needed, topic_filter):
            return Fault(NOT_COVERED, held)
        return Fault(ACCOUNT_NOT_PERMITTED, held)  # the token would do, the account or its key does not

    def take_due(self, now_ms: float) -> tuple[list[Token], Fault | None]:
        """Return tokens whose expiry is to be announced, each once, and what ends the connection."""
        announced = []
        fault = None
        for token in self._tokens.values():
            if now_ms >= token.expire_time_ms:
                fault = Fault(EXPIRED, token.type)
            elif now_ms >= token.due_ms:
                token.is_announced = True
                announced.append(token)
        self._arm()
        return announced, fault

    def clear(self) -> None:
        """Drop all: nothing is allowed any more."""
        self._tokens.clear()
        self._arm()

    def _arm(self) -> None:
        self.due_ms = min((token.due_ms for token in self._tokens.values()), default=float("inf"))


class TokenGrant(Permissions):
    """What one connection in token mode may do: what its key may, as far as its tokens cover it."""

    __slots__ = ("_base", "tokens")

    def __init__(self, base: Grant, tokens: TokenSet) -> None:
        super().__init__(base.instance, MAX_CACHED_TOPICS)
        self._base = base
        self.tokens = tokens

    @override
    def may_subscribe(self, topic_filter: str) -> bool:
        return self._base.may_subscribe(topic_filter) and self.tokens.allows(READ, split_share(topic_filter)[1])

    @override
    def may_receive(self, topic: str, client_id: str) -> bool:
        if not self.tokens or not self._base.may_receive(topic, client_id):
            return False
        if is_p2p_to(topic, client_id) and not self.instance.is_standard:
            return True
        return self.tokens.allows(READ, topic)

    def fault(self, needed: str, topic_filter: str) -> Fault:
        """Say why the client may not do what it tried."""
        return self.tokens.fault(needed, split_share(topic_filter)[1])

    @override
    def refresh(self) -> None:
        self.instance = self._base.instance
        self._rules.clear()

    def close(self) -> None:
        """Leave the grant alone: the connection has ended."""
        self._base.forget_overlay(self)

    @override
    def _judge(self, topic: str) -> TopicRule | None:
        if topic == UPLOAD_TOKEN:
            return None  # a command, even where `standard` allows `$SYS/...`: nobody else may see the token
        if not self._rules:
            self._base.share_changes(self)
        rule = self._base.publish_rule(topic)
        return rule if rule is not None and self.tokens.allows(WRITE, topic) else None
