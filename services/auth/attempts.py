"""Decides about CONNECT packets of edges: messages in, messages out. Hot path of a storm of connections."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from services.auth import metrics
from services.auth.domain import backoff, credentials
from services.auth.domain.backoff import Guard
from services.auth.domain.credentials import Attempt, Outcome, Result
from services.auth.domain.token_checks import Verdict
from services.auth.domain.tokens import TokenType
from services.auth.domain.view import View
from weimq.auth.v1 import auth_pb2

logger = logging.getLogger(__name__)

TOKEN_TYPES = {
    TokenType.READ: auth_pb2.TOKEN_TYPE_READ,
    TokenType.WRITE: auth_pb2.TOKEN_TYPE_WRITE,
    TokenType.READ_WRITE: auth_pb2.TOKEN_TYPE_READ_WRITE,
}
_OUTCOMES = {
    Outcome.ACCEPTED: auth_pb2.CONNECT_OUTCOME_ACCEPTED,
    Outcome.IDENTIFIER_REJECTED: auth_pb2.CONNECT_OUTCOME_IDENTIFIER_REJECTED,
    Outcome.BAD_CREDENTIALS: auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS,
    Outcome.NOT_AUTHORIZED: auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED,
}
# Looked up once: a label costs as much as the check of a signature.
_COUNTERS = {outcome: metrics.ATTEMPTS.labels(outcome.name.lower()) for outcome in Outcome}
_BLOCKED = metrics.ATTEMPTS.labels("blocked")
_NOT_CHECKED = Result(Outcome.BAD_CREDENTIALS, reason="not checked: too many failures before")


class Attempts:
    """Answers attempts by the view. Owned by one event loop."""

    def __init__(self, *, view: View, guard: Guard) -> None:
        self._view = view
        self._guard = guard

    def answer(
        self, attempts: Iterable[auth_pb2.ConnectAttempt], now_ms: int, now: float
    ) -> list[auth_pb2.ConnectResult]:
        """Return what becomes of each attempt.

        Args:
            attempts: in any number.
            now_ms: milliseconds since 1970.
            now: monotonic seconds.
        """
        return [_message(result) for result in self._decide_all(attempts, now_ms, now)]

    def answer_merged(
        self, attempts: Iterable[auth_pb2.ConnectAttempt], now_ms: int, now: float
    ) -> auth_pb2.AuthenticateStreamResponse:
        """Do as `answer`, with equal results once: most clients of a storm have the same AccessKey."""
        results: list[auth_pb2.ConnectResult] = []
        indexes: list[int] = []
        known: dict[tuple[str, str, str], int] = {}
        for result in self._decide_all(attempts, now_ms, now):
            if result.outcome is not Outcome.ACCEPTED or result.token_mode or result.device_credential_id:
                indexes.append(len(results))
                results.append(_message(result))
                continue
            key = (result.access_key_id, result.instance_id, result.account_id)
            index = known.get(key)
            if index is None:
                index = known[key] = len(results)
                results.append(_message(result))
            indexes.append(index)
        return auth_pb2.AuthenticateStreamResponse(results=results, result_indexes=indexes)

    def _decide_all(self, attempts: Iterable[auth_pb2.ConnectAttempt], now_ms: int, now: float) -> list[Result]:
        counts: dict[Outcome, int] = {}
        results = [self._decide(attempt, now_ms, now, counts) for attempt in attempts]
        for outcome, count in counts.items():
            _COUNTERS[outcome].inc(count)
        return results

    def _decide(self, message: auth_pb2.ConnectAttempt, now_ms: int, now: float, counts: dict[Outcome, int]) -> Result:
        client_id, user_name = message.client_id, message.user_name
        who = backoff.Attempt(backoff.host_of(message.address), user_name, client_id)
        if not self._guard.admits(who, now):
            _BLOCKED.inc()
            return _NOT_CHECKED
        attempt = Attempt(
            client_id=client_id,
            user_name=user_name,
            password=message.password,
            default_instance_id=message.default_instance_id,
        )
        result = credentials.authenticate(attempt, self._view, now_ms)
        counts[result.outcome] = counts.get(result.outcome, 0) + 1
        if result.outcome is Outcome.ACCEPTED:
            self._guard.succeeded(who)
        elif result.is_guess and self._guard.failed(who, now):
            logger.warning("too many failures: waiting", extra={"address": who.address, "reason": result.reason})
        return result


def _message(result: Result) -> auth_pb2.ConnectResult:
    answer = auth_pb2.ConnectResult(
        outcome=_OUTCOMES[result.outcome],
        instance_id=result.instance_id,
        account_id=result.account_id,
        access_key_id=result.access_key_id,
    )
    if result.reason:
        answer.reason = result.reason
    if result.token_mode:
        answer.token_mode = True
        answer.tokens.extend(map(grant_of, result.tokens))
    if result.device_credential_id:
        answer.device_credential_id = result.device_credential_id
    return answer


def grant_of(verdict: Verdict) -> auth_pb2.TokenGrant:
    """Return what a token grants; the verdict is a valid one."""
    if verdict.token is None:
        raise AssertionError("a valid verdict has its token")
    return auth_pb2.TokenGrant(
        token_id=verdict.token.token_id,
        type=TOKEN_TYPES[verdict.token_type],
        resources=verdict.token.resources,
        expire_time_ms=verdict.token.expire_time_ms,
    )
