"""JSON over HTTP: the queries of `StatusService` for application servers, under `/v1`, with OpenAPI pages.

A call is signed like the online query (product.md section 2.3) with every parameter but `signature`, one of which is
`action`, the last part of the path, so that a signature opens no other call; or it carries the cluster token as a
bearer token. Answers have the fields of the gRPC responses in lowerCamelCase.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from google.protobuf.message import Message
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from services.common import signature
from services.common.errors import DomainError, InvalidFieldError, LimitReachedError, NotFoundError
from services.common.http_server import peer
from services.common.parameters import given_signature
from services.common.settings import Secret
from services.status import metrics, presence_stream
from services.status.adapters import Auth, Permission
from services.status.presence_stream import PresenceStream
from services.status.queries import DEFAULT_PAGE, MAX_PAGE, Queries
from services.status.query import WINDOW_MS
from weimq.status.v1 import status_pb2

logger = logging.getLogger(__name__)

MAX_SIGNED_CHARACTERS = 65_536
"""Longest text that a caller may have signed; a batch of client ids is the longest."""
_BEARER = "Bearer "
_GROUP_SEPARATOR = "@@@"


class Subscription(BaseModel):
    """A topic filter with its granted QoS."""

    topicFilter: str  # noqa: N815 - as on the wire
    qos: int


class Connection(BaseModel):
    """One connection of a client."""

    channelId: str  # noqa: N815
    address: str
    connectTimeMs: int  # noqa: N815
    edgeId: str  # noqa: N815
    subscriptions: list[Subscription]


class Session(BaseModel):
    """What is kept for a client."""

    persistent: bool
    subscriptions: list[Subscription]
    offlineMessageCount: int  # noqa: N815
    inflightMessageCount: int  # noqa: N815
    disconnectTimeMs: int  # noqa: N815


class Client(BaseModel):
    """A client in full; `online` is -1 while the state is not in sync."""

    online: int
    connections: list[Connection]
    session: Session | None


class ClientStatus(BaseModel):
    """Whether a client is online."""

    clientId: str  # noqa: N815
    online: int
    connections: list[Connection]


class Clients(BaseModel):
    """Clients in request order."""

    clients: list[ClientStatus]


class Group(BaseModel):
    """A page of the clients of a group that are online; `onlineCount` is of all pages."""

    clients: list[ClientStatus]
    onlineCount: int  # noqa: N815
    nextPageToken: str  # noqa: N815


class Change(BaseModel):
    """A connection of a client that came or went."""

    clientId: str  # noqa: N815
    connection: Connection
    connected: bool
    timeMs: int  # noqa: N815


class Presence(BaseModel):
    """One line of the presence of a group."""

    changes: list[Change]
    snapshotComplete: bool  # noqa: N815


class Subscriber(BaseModel):
    """A client with a matching subscription."""

    clientId: str  # noqa: N815
    edgeId: str  # noqa: N815
    subscriptions: list[Subscription]


class Subscribers(BaseModel):
    """A page of subscribers."""

    subscribers: list[Subscriber]
    nextPageToken: str  # noqa: N815


class Closed(BaseModel):
    """How many connections are being closed."""

    connectionCount: int  # noqa: N815


class Fault(BaseModel):
    """Why a call did not do its work."""

    message: str


class _RefusedError(Exception):
    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Gate:
    """Lets callers in.

    Args:
        auth: checks signatures.
        token: the cluster token.
        now_ms: the clock, milliseconds since 1970.
    """

    def __init__(self, *, auth: Auth, token: Secret, now_ms: Callable[[], int] = _now_ms) -> None:
        self._auth = auth
        self._token = token
        self._now_ms = now_ms

    async def check(
        self, request: Request, instance_id: str, *, client_id: str = "", group_id: str = "", topic: str = ""
    ) -> None:
        """Let a call pass that may be made.

        Raises:
            _RefusedError: it may not.
            UnavailableError: auth does not answer.
        """
        given = request.headers.get("authorization", "")
        if given:
            if not given.startswith(_BEARER) or not hmac.compare_digest(
                given.removeprefix(_BEARER).encode(), self._token.reveal().encode()
            ):
                raise _RefusedError(401, "the bearer token is not the cluster token")
            return
        values: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            values.setdefault(name, []).append(value)
        text = signature.string_to_sign({name: given for name, given in values.items() if name != "signature"})
        if len(text) > MAX_SIGNED_CHARACTERS:
            raise _RefusedError(400, "the parameters are too long")
        if _one(values, "action") != request.url.path.rpartition("/")[2]:
            raise _RefusedError(400, "action must be the last part of the path")
        permission = await self._auth.authorize(
            instance_id=instance_id,
            access_key_id=_one(values, "accessKey"),
            client_id=client_id,
            group_id=group_id,
            topic=topic,
            signed_text=text,
            signature=given_signature(_one(values, "signature")),
            address=peer(request),
        )
        if permission is Permission.BAD_SIGNATURE:
            raise _RefusedError(403, "signature wrong")
        timestamp = _one(values, "timestamp")
        if not timestamp.isdecimal() or abs(self._now_ms() - int(timestamp[:20])) > WINDOW_MS:
            raise _RefusedError(403, "timestamp more than 5 minutes off")
        if permission is not Permission.ALLOWED:
            raise _RefusedError(403, "the account did not create the group or parent topic")


def _one(values: dict[str, list[str]], name: str) -> str:
    given = values.get(name, [])
    if len(given) != 1 or not given[0]:
        raise _RefusedError(400, f"parameter {name} must be given once")
    return given[0]


_Instance = Annotated[str, Query(alias="instanceId", min_length=1, max_length=64)]
_ClientId = Annotated[str, Query(alias="clientId", min_length=1, max_length=4_096)]
_PageSize = Annotated[int, Query(alias="pageSize", ge=1, le=MAX_PAGE)]
_PageToken = Annotated[str, Query(alias="pageToken", max_length=65_535)]


async def _credentials(
    _token: Annotated[
        HTTPAuthorizationCredentials | None,
        Security(HTTPBearer(auto_error=False, description="The cluster token; else the call is signed.")),
    ] = None,
    action: Annotated[str | None, Query(description="Signed calls: the last part of the path.")] = None,
    accessKey: Annotated[str | None, Query(description="Signed calls: who signs.")] = None,  # noqa: N803 - on the wire
    timestamp: Annotated[str | None, Query(description="Signed calls: now, in milliseconds since 1970.")] = None,
    signature: Annotated[  # shadows nothing that is used here
        str | None,
        Query(description="Signed calls: Base64(HMAC-SHA1(secret, all other parameters as `name=value`, by `&`))."),
    ] = None,
) -> None:
    """Show in the OpenAPI pages what `Gate` asks for."""


def application(queries: Queries, gate: Gate) -> FastAPI:
    """Return the application to be mounted under `/v1`."""
    app = FastAPI(
        title="weimq status",
        version="1",
        summary="Questions about clients.",
        description=__doc__,
        responses={code: {"model": Fault} for code in (400, 401, 403, 404, 429, 503)},
        dependencies=[Depends(_credentials)],
    )

    @app.get("/getClient", response_model=Client)
    async def get_client(request: Request, instance_id: _Instance, client_id: _ClientId) -> Response:
        """Return all that is known of a client: connections with their subscriptions, and its session."""
        await gate.check(request, instance_id, client_id=client_id)
        return _json(
            await queries.describe_client(
                status_pb2.DescribeClientRequest(instance_id=instance_id, client_id=client_id)
            )
        )

    @app.get("/batchGetClients", response_model=Clients)
    async def batch_get_clients(
        request: Request,
        instance_id: _Instance,
        client_ids: Annotated[list[str], Query(alias="clientId", min_length=1, max_length=MAX_PAGE)],
    ) -> Response:
        """Return whether clients of one group are online, in request order."""
        groups = {client_id.partition(_GROUP_SEPARATOR)[0] for client_id in client_ids}
        if len(groups) > 1:
            raise _RefusedError(400, "the clients must be of one group")
        await gate.check(request, instance_id, client_id=client_ids[0])
        return _json(
            await queries.batch_get_clients(
                status_pb2.BatchGetClientsRequest(instance_id=instance_id, client_ids=client_ids)
            )
        )

    @app.get("/listGroupClients", response_model=Group)
    async def list_group_clients(
        request: Request,
        instance_id: _Instance,
        group_id: Annotated[str, Query(alias="groupId", min_length=1, max_length=64)],
        page_size: _PageSize = DEFAULT_PAGE,
        page_token: _PageToken = "",
    ) -> Response:
        """Return a page of the clients of a group that are online, and how many there are."""
        await gate.check(request, instance_id, group_id=group_id)
        return _json(
            await queries.list_group_clients(
                status_pb2.ListGroupClientsRequest(
                    instance_id=instance_id, group_id=group_id, page_size=page_size, page_token=page_token
                )
            )
        )

    @app.get("/watchGroup", response_model=Presence, responses={200: {"content": {presence_stream.MEDIA_TYPE: {}}}})
    async def watch_group(
        request: Request,
        instance_id: _Instance,
        group_id: Annotated[str, Query(alias="groupId", min_length=1, max_length=64)],
    ) -> Response:
        """Stream who of a group comes and goes, a line of JSON each: first who is online, then `snapshotComplete`.

        Empty lines are signs of life. The stream ends after an hour, or with a line that has `message`: ask again.
        """
        await gate.check(request, instance_id, group_id=group_id)
        wanted = status_pb2.WatchGroupRequest(instance_id=instance_id, group_id=group_id)
        metrics.CALLS.labels(200).inc()
        return PresenceStream(lambda give: queries.watch_group(wanted, give), to_json)

    @app.get("/listSubscribers", response_model=Subscribers)
    async def list_subscribers(
        request: Request,
        instance_id: _Instance,
        topic: Annotated[str, Query(min_length=1, max_length=65_535)],
        page_size: _PageSize = DEFAULT_PAGE,
        page_token: _PageToken = "",
    ) -> Response:
        """Return a page of the clients that are online with a subscription that matches a topic name."""
        await gate.check(request, instance_id, topic=topic)
        return _json(
            await queries.list_subscribers(
                status_pb2.ListSubscribersRequest(
                    instance_id=instance_id, topic=topic, page_size=page_size, page_token=page_token
                )
            )
        )

    @app.post("/closeConnections", response_model=Closed)
    async def close_connections(request: Request, instance_id: _Instance, client_id: _ClientId) -> Response:
        """Close every connection of a client; the parameters are in the query here, too."""
        await gate.check(request, instance_id, client_id=client_id)
        return _json(
            await queries.close_connections(
                status_pb2.CloseConnectionsRequest(instance_id=instance_id, client_id=client_id)
            )
        )

    app.add_exception_handler(_RefusedError, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(DomainError, _on_domain_error)
    return app


def _json(message: Message) -> Response:
    metrics.CALLS.labels(200).inc()
    return JSONResponse(to_json(message), headers={"Cache-Control": "no-store"})


def _fault(http_status: int, message: str) -> Response:
    metrics.CALLS.labels(http_status).inc()
    return JSONResponse({"message": message}, http_status, headers={"Cache-Control": "no-store"})


async def _on_refused(_request: Request, error: Exception) -> Response:
    return _fault(error.http_status if isinstance(error, _RefusedError) else 500, str(error))


async def _on_invalid(_request: Request, error: Exception) -> Response:
    faults: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    return _fault(400, "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in faults))


_HTTP_STATUS = {InvalidFieldError: 400, NotFoundError: 404, LimitReachedError: 429}


async def _on_domain_error(_request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _HTTP_STATUS.items() if isinstance(error, kind)), 503)
    return _fault(status, str(error))


def to_json(message: Message) -> dict[str, Any]:
    """Return all fields of a message in lowerCamelCase; unlike in protobuf's own form, numbers are numbers."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            values[field.json_name] = [to_json(each) if isinstance(each, Message) else each for each in value]
        elif field.message_type is not None:
            values[field.json_name] = to_json(value) if message.HasField(field.name) else None
        else:
            values[field.json_name] = value
    return values
