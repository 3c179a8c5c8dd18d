"""The token HTTP API (product.md section 2.3): `/token/apply`, `/token/revoke`, `/token/query`.

Every answer about a token is HTTP 200 with a code in its body. Other statuses mean that the call itself failed: 408 and
413 its body came too slowly or is too large, 503 auth is starting or stopping.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pydantic
from fastapi import FastAPI
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from services.auth import metrics
from services.auth.domain import backoff, signatures, token_queries
from services.auth.domain.backoff import Guard
from services.auth.domain.records import AccessKey
from services.auth.domain.token_checks import TokenCode
from services.auth.domain.token_queries import ApplyQuery, Code, Parameter, Signed, TokenQuery
from services.auth.domain.tokens import Token
from services.auth.domain.view import View
from services.auth.gate import Gate
from services.auth.issuing import TokenIssuer
from services.common import http_server
from services.common.errors import DomainError, InvalidFieldError, NotServingError, UnavailableError
from services.common.parameters import BadParameterError
from services.common.readiness import Readiness

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 128 << 10
"""A form with the largest token or 100 long resources, percent-encoded, fits."""
MAX_FIELDS = 32
BODY_S = 10.0
"""Seconds that a caller has to send a form."""

_FORM = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_TOKEN_CODES = {
    TokenCode.VALID: (Code.OK, "ok"),
    TokenCode.EXPIRED: (Code.EXPIRED, "the token has expired"),
    TokenCode.REVOKED: (Code.REVOKED, "the token was revoked"),
}
_WRONG_SIGNATURE = "the signature is wrong"
_FORGED = (Code.FORGED, "the token is forged, or not one of this AccessKey")

Answer = tuple[Code, str, str | None]


class TokenApi:
    """Answers application servers; holds no state.

    Args:
        view: what exists and what was revoked.
        guard: makes guessing slow.
        gate: whether calls may be answered.
    """

    def __init__(self, *, view: View, guard: Guard, gate: Gate) -> None:
        self._view = view
        self._guard = guard
        self._gate = gate
        self.issuer: TokenIssuer | None = None
        """Set before the gate opens: it needs NATS, which connects after the server has started."""

    async def apply(self, request: Request) -> Response:
        """Answer `/token/apply`."""
        return await self._respond(request, self._apply)

    async def revoke(self, request: Request) -> Response:
        """Answer `/token/revoke`."""
        return await self._respond(request, self._revoke)

    async def query(self, request: Request) -> Response:
        """Answer `/token/query`."""
        return await self._respond(request, self._query)

    async def _respond(
        self, request: Request, work: Callable[[TokenIssuer, list[tuple[str, str]]], Awaitable[Answer]]
    ) -> Response:
        try:
            self._gate.check()
        except NotServingError as error:
            raise HTTPException(503, str(error)) from error
        if self.issuer is None:
            raise AssertionError("the gate opened before there was an issuer")
        try:
            parameters = await _parameters(request)
            who = _caller(request, parameters)
            # What is not checked is answered like a wrong signature.
            code, message, token = Code.BAD_SIGNATURE, _WRONG_SIGNATURE, None
            if self._guard.admits(who, time.monotonic()):
                code, message, token = await work(self.issuer, parameters)
                self._note(who, code)
        except BadParameterError as error:
            code, message, token = Code.BAD_PARAMETER, str(error), None
        metrics.TOKEN_CALLS.labels(request.url.path, int(code)).inc()
        return JSONResponse(token_queries.answer(code, message, token), headers={"Cache-Control": "no-store"})

    def _note(self, who: backoff.Attempt, code: Code) -> None:
        if code is Code.BAD_SIGNATURE:
            if self._guard.failed(who, time.monotonic()):
                logger.warning("too many failures: waiting", extra={"address": who.address})
        elif code is not Code.BAD_PARAMETER:
            self._guard.succeeded(who)

    async def _apply(self, issuer: TokenIssuer, parameters: list[tuple[str, str]]) -> Answer:
        asked = token_queries.parse_apply(parameters)
        if not self._is_signed(asked):
            return Code.BAD_SIGNATURE, _WRONG_SIGNATURE, None
        try:
            text, _ = issuer.apply(
                instance_id=asked.instance_id,
                access_key_id=asked.signed.access_key_id,
                actions=asked.actions,
                resources=asked.resources,
                expire_time_ms=asked.expire_time_ms,
            )
        except InvalidFieldError as error:
            return Code.BAD_PARAMETER, str(error).replace("expire_time_ms", "expireTime"), None
        except DomainError as error:
            return Code.NOT_ISSUED, str(error), None
        return Code.OK, "ok", text

    async def _revoke(self, issuer: TokenIssuer, parameters: list[tuple[str, str]]) -> Answer:
        asked = token_queries.parse_existing(parameters)
        code, message, token = self._examine(issuer, asked)
        if token is not None and code is Code.OK:
            try:
                await issuer.revoke([asked.token])
            except UnavailableError:
                return Code.NOT_REVOKED, "the token can't be revoked now: retry", None
        return code, message, None

    async def _query(self, issuer: TokenIssuer, parameters: list[tuple[str, str]]) -> Answer:
        code, message, _ = self._examine(issuer, token_queries.parse_existing(parameters))
        return code, message, None

    def _is_signed(self, asked: ApplyQuery) -> bool:
        key, _ = signatures.signer(
            asked.instance_id,
            asked.signed.access_key_id,
            asked.signed.signed_text,
            asked.signed.signature.encode(errors="replace"),
            self._view.resources,
        )
        return key is not None

    def _signers(self, signed: Signed) -> list[AccessKey]:
        given = signed.signature.encode(errors="replace")
        return signatures.signers(signed.access_key_id, signed.signed_text, given, self._view.resources)

    def _examine(self, issuer: TokenIssuer, asked: TokenQuery) -> tuple[Code, str, Token | None]:
        keys = self._signers(asked.signed)
        if not keys:
            return Code.BAD_SIGNATURE, _WRONG_SIGNATURE, None
        worth, token = issuer.examine(asked.token)
        owners = {(key.instance_id, key.access_key_id) for key in keys}
        if token is None or (token.instance_id, token.access_key_id) not in owners:
            return *_FORGED, None
        return *_TOKEN_CODES.get(worth, _FORGED), token


def _caller(request: Request, parameters: list[tuple[str, str]]) -> backoff.Attempt:
    key = next((value for name, value in parameters if name == "accessKey"), "")
    # Not the path: who may apply for tokens may ask about them.
    return backoff.Attempt(backoff.host_of(http_server.peer(request)), key, "token API")


async def _parameters(request: Request) -> list[tuple[str, str]]:
    """Return the parameters of the query string, or of the form.

    Raises:
        BadParameterError: they can't be read.
        HTTPException: the body is too large or comes too slowly.
    """
    if request.method == "GET":
        return request.query_params.multi_items()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {_FORM, _MULTIPART}:
        raise BadParameterError(f"the body must be {_FORM} or {_MULTIPART}")
    try:
        async with asyncio.timeout(BODY_S):
            body = await _body(request)
    except TimeoutError as error:
        raise HTTPException(408, "the body came too slowly") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the caller is gone") from error
    if kind == _MULTIPART:
        return await _multipart(request, body)
    try:
        return urllib.parse.parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise BadParameterError("the form can't be read") from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body must have at most {MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _multipart(request: Request, body: bytes) -> list[tuple[str, str]]:
    # Other charsets of Python may take seconds for what fits here, or decode to what is no text.
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in {b"utf-8", b"utf8"}:
        raise BadParameterError("the form must be in UTF-8")

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, chunks(), max_files=0, max_fields=MAX_FIELDS, max_part_size=MAX_BODY_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        raise BadParameterError("the form can't be read") from error
    fields = form.multi_items()
    return [(name, value) for name, value in fields if not isinstance(value, UploadFile)]


class TokenAnswer(pydantic.BaseModel):
    """Body of every answer."""

    success: bool = pydantic.Field(description="Whether `code` is 200.")
    message: str = pydantic.Field(description="For people.")
    code: int = pydantic.Field(
        description="200 ok; 1 token forged, 2 expired, 3 revoked; 400 bad parameter, 407 bad signature, "
        "409 could not issue, 410 could not revoke."
    )
    tokenData: str | None = pydantic.Field(  # noqa: N815 - the name on the wire
        default=None, description="The token; only from apply."
    )


def application(api: TokenApi, readiness: Readiness) -> FastAPI:
    """Return the HTTP application of auth: the token API with its OpenAPI document, health and metrics."""
    app = FastAPI(
        title="weimq tokens",
        description="Application servers apply for the tokens of their devices. String to sign: `key=value` of the "
        "signed parameters, raw, sorted by key, joined by `&`; several values of a key sorted and joined by `,`. "
        "Signature: Base64 of HMAC-SHA1 of it with the secret of the AccessKey.",
        version=importlib.metadata.version("weimq"),
        redoc_url=None,
    )
    for path, endpoint, parameters, summary in (
        (
            "/token/apply",
            api.apply,
            token_queries.APPLY,
            "Apply for a token. Signed: actions, expireTime, instanceId, resources, serviceName.",
        ),
        ("/token/revoke", api.revoke, token_queries.EXISTING, "Revoke a token. Signed: token."),
        ("/token/query", api.query, token_queries.EXISTING, "Ask whether a token is valid. Signed: token."),
    ):
        for method, described in (("GET", _in_query(parameters)), ("POST", _in_body(parameters))):
            app.add_api_route(
                path,
                endpoint,
                methods=[method],
                summary=summary,
                response_model=TokenAnswer,
                operation_id=f"{method.lower()}_{path.rpartition('/')[2]}",
                openapi_extra=described,
            )
    app.router.routes.extend(http_server.health_routes(readiness))
    return app


def _in_query(parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    described = [
        {
            "name": parameter.name,
            "in": "query",
            "required": True,
            "description": parameter.text,
            "example": parameter.example,
            "schema": _schema(parameter),
        }
        for parameter in parameters
    ]
    return {"parameters": described}


def _in_body(parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": [parameter.name for parameter in parameters],
        "properties": {
            parameter.name: {**_schema(parameter), "description": parameter.text, "example": parameter.example}
            for parameter in parameters
        },
    }
    return {"requestBody": {"required": True, "content": {_FORM: {"schema": schema}, _MULTIPART: {"schema": schema}}}}


def _schema(parameter: Parameter) -> dict[str, Any]:
    return {"type": "string", "maxLength": parameter.max_characters}
