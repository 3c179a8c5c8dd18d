"""Questions about clients over gRPC and JSON, with a real auth and two fake session shards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from grpc import StatusCode, aio
from typing_extensions import override

from services.common import grpc_client, grpc_server
from services.common.errors import LimitReachedError, NotFoundError
from services.common.readiness import Readiness
from services.common.sharding import shard_of
from services.common.signature import sign, string_to_sign
from services.status import app, presence_stream
from services.status.settings import StatusSettings
from tests.support.auth import TOKEN, AuthService, running_auth
from tests.support.nats import running_server, unique
from weimq.session.v1 import presence_pb2, presence_pb2_grpc, session_pb2, session_pb2_grpc
from weimq.status.v1 import status_pb2, status_pb2_grpc

pytestmark = pytest.mark.asyncio

Context = aio.ServicerContext[Any, Any]
SHARDS = 2


def connection(client_id: str) -> session_pb2.Connection:
    return session_pb2.Connection(
        channel_id="0" * 32, client_id=client_id, address="192.0.2.1:1", connect_time_ms=7, edge_id="edge-1"
    )


def presence(client_id: str) -> presence_pb2.ClientPresence:
    return presence_pb2.ClientPresence(client_id=client_id, connections=[connection(client_id)], synchronized=True)


class Shard(presence_pb2_grpc.PresenceServiceServicer):
    """Knows the clients that a test gives it."""

    def __init__(self) -> None:
        self.clients: list[str] = []
        self.asked: list[str] = []
        self.synchronized = True
        self.has_session = True
        self.fails: Exception | None = None
        self.changes: asyncio.Queue[presence_pb2.PresenceChange | None] = asyncio.Queue()

    @override
    async def BatchGetClients(
        self, request: presence_pb2.BatchGetClientsRequest, context: Context
    ) -> presence_pb2.BatchGetClientsResponse:
        self.asked += request.client_ids
        return presence_pb2.BatchGetClientsResponse(
            clients=[
                presence(client_id)
                if client_id in self.clients
                else presence_pb2.ClientPresence(client_id=client_id, synchronized=self.synchronized)
                for client_id in request.client_ids
            ]
        )

    @override
    async def ListGroupClients(
        self, request: presence_pb2.ListGroupClientsRequest, context: Context
    ) -> presence_pb2.ListGroupClientsResponse:
        after = [c for c in sorted(self.clients) if c > request.after_client_id][: request.page_size]
        return presence_pb2.ListGroupClientsResponse(
            clients=[presence(c) for c in after], online_count=len(self.clients), synchronized=self.synchronized
        )

    @override
    async def WatchGroup(
        self, request: presence_pb2.WatchGroupRequest, context: Context
    ) -> AsyncIterator[presence_pb2.WatchGroupResponse]:
        if self.fails is not None:
            raise self.fails
        changes = [presence_pb2.PresenceChange(connection=connection(c), connected=True) for c in self.clients]
        yield presence_pb2.WatchGroupResponse(changes=changes)
        yield presence_pb2.WatchGroupResponse(snapshot_complete=True)
        while (change := await self.changes.get()) is not None:
            yield presence_pb2.WatchGroupResponse(changes=[change])

    @override
    async def DescribeClient(
        self, request: presence_pb2.DescribeClientRequest, context: Context
    ) -> presence_pb2.DescribeClientResponse:
        described = presence_pb2.ConnectionSubscriptions(
            connection=connection(request.client_id),
            subscriptions=[session_pb2.Subscription(topic_filter="demo/#", qos=1)],
        )
        return presence_pb2.DescribeClientResponse(connections=[described], synchronized=self.synchronized)

    @override
    async def ListSubscribers(
        self, request: presence_pb2.ListSubscribersRequest, context: Context
    ) -> presence_pb2.ListSubscribersResponse:
        found = [c for c in sorted(self.clients) if c > request.after_client_id][: request.page_size]
        return presence_pb2.ListSubscribersResponse(
            subscribers=[
                presence_pb2.Subscriber(
                    client_id=c, edge_id="e", subscriptions=[session_pb2.Subscription(topic_filter="#", qos=2)]
                )
                for c in found
            ]
        )


class Sessions(session_pb2_grpc.SessionServiceServicer):
    """The sessions of a shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    @override
    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        if not self._shard.has_session:
            raise NotFoundError("no session", resource=f"session/{request.client_id}")
        session = session_pb2.Session(
            persistent=True,
            subscriptions=[session_pb2.Subscription(topic_filter="demo/#", qos=1)],
            offline_message_count=3,
        )
        return session_pb2.GetSessionResponse(session=session)

    @override
    async def CloseConnections(
        self, request: session_pb2.CloseConnectionsRequest, context: Context
    ) -> session_pb2.CloseConnectionsResponse:
        return session_pb2.CloseConnectionsResponse(connection_count=1)


class World:
    """A running status service with its shards, an account with a key, a group and a topic."""

    def __init__(self, shards: list[Shard], stub: status_pb2_grpc.StatusServiceStub, http: httpx.AsyncClient) -> None:
        self.shards = shards
        self.stub = stub
        self.http = http
        self.instance_id = ""
        self.access_key_id = ""
        self.secret = ""

    def put(self, *client_ids: str) -> None:
        """Have clients online, each at its shard."""
        for client_id in client_ids:
            self.shards[shard_of(self.instance_id, client_id, SHARDS)].clients.append(client_id)

    async def call(self, action: str, *parameters: tuple[str, str], method: str = "GET", **changes: str) -> Any:
        """Make a signed call; `changes` replace parameters after signing."""
        fields = [
            *parameters,
            ("action", action),
            ("accessKey", self.access_key_id),
            ("timestamp", changes.pop("timestamp", str(time.time_ns() // 1_000_000))),
            ("instanceId", self.instance_id),
        ]
        values: dict[str, list[str]] = {}
        for name, value in fields:
            values.setdefault(name, []).append(value)
        given = dict(fields) | {"signature": sign(self.secret, string_to_sign(values))} | changes
        query: list[tuple[str, Any]] = [
            *parameters,
            *((name, value) for name, value in given.items() if name not in dict(parameters)),
        ]
        return await self.http.request(method, f"/v1/{changes.get('path', action)}", params=query)


async def end_of(call: Any) -> StatusCode:
    """Read a stream to its end and return its status."""
    async with asyncio.timeout(30):
        try:
            async for _ in call:
                pass
        except aio.AioRpcError as error:
            return error.code()
    return StatusCode.OK


@pytest.fixture(scope="module")
def nats_of_module() -> Iterator[str]:
    with running_server() as server:
        yield server.url


@contextlib.asynccontextmanager
async def serving(shard: Shard) -> AsyncGenerator[str]:
    def register(server: aio.Server) -> list[str]:
        presence_pb2_grpc.add_PresenceServiceServicer_to_server(shard, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(Sessions(shard), server)  # type: ignore[abstract]  # the other calls are not made
        return []

    async with grpc_server.serving(
        listen=["127.0.0.1:0"], token=TOKEN, readiness=Readiness(), register=register, drain_s=0
    ) as ports:
        yield f"127.0.0.1:{ports[0]}"


@pytest_asyncio.fixture
async def auth(nats_of_module: str) -> AsyncGenerator[AuthService]:
    async with running_auth(nats_of_module) as running:
        yield running


@pytest_asyncio.fixture
async def world(auth: AuthService) -> AsyncGenerator[World]:
    shards = [Shard() for _ in range(SHARDS)]
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        settings = StatusSettings(
            cluster_token=TOKEN,
            drain_s=1,
            grpc_listen=("127.0.0.1:0",),
            http_listen="127.0.0.1:0",
            auth=auth.address,
            session=tuple([await enter(serving(shard)) for shard in shards]),
        )
        ports = await enter(app.running(settings))
        channel = await enter(grpc_client.channel(f"127.0.0.1:{ports.grpc[0]}", TOKEN))
        http = await enter(httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.http}", timeout=20))
        made = World(shards, status_pb2_grpc.StatusServiceStub(channel), http)
        made.instance_id = unique("mqtt-")
        await auth.create_instance(made.instance_id)
        made.access_key_id, made.secret = await auth.create_key(made.instance_id, "mine")
        await auth.create_group(made.instance_id, "GID_mine", "mine")
        await auth.create_group(made.instance_id, "GID_other", "other")
        await auth.create_topic(made.instance_id, "mine", "mine")
        await auth.create_topic(made.instance_id, "other", "other")
        yield made


async def test_a_client_in_full(world: World) -> None:
    request = status_pb2.DescribeClientRequest(instance_id=world.instance_id, client_id="GID_mine@@@1")
    answer = await world.stub.DescribeClient(request)
    assert answer.online == 1
    [only] = answer.connections
    assert [(s.topic_filter, s.qos) for s in only.subscriptions] == [("demo/#", 1)]
    assert (answer.session.persistent, answer.session.offline_message_count) == (True, 3)
    for shard in world.shards:
        shard.has_session = False
        shard.synchronized = False
    answer = await world.stub.DescribeClient(request)
    assert answer.online == -1
    assert not answer.HasField("session")


async def test_a_batch_is_asked_of_the_right_shards(world: World) -> None:
    ids = [f"GID_mine@@@{n}" for n in range(20)]
    world.put(*ids[::2])
    answer = await world.stub.BatchGetClients(
        status_pb2.BatchGetClientsRequest(instance_id=world.instance_id, client_ids=ids)
    )
    assert [(c.client_id, c.online) for c in answer.clients] == [(c, int(n % 2 == 0)) for n, c in enumerate(ids)]
    for index, shard in enumerate(world.shards):
        assert shard.asked == [c for c in ids if shard_of(world.instance_id, c, SHARDS) == index]


async def test_a_group_over_all_shards(world: World) -> None:
    ids = [f"GID_mine@@@{n:02}" for n in range(25)]
    world.put(*ids)
    request = status_pb2.ListGroupClientsRequest(instance_id=world.instance_id, group_id="GID_mine", page_size=10)
    seen: list[str] = []
    while True:
        page = await world.stub.ListGroupClients(request)
        assert page.online_count == 25
        seen += [client.client_id for client in page.clients]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == ids
    world.shards[1].synchronized = False
    assert (await world.stub.ListGroupClients(request)).online_count == -1


async def test_subscribers(world: World) -> None:
    world.shards[0].clients = [f"GID_mine@@@{n}" for n in range(3)]
    request = status_pb2.ListSubscribersRequest(instance_id=world.instance_id, topic="mine/x", page_size=2)
    page = await world.stub.ListSubscribers(request)
    assert [s.client_id for s in page.subscribers] == ["GID_mine@@@0", "GID_mine@@@1"]
    request.page_token = page.next_page_token
    page = await world.stub.ListSubscribers(request)
    assert [s.client_id for s in page.subscribers] == ["GID_mine@@@2"]
    assert not page.next_page_token


async def test_a_watch_over_all_shards(world: World) -> None:
    world.shards[0].clients = ["GID_mine@@@0"]
    world.shards[1].clients = ["GID_mine@@@1"]
    call = world.stub.WatchGroup(status_pb2.WatchGroupRequest(instance_id=world.instance_id, group_id="GID_mine"))
    seen: list[str] = []
    async with asyncio.timeout(30):
        while True:
            message = await call.read()
            assert isinstance(message, status_pb2.WatchGroupResponse)
            seen += [change.client_id for change in message.changes]
            if message.snapshot_complete:
                break
        assert sorted(seen) == ["GID_mine@@@0", "GID_mine@@@1"]
        gone = presence_pb2.PresenceChange(connection=connection("GID_mine@@@1"), connected=False, time_ms=5)
        world.shards[1].changes.put_nowait(gone)
        message = await call.read()
        assert isinstance(message, status_pb2.WatchGroupResponse)
        assert [(c.client_id, c.connected, c.time_ms) for c in message.changes] == [("GID_mine@@@1", False, 5)]
        world.shards[0].changes.put_nowait(None)  # a shard that ends ends the watch
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is StatusCode.UNAVAILABLE


async def test_a_watch_that_a_shard_refuses(world: World) -> None:
    world.shards[1].fails = LimitReachedError("too many", limit="watches")
    call = world.stub.WatchGroup(status_pb2.WatchGroupRequest(instance_id=world.instance_id, group_id="GID_mine"))
    assert await end_of(call) is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "request_",
    [
        status_pb2.DescribeClientRequest(instance_id="one"),
        status_pb2.BatchGetClientsRequest(instance_id="one"),
        status_pb2.BatchGetClientsRequest(instance_id="one", client_ids=["x"] * 1_001),
        status_pb2.ListGroupClientsRequest(instance_id="one"),
        status_pb2.ListGroupClientsRequest(instance_id="one", group_id="g", page_size=1_001),
        status_pb2.ListSubscribersRequest(instance_id="one", topic="a/#"),
        status_pb2.ListSubscribersRequest(topic="a"),
        status_pb2.WatchGroupRequest(instance_id="one"),
    ],
    ids=lambda request: f"{type(request).__name__}-{request.ByteSize()}",
)
async def test_bad_requests(world: World, request_: Any) -> None:
    call = getattr(world.stub, type(request_).__name__.removesuffix("Request"))(request_)
    if isinstance(request_, status_pb2.WatchGroupRequest):
        assert await end_of(call) is StatusCode.INVALID_ARGUMENT
        return
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT


# JSON over HTTP


async def test_json_of_a_client(world: World) -> None:
    answer = await world.call("getClient", ("clientId", "GID_mine@@@1"))
    assert answer.status_code == 200
    assert answer.json() == {
        "online": 1,
        "connections": [
            {
                "channelId": "0" * 32,
                "address": "192.0.2.1:1",
                "connectTimeMs": 7,
                "edgeId": "edge-1",
                "subscriptions": [{"topicFilter": "demo/#", "qos": 1}],
            }
        ],
        "session": {
            "persistent": True,
            "subscriptions": [{"topicFilter": "demo/#", "qos": 1}],
            "offlineMessageCount": 3,
            "inflightMessageCount": 0,
            "disconnectTimeMs": 0,
        },
    }


async def test_json_of_the_other_questions(world: World) -> None:
    world.put("GID_mine@@@1")
    batch = await world.call("batchGetClients", ("clientId", "GID_mine@@@1"), ("clientId", "GID_mine@@@2"))
    assert [(c["clientId"], c["online"]) for c in batch.json()["clients"]] == [
        ("GID_mine@@@1", 1),
        ("GID_mine@@@2", 0),
    ]
    group = await world.call("listGroupClients", ("groupId", "GID_mine"), ("pageSize", "5"))
    assert group.json()["onlineCount"] == 1
    subscribers = await world.call("listSubscribers", ("topic", "mine/x"))
    assert subscribers.status_code == 200
    closed = await world.call("closeConnections", ("clientId", "GID_mine@@@1"), method="POST")
    assert closed.json() == {"connectionCount": 1}


@contextlib.asynccontextmanager
async def watching(world: World) -> AsyncGenerator[tuple[httpx.Response, AsyncIterator[Any]]]:
    parameters = {"instanceId": world.instance_id, "groupId": "GID_mine"}
    headers = {"Authorization": f"Bearer {TOKEN.reveal()}"}
    async with world.http.stream("GET", "/v1/watchGroup", params=parameters, headers=headers) as answer:
        yield answer, (json.loads(line) async for line in answer.aiter_lines() if line)


async def test_json_of_a_watch(world: World) -> None:
    world.shards[0].clients = ["GID_mine@@@0"]
    world.shards[1].clients = ["GID_mine@@@1"]
    async with asyncio.timeout(20), watching(world) as (answer, lines):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        seen: list[str] = []
        async for line in lines:
            seen += [change["clientId"] for change in line["changes"]]
            if line["snapshotComplete"]:
                break
        assert sorted(seen) == ["GID_mine@@@0", "GID_mine@@@1"]
        gone = presence_pb2.PresenceChange(connection=connection("GID_mine@@@1"), connected=False, time_ms=5)
        world.shards[1].changes.put_nowait(gone)
        (change,) = (await anext(lines))["changes"]
        assert (change["clientId"], change["connected"], change["timeMs"]) == ("GID_mine@@@1", False, 5)
        assert change["connection"]["edgeId"] == "edge-1"
        world.shards[0].changes.put_nowait(None)  # a shard that ends ends the watch
        assert (await anext(lines)).keys() == {"message"}
        with pytest.raises(StopAsyncIteration):
            await anext(lines)


async def test_json_watch_that_a_shard_refuses(world: World) -> None:
    for shard in world.shards:
        shard.fails = LimitReachedError("too many", limit="watches")
    async with watching(world) as (answer, lines):
        assert answer.status_code == 429
        assert [line.keys() async for line in lines] == [{"message"}]


async def test_json_watch_has_signs_of_life_and_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_stream, "SIGN_OF_LIFE_S", 0.05)
    monkeypatch.setattr(presence_stream, "LONGEST_S", 1.0)
    async with asyncio.timeout(20), watching(world) as (answer, _):
        text = (await answer.aread()).decode()
    assert text.endswith("\n\n\n")


@pytest.mark.parametrize(
    ("action", "parameters", "changes", "status"),
    [
        ("getClient", {"clientId": "GID_mine@@@1"}, {"signature": "x"}, 403),
        ("getClient", {"clientId": "GID_mine@@@1"}, {"accessKey": "nobody"}, 403),
        ("getClient", {"clientId": "GID_mine@@@1"}, {"timestamp": "1"}, 403),
        ("getClient", {"clientId": "GID_mine@@@1"}, {"timestamp": "soon"}, 403),
        ("getClient", {"clientId": "GID_other@@@1"}, {}, 403),
        ("batchGetClients", {"clientId": "GID_other@@@1"}, {}, 403),
        ("listGroupClients", {"groupId": "GID_other"}, {}, 403),
        ("watchGroup", {"groupId": "GID_other"}, {}, 403),
        ("watchGroup", {}, {}, 400),
        ("listSubscribers", {"topic": "other/x"}, {}, 403),
        ("listSubscribers", {"topic": "mine/#"}, {}, 400),
        ("listGroupClients", {"groupId": "GID_mine", "pageSize": "0"}, {}, 400),
        ("listGroupClients", {"groupId": "GID_mine", "pageSize": "many"}, {}, 400),
        ("getClient", {}, {}, 400),
        ("getClient", {"clientId": "GID_mine@@@1"}, {"path": "batchGetClients"}, 400),
    ],
)
async def test_json_refusals(
    world: World, action: str, parameters: dict[str, str], changes: dict[str, str], status: int
) -> None:
    answer = await world.call(action, *parameters.items(), **changes)
    assert answer.status_code == status
    assert answer.json().keys() == {"message"}
    assert not any(shard.asked for shard in world.shards)


async def test_clients_of_several_groups_are_no_batch(world: World) -> None:
    answer = await world.call("batchGetClients", ("clientId", "GID_mine@@@1"), ("clientId", "GID_other@@@1"))
    assert answer.status_code == 400


async def test_operators_use_the_cluster_token(world: World) -> None:
    parameters = {"instanceId": world.instance_id, "clientId": "GID_other@@@1"}
    good = {"Authorization": f"Bearer {TOKEN.reveal()}"}
    assert (await world.http.get("/v1/getClient", params=parameters, headers=good)).status_code == 200
    for header in ("Bearer wrong", "Basic x", "Bearer"):
        answer = await world.http.get("/v1/getClient", params=parameters, headers={"Authorization": header})
        assert answer.status_code == 401
    assert (await world.http.get("/v1/getClient", params=parameters)).status_code == 400


async def test_the_api_describes_itself(world: World) -> None:
    description = (await world.http.get("/v1/openapi.json")).json()
    assert set(description["paths"]) == {
        "/getClient",
        "/batchGetClients",
        "/listGroupClients",
        "/listSubscribers",
        "/watchGroup",
        "/closeConnections",
    }
    for path in description["paths"].values():
        for call in path.values():
            names = {parameter["name"] for parameter in call["parameters"]}
            assert {"instanceId", "action", "accessKey", "timestamp", "signature"} <= names
            assert call["security"] == [{"HTTPBearer": []}]
