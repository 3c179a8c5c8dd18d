"""The online query over HTTP: `GET /route/clientId/get`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from services.common.errors import UnavailableError
from services.common.http_server import health_routes, peer
from services.common.parameters import BadParameterError
from services.common.readiness import Readiness
from services.status import metrics, query
from services.status.adapters import Auth, Permission, Sessions
from services.status.query import Answer, Code

logger = logging.getLogger(__name__)

PATH = "/route/clientId/get"

_WRONG_URL = Answer(400, Code.BAD_PARAMETER, f"wrong URL or method: it is GET {PATH}")
_FAILED = Answer(500, Code.UNAVAILABLE, "the service failed: retry")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class OnlineQuery:
    """Answers queries; holds no state.

    Args:
        auth: checks signatures.
        sessions: knows who is online.
        now_ms: the clock, milliseconds since 1970.
    """

    def __init__(self, *, auth: Auth, sessions: Sessions, now_ms: Callable[[], int] = _now_ms) -> None:
        self._auth = auth
        self._sessions = sessions
        self._now_ms = now_ms

    async def handle(self, request: Request) -> Response:
        """Answer one HTTP request."""
        if request.method != "GET":  # Starlette adds HEAD to GET
            return _response(_WRONG_URL)
        return _response(await self._answer(request))

    async def _answer(self, request: Request) -> Answer:
        try:
            asked = query.parse(request.query_params.multi_items())
        except BadParameterError as error:
            return Answer(400, Code.BAD_PARAMETER, str(error))
        try:
            permission = await self._auth.authorize(
                instance_id=asked.instance_id,
                access_key_id=asked.access_key_id,
                client_id=asked.client_id,
                signed_text=asked.signed_text,
                signature=asked.signature,
                address=peer(request),
            )
        except UnavailableError:
            return Answer(503, Code.UNAVAILABLE, "the signature can't be checked now: retry")
        if permission is Permission.BAD_SIGNATURE:
            return Answer(403, Code.BAD_SIGNATURE, "signature wrong")
        if not asked.is_fresh(self._now_ms()):
            return Answer(403, Code.TIMESTAMP_OFF, "timestamp more than 5 minutes off")
        if permission is not Permission.ALLOWED:
            return Answer(403, Code.GROUP_NOT_OWNED, "the account did not create the group of the client")
        return await self._online(asked)

    async def _online(self, asked: query.Query) -> Answer:
        try:
            client = await self._sessions.client(asked.instance_id, asked.client_id)
        except UnavailableError:
            return Answer(200, Code.OK, "state is not known now: retry")
        if not client.synchronized:
            return Answer(200, Code.OK, "state is not in sync yet: retry")
        return Answer(200, Code.OK, "ok", len(client.connections))


def application(online_query: OnlineQuery, api: ASGIApp, readiness: Readiness) -> Starlette:
    """Return the HTTP application of status, with `api` under `/v1`."""
    app = Starlette(
        routes=[Route(PATH, online_query.handle), Mount("/v1", api), *health_routes(readiness)],
        exception_handlers={HTTPException: _on_wrong_url, Exception: _on_failure},
    )
    app.router.redirect_slashes = False  # another path is a wrong URL, also when a slash makes the difference
    return app


async def _on_wrong_url(_request: Request, _error: Exception) -> Response:
    return _response(_WRONG_URL)


async def _on_failure(_request: Request, _error: Exception) -> Response:
    return _response(_FAILED)


def _response(answer: Answer) -> Response:
    metrics.QUERIES.labels(answer.http_status, int(answer.code)).inc()
    return JSONResponse(answer.body(), answer.http_status, headers={"Cache-Control": "no-store"})
