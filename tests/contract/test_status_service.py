"""Status over HTTP and gRPC: every row of product.md section 4, with a real auth and a fake session service."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from grpc import StatusCode, aio
from typing_extensions import override

from services.common import errors, grpc_client, grpc_errors, grpc_server
from services.common.errors import NotFoundError
from services.common.readiness import Readiness
from services.common.settings import Secret
from services.common.sharding import shard_of
from services.common.signature import sign, string_to_sign
from services.status import adapters, app
from services.status.settings import StatusSettings
from tests.support.auth import TOKEN, AuthService, health_is, running_auth
from tests.support.nats import running_server, unique
from weimq.session.v1 import session_pb2, session_pb2_grpc
from weimq.status.v1 import status_pb2, status_pb2_grpc

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

PATH = "/route/clientId/get"
NOWHERE = "127.0.0.1:1"
"""Nobody listens on port 1."""

Context = aio.ServicerContext[Any, Any]


class FakeSession(session_pb2_grpc.SessionServiceServicer):
    """Knows the connections that a test gives it."""

    def __init__(self) -> None:
        self.connections: dict[tuple[str, str], list[session_pb2.Connection]] = {}
        self.synchronized = True
        self.silent = False

    async def _connections(
        self, request: session_pb2.GetClientRequest | session_pb2.CloseConnectionsRequest
    ) -> list[session_pb2.Connection]:
        if self.silent:
            await asyncio.Event().wait()
        return self.connections.get((request.instance_id, request.client_id), [])

    @override
    async def GetClient(self, request: session_pb2.GetClientRequest, context: Context) -> session_pb2.GetClientResponse:
        return session_pb2.GetClientResponse(
            connections=await self._connections(request), synchronized=self.synchronized
        )

    @override
    async def CloseConnections(
        self, request: session_pb2.CloseConnectionsRequest, context: Context
    ) -> session_pb2.CloseConnectionsResponse:
        connections = await self._connections(request)
        if not connections:
            raise NotFoundError("no connection", resource=f"client/{request.client_id}")
        return session_pb2.CloseConnectionsResponse(connection_count=len(connections))

    @override
    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        raise NotImplementedError

    @override
    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        raise NotImplementedError

    @override
    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Context
    ) -> session_pb2.DeleteSessionResponse:
        raise NotImplementedError

    @override
    async def Link(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # not called
        raise NotImplementedError


def connection(number: int, client_id: str) -> session_pb2.Connection:
    return session_pb2.Connection(
        channel_id=f"{number:032x}",
        instance_id="any",
        client_id=client_id,
        address=f"192.0.2.1:{number}",
        connect_time_ms=1_000 + number,
        edge_id="edge-1",
    )


@contextlib.asynccontextmanager
async def running_session(session: FakeSession) -> AsyncGenerator[str]:
    def register(server: aio.Server) -> list[str]:
        session_pb2_grpc.add_SessionServiceServicer_to_server(session, server)
        return ["weimq.session.v1.SessionService"]

    async with grpc_server.serving(
        listen=["127.0.0.1:0"], token=TOKEN, readiness=Readiness(), register=register, drain_s=0
    ) as ports:
        yield f"127.0.0.1:{ports[0]}"


class Status:
    """A running status service, an account with a key and a group, and callers."""

    def __init__(self, http: httpx.AsyncClient, stub: status_pb2_grpc.StatusServiceStub, address: str) -> None:
        self.http = http
        self.stub = stub
        self.address = address
        self.instance_id = ""
        self.access_key_id = ""
        self.secret = ""

    def parameters(self, client_id: str = "GID_mine@@@1", **changes: str) -> dict[str, str]:
        """Return the parameters of a good query with changes, signed."""
        fields = {
            "accessKey": self.access_key_id,
            "resource": client_id,
            "timestamp": str(time.time_ns() // 1_000_000),
            "instanceId": self.instance_id,
        } | changes
        return fields | {"signature": sign(self.secret, string_to_sign(fields))}

    async def get(self, parameters: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Send a query; returns HTTP status and body."""
        answer = await self.http.get(PATH, params=parameters)
        assert answer.headers["content-type"] == "application/json"
        body: dict[str, Any] = answer.json()
        return answer.status_code, body


@contextlib.asynccontextmanager
async def running_status(*, auth: str, session: str | tuple[str, ...]) -> AsyncGenerator[Status]:
    settings = StatusSettings(
        cluster_token=TOKEN,
        drain_s=1,
        grpc_listen=("127.0.0.1:0",),
        http_listen="127.0.0.1:0",
        auth=auth,
        session=(session,) if isinstance(session, str) else session,
    )
    async with app.running(settings) as ports:
        address = f"127.0.0.1:{ports.grpc[0]}"
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.http}", timeout=20) as http,
            grpc_client.channel(address, TOKEN) as channel,
        ):
            yield Status(http, status_pb2_grpc.StatusServiceStub(channel), address)


@pytest.fixture(scope="module")
def nats_of_module() -> Iterator[str]:
    """Give this module its own server: the bucket of resources has one name only."""
    with running_server() as server:
        yield server.url


@pytest_asyncio.fixture
async def auth(nats_of_module: str) -> AsyncGenerator[AuthService]:
    async with running_auth(nats_of_module) as running:
        yield running


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest_asyncio.fixture
async def session_address(session: FakeSession) -> AsyncGenerator[str]:
    async with running_session(session) as address:
        yield address


@pytest_asyncio.fixture
async def status(auth: AuthService, session_address: str) -> AsyncGenerator[Status]:
    async with running_status(auth=auth.address, session=session_address) as running:
        running.instance_id = unique("inst-")
        await auth.create_instance(running.instance_id)
        await auth.create_group(running.instance_id, "GID_mine", "mine")
        await auth.create_group(running.instance_id, "GID_yours", "yours")
        running.access_key_id, running.secret = await auth.create_key(running.instance_id, "mine")
        yield running


# HTTP 200


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_online_is_the_number_of_connections(status: Status, session: FakeSession, count: int) -> None:
    client_id = "GID_mine@@@1"
    session.connections[status.instance_id, client_id] = [connection(n, client_id) for n in range(count)]
    assert await status.get(status.parameters(client_id)) == (
        200,
        {"code": 0, "success": True, "online": count, "message": "ok"},
    )


async def test_the_body_has_these_keys_in_this_order_and_of_these_types(status: Status) -> None:
    answer = await status.http.get(PATH, params=status.parameters())
    assert answer.text == '{"code":0,"success":true,"online":0,"message":"ok"}'


async def test_unknown_is_minus_one_while_session_is_not_in_sync(status: Status, session: FakeSession) -> None:
    session.synchronized = False
    session.connections[status.instance_id, "GID_mine@@@1"] = [connection(1, "GID_mine@@@1")]
    assert await status.get(status.parameters()) == (
        200,
        {"code": 0, "success": True, "online": -1, "message": "state is not in sync yet: retry"},
    )


async def test_unknown_is_minus_one_when_session_does_not_answer(
    status: Status, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "TIMEOUT_S", 0.2)
    session.silent = True
    assert await status.get(status.parameters()) == (
        200,
        {"code": 0, "success": True, "online": -1, "message": "state is not known now: retry"},
    )


async def test_unknown_is_minus_one_when_session_is_away(auth: AuthService, status: Status) -> None:
    async with running_status(auth=auth.address, session=NOWHERE) as other:
        code, body = await other.get(status.parameters())
        assert (code, body["code"], body["success"], body["online"]) == (200, 0, True, -1)


async def test_the_shard_of_the_client_is_asked(auth: AuthService, status: Status, session: FakeSession) -> None:
    others = [FakeSession(), FakeSession()]
    shards = [session, *others]
    async with contextlib.AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(running_session(shard)) for shard in shards]
        other = await stack.enter_async_context(running_status(auth=auth.address, session=tuple(addresses)))
        other.instance_id, other.access_key_id, other.secret = status.instance_id, status.access_key_id, status.secret
        for n in range(40):  # enough that every shard has one
            client_id = f"GID_mine@@@{n}"
            shard = shards[shard_of(status.instance_id, client_id, len(shards))]
            shard.connections[status.instance_id, client_id] = [connection(1, client_id)]
            assert (await other.get(other.parameters(client_id)))[1]["online"] == 1
    assert all(shard.connections for shard in shards)


async def test_a_client_id_with_signs_that_need_escaping(status: Status, session: FakeSession) -> None:
    client_id = "GID_mine@@@a&b=c d%2F设备"
    session.connections[status.instance_id, client_id] = [connection(1, client_id)]
    code, body = await status.get(status.parameters(client_id))
    assert (code, body["online"]) == (200, 1)


async def test_a_signature_whose_plus_was_not_escaped(status: Status) -> None:
    parameters = status.parameters()
    for second in range(1_000):
        parameters = status.parameters(timestamp=str(time.time_ns() // 1_000_000 - second))
        if "+" in parameters["signature"]:
            break
    assert "+" in parameters["signature"]
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    assert (await status.http.get(f"{PATH}?{query}")).json()["code"] == 0


# HTTP 400


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("accessKey", None, "parameter accessKey is missing"),
        ("resource", None, "parameter resource is missing"),
        ("timestamp", None, "parameter timestamp is missing"),
        ("instanceId", None, "parameter instanceId is missing"),
        ("signature", None, "parameter signature is missing"),
        ("accessKey", "", "parameter accessKey is missing"),
        ("timestamp", "now", "parameter timestamp must be milliseconds since 1970"),
        ("accessKey", "x" * 65, "parameter accessKey is too long"),
        ("resource", "x" * 4_097, "parameter resource is too long"),
    ],
    ids=str,
)
async def test_a_missing_or_bad_parameter(status: Status, name: str, value: str | None, message: str) -> None:
    parameters = status.parameters()
    del parameters[name]
    if value is not None:
        parameters[name] = value
    assert await status.get(parameters) == (400, {"code": 1, "success": False, "online": -1, "message": message})


async def test_a_parameter_given_twice(status: Status) -> None:
    answer = await status.http.get(PATH, params=[*status.parameters().items(), ("resource", "GID_mine@@@2")])
    assert answer.status_code == 400
    assert answer.json() == {
        "code": 1,
        "success": False,
        "online": -1,
        "message": "parameter resource is given twice",
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/route/clientId"),
        ("GET", "/route/clientId/get/"),
        ("GET", "/route/clientid/get"),
        ("GET", "/favicon.ico"),
        ("POST", PATH),
        ("PUT", PATH),
        ("DELETE", PATH),
        ("OPTIONS", PATH),
        ("POST", "/nowhere"),
    ],
)
async def test_a_wrong_url_or_method(status: Status, method: str, path: str) -> None:
    answer = await status.http.request(method, path, params=status.parameters())
    assert answer.status_code == 400
    assert answer.json() == {
        "code": 1,
        "success": False,
        "online": -1,
        "message": "wrong URL or method: it is GET /route/clientId/get",
    }


async def test_head_is_a_wrong_method(status: Status) -> None:
    answer = await status.http.head(PATH, params=status.parameters())
    assert (answer.status_code, answer.text) == (400, "")


# HTTP 403

BAD_SIGNATURE = (403, {"code": 2, "success": False, "online": -1, "message": "signature wrong"})


@pytest.mark.parametrize("name", ["accessKey", "resource", "timestamp", "instanceId"])
async def test_every_parameter_is_signed(status: Status, name: str) -> None:
    parameters = status.parameters()
    parameters[name] = parameters[name][:-1] + ("1" if parameters[name][-1] != "1" else "2")
    assert await status.get(parameters) == BAD_SIGNATURE


@pytest.mark.parametrize("signature", ["x", "ALOU2dqDzIiEoCeadsMbmxR16nI=", "设备"])
async def test_a_wrong_signature(status: Status, signature: str) -> None:
    assert await status.get(status.parameters() | {"signature": signature}) == BAD_SIGNATURE


@pytest.mark.parametrize("changes", [{"accessKey": "AKunknown"}, {"instanceId": "nowhere"}])
async def test_an_unknown_key_or_instance_is_told_like_a_wrong_signature(
    status: Status, changes: dict[str, str]
) -> None:
    assert await status.get(status.parameters(**changes)) == BAD_SIGNATURE


@pytest.mark.parametrize("client_id", ["GID_yours@@@1", "GID_none@@@1", "device"])
async def test_a_group_that_the_account_did_not_create(status: Status, client_id: str) -> None:
    assert await status.get(status.parameters(client_id)) == (
        403,
        {
            "code": 3,
            "success": False,
            "online": -1,
            "message": "the account did not create the group of the client",
        },
    )


TIMESTAMP_OFF = (403, {"code": 4, "success": False, "online": -1, "message": "timestamp more than 5 minutes off"})


@pytest.mark.parametrize("off_s", [-310, 310, -1_800_000_000])
async def test_a_timestamp_that_is_off(status: Status, off_s: int) -> None:
    timestamp = str(time.time_ns() // 1_000_000 + off_s * 1_000)
    assert await status.get(status.parameters(timestamp=timestamp)) == TIMESTAMP_OFF


@pytest.mark.parametrize("off_s", [-290, 290])
async def test_a_timestamp_that_is_near_enough(status: Status, off_s: int) -> None:
    timestamp = str(time.time_ns() // 1_000_000 + off_s * 1_000)
    assert (await status.get(status.parameters(timestamp=timestamp)))[0] == 200


async def test_the_order_of_the_checks(status: Status) -> None:
    everything_wrong = status.parameters("GID_yours@@@1", timestamp="1") | {"signature": "x"}
    no_number = everything_wrong | {"timestamp": "x"}
    assert (await status.get(no_number))[1]["code"] == 1
    assert (await status.get(everything_wrong))[1]["code"] == 2
    assert (await status.get(status.parameters("GID_yours@@@1", timestamp="1")))[1]["code"] == 4
    assert (await status.get(status.parameters("GID_yours@@@1")))[1]["code"] == 3


# HTTP 503


async def test_without_auth_nothing_is_answered(status: Status, session_address: str) -> None:
    async with running_status(auth=NOWHERE, session=session_address) as other:
        assert await other.get(status.parameters()) == (
            503,
            {"code": 5, "success": False, "online": -1, "message": "the signature can't be checked now: retry"},
        )


# gRPC


@contextlib.contextmanager
def refused(code: StatusCode, error_type: type[errors.DomainError]) -> Generator[None]:
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    assert type(grpc_errors.from_rpc_error(caught.value)) is error_type


async def test_get_client(status: Status, session: FakeSession) -> None:
    session.connections["one", "c"] = [connection(1, "c"), connection(2, "c")]
    request = status_pb2.GetClientRequest(instance_id="one", client_id="c")
    assert await status.stub.GetClient(request) == status_pb2.GetClientResponse(
        online=2,
        connections=[
            status_pb2.ClientConnection(
                channel_id=f"{n:032x}", address=f"192.0.2.1:{n}", connect_time_ms=1_000 + n, edge_id="edge-1"
            )
            for n in (1, 2)
        ],
    )
    session.synchronized = False
    assert (await status.stub.GetClient(request)).online == -1


async def test_close_connections(status: Status, session: FakeSession) -> None:
    session.connections["one", "c"] = [connection(1, "c"), connection(2, "c")]
    request = status_pb2.CloseConnectionsRequest(instance_id="one", client_id="c")
    assert (await status.stub.CloseConnections(request)).connection_count == 2
    with refused(StatusCode.NOT_FOUND, errors.NotFoundError):
        await status.stub.CloseConnections(status_pb2.CloseConnectionsRequest(instance_id="one", client_id="none"))


@pytest.mark.parametrize(("instance_id", "client_id"), [("", "c"), ("one", ""), ("", "")])
async def test_names_must_not_be_empty(status: Status, instance_id: str, client_id: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError):
        await status.stub.GetClient(status_pb2.GetClientRequest(instance_id=instance_id, client_id=client_id))
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError):
        await status.stub.CloseConnections(
            status_pb2.CloseConnectionsRequest(instance_id=instance_id, client_id=client_id)
        )


async def test_a_session_service_that_does_not_answer_is_unavailable(
    status: Status, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "TIMEOUT_S", 0.2)
    session.silent = True
    with refused(StatusCode.UNAVAILABLE, errors.UnavailableError):
        await status.stub.GetClient(status_pb2.GetClientRequest(instance_id="one", client_id="c"))
    with refused(StatusCode.UNAVAILABLE, errors.UnavailableError):
        await status.stub.CloseConnections(status_pb2.CloseConnectionsRequest(instance_id="one", client_id="c"))


async def test_calls_need_the_cluster_token(status: Status) -> None:
    async with grpc_client.channel(status.address, Secret("not-the-cluster-token")) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.GetClient(status_pb2.GetClientRequest(instance_id="one", client_id="c"))
        assert caught.value.code() is StatusCode.UNAUTHENTICATED


# Health


async def test_health_follows_auth_and_session(auth: AuthService) -> None:
    stack = contextlib.AsyncExitStack()
    address = await stack.enter_async_context(running_session(FakeSession()))
    async with running_status(auth=auth.address, session=address) as status:
        await health_is(status.address, serving=True)
        assert (await status.http.get("/readyz")).json() == {"ready": True, "missing": []}
        await stack.aclose()
        await health_is(status.address, serving=False)
        answer = await status.http.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "missing": ["session"]})
        assert (await status.http.get("/healthz")).status_code == 200
        assert "weimq_status_queries" in (await status.http.get("/metrics")).text
