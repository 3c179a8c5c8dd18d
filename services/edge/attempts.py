"""CONNECT packets that wait for auth, and what its answers mean. Hot path of a storm of connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from services.common import utf8
from services.common.errors import StreamContractError
from services.edge import tokens
from services.edge.mqtt.packets import Connect, ConnectReturnCode
from services.edge.policies import Policies
from services.edge.policy import GROUP_SEPARATOR, Coverage, Grant
from services.edge.ports import Access, Client
from services.edge.tokens import Token
from weimq.auth.v1 import auth_pb2

MAX_ATTEMPTS = 500
"""CONNECT packets in one question."""
MANY = 100
"""CONNECT packets that are asked about at once: then a question, some 200 us for both processes however many it is
about, is a small part of what they cost."""
MAX_WAITING = 20_000
"""CONNECT packets that may wait for their answer; a further one is answered CONNACK 3."""
LARGE_BYTES = 4_096
"""A CONNECT beyond this is large."""
MAX_LARGE_BYTES = 16 << 20
"""Large CONNECT packets that may wait and be asked about together, so that a question fits into a message of gRPC
whatever strangers send; a further one is answered CONNACK 3."""

TYPES = {
    tokens.READ: auth_pb2.TOKEN_TYPE_READ,
    tokens.WRITE: auth_pb2.TOKEN_TYPE_WRITE,
    tokens.READ_WRITE: auth_pb2.TOKEN_TYPE_READ_WRITE,
}
_TYPE_NAMES: dict[int, str] = {int(number): name for name, number in TYPES.items()}
_RETURN_CODES: dict[int, ConnectReturnCode] = {
    int(auth_pb2.CONNECT_OUTCOME_IDENTIFIER_REJECTED): ConnectReturnCode.IDENTIFIER_REJECTED,
    int(auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS): ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD,
    int(auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED): ConnectReturnCode.NOT_AUTHORIZED,
}


class _Attempt:
    """One of them."""

    __slots__ = ("client", "connect", "large_bytes")

    def __init__(self, client: Client, connect: Connect, large_bytes: int) -> None:
        self.client = client
        self.connect = connect
        self.large_bytes = large_bytes  # 0: it is not large


class _Verdict:
    """What an answer of auth means for the clients that it is for."""

    __slots__ = ("access", "reason", "return_code")

    def __init__(self, access: Access | None, return_code: ConnectReturnCode, reason: str) -> None:
        self.access = access
        self.return_code = return_code
        self.reason = reason


class Attempts:
    """The attempts of an edge. Owned by one event loop."""

    def __init__(self, policies: Policies, default_instance: str) -> None:
        self._policies = policies
        self._default_instance = default_instance
        self._large_bytes = 0
        self._waiting: list[_Attempt] = []
        self._asked: deque[list[_Attempt]] = deque()
        self.asked = 0
        """Questions so far."""
        self.answered = 0
        """Those of them that were answered, or failed."""
        self.wake = asyncio.Event()
        """Set while some wait to be asked about."""
        self.wake_early = asyncio.Event()
        """Set while `MANY` do."""

    def add(self, client: Client, connect: Connect) -> None:
        """Check a CONNECT; see `ports.Authenticator`."""
        size = len(connect.password or b"") + _size(connect.client_id) + _size(connect.username or "")
        large_bytes = size if size > LARGE_BYTES else 0
        if len(self._waiting) >= MAX_WAITING or (large_bytes and self._large_bytes + large_bytes > MAX_LARGE_BYTES):
            client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "too many connections at once")
            return
        self._large_bytes += large_bytes
        self._waiting.append(_Attempt(client, connect, large_bytes))
        if len(self._waiting) == 1:
            self.wake.set()
        elif len(self._waiting) == MANY:
            self.wake_early.set()

    def ask(self) -> auth_pb2.AuthenticateStreamRequest:
        """Return the next question, whose answer `answer` or `fail` takes in its turn."""
        batch = self._waiting[:MAX_ATTEMPTS]
        del self._waiting[:MAX_ATTEMPTS]
        if not self._waiting:
            self.wake.clear()
        if len(self._waiting) < MANY:
            self.wake_early.clear()
        self._asked.append(batch)
        self.asked += 1
        request = auth_pb2.AuthenticateStreamRequest(merges_results=True)
        messages = request.attempts
        for attempt in batch:
            connect = attempt.connect
            message = messages.add()
            message.client_id = connect.client_id
            if connect.username is not None:
                message.user_name = connect.username
            if connect.password is not None:
                message.password = connect.password
            message.default_instance_id = self._default_instance
            message.address = attempt.client.address
        return request

    def answer(self, response: auth_pb2.AuthenticateStreamResponse) -> None:
        """Take the answer to the oldest question.

        Raises:
            StreamContractError: it answers not each attempt; the question has not been taken for answered.
        """
        results = response.results
        indexes = list(response.result_indexes) or list(range(len(results)))
        asked = len(self._asked[0]) if self._asked else -1
        if len(indexes) != asked or max(indexes) >= len(results):
            raise StreamContractError("each attempt has its result", rule="results")
        batch = self._take_asked()
        verdicts = [self._verdict(result) for result in results]
        for attempt, index in zip(batch, indexes, strict=True):
            verdict = verdicts[index]
            access, client = verdict.access, attempt.client
            if access is not None and not self._has_group(client, access.grant):
                client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "group not known here")
            else:
                client.on_authenticated(access, verdict.return_code, verdict.reason)

    def fail(self) -> None:
        """Refuse all that were asked about: nobody answered."""
        while self._asked:
            for attempt in self._take_asked():
                attempt.client.on_authenticated(None, ConnectReturnCode.SERVER_UNAVAILABLE, "auth did not answer")

    def _take_asked(self) -> list[_Attempt]:
        batch = self._asked.popleft()
        self.answered += 1
        self._large_bytes -= sum([attempt.large_bytes for attempt in batch])
        return batch

    def _verdict(self, result: auth_pb2.ConnectResult) -> _Verdict:
        """Return what a result means here; the watch may be behind it, or ahead of it."""
        outcome = int(result.outcome)
        if outcome != auth_pb2.CONNECT_OUTCOME_ACCEPTED:
            # An outcome that this edge does not know yet is a refusal, too.
            return _Verdict(None, _RETURN_CODES.get(outcome, ConnectReturnCode.NOT_AUTHORIZED), result.reason)
        policies, access_key_id = self._policies, result.access_key_id
        grant = policies.grant(result.instance_id, result.account_id, access_key_id)
        if grant is None or policies.is_outdated:
            return _Verdict(None, ConnectReturnCode.SERVER_UNAVAILABLE, "instance or AccessKey not known here")
        granted = [token_of(each) for each in result.tokens] if result.token_mode else None
        device_credential_id = result.device_credential_id
        if (device_credential_id and device_credential_id in policies.removed_credentials) or (
            granted and _is_any_revoked(granted, policies)
        ):
            return _Verdict(None, ConnectReturnCode.BAD_USER_NAME_OR_PASSWORD, "just revoked")
        access = Access(
            grant=grant, access_key_id=access_key_id, tokens=granted, device_credential_id=device_credential_id
        )
        return _Verdict(access, ConnectReturnCode.ACCEPTED, "")

    def _has_group(self, client: Client, grant: Grant) -> bool:
        instance = grant.instance
        return instance.is_standard or self._policies.has_group(
            instance.instance_id, client.client_id.partition(GROUP_SEPARATOR)[0], grant.account_id
        )


def token_of(grant: auth_pb2.TokenGrant) -> Token:
    """Return a token as auth says it."""
    return Token(
        token_id=grant.token_id,
        type=_TYPE_NAMES[grant.type],
        coverage=Coverage(tuple(grant.resources)),
        expire_time_ms=grant.expire_time_ms,
    )


def _is_any_revoked(granted: Iterable[Token], policies: Policies) -> bool:
    return any(token.token_id in policies.revoked_tokens for token in granted)


def _size(text: str) -> int:
    """Return the most bytes that a text takes."""
    return len(text) if text.isascii() else utf8.MAX_BYTES * len(text)
