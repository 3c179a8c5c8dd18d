"""The promises of `weimq.session.v1.PresenceService` over real gRPC, with the hub of the session service behind it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from services.common import grpc_client, grpc_server
from services.common.readiness import Readiness
from services.common.settings import Secret
from services.session import inquiries, presence_servicer, watches
from services.session.clock import Clock
from services.session.domain.events import Event, Fold
from services.session.edge_link import EdgeLink
from services.session.hub import Hub
from services.session.presence_servicer import PresenceServicer
from weimq.session.v1 import presence_pb2 as pb
from weimq.session.v1 import presence_pb2_grpc, session_pb2

pytestmark = pytest.mark.asyncio

TOKEN = Secret("a-cluster-token-for-tests")
INSTANCE = "mqtt-demo"


class StoredEvents:
    """An event log that has stored everything at once."""

    has_room = True

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event, waiter: Any, *, may_repeat: bool) -> None:
        self.events.append(event)
        if waiter is not None:
            waiter.on_stored()


class Edge:
    """An edge without a wire: its frames are handed to the hub, and what the hub has for it is taken."""

    def __init__(self, hub: Hub, edge_id: str) -> None:
        self.hub = hub
        self.link: EdgeLink = hub.open(session_pb2.LinkOpen(edge_id=edge_id, edge_incarnation="1"), "s")[0]
        self.frame = 0
        self.send(session_pb2.LinkRequest(snapshot_complete=True))

    def send(self, request: session_pb2.LinkRequest) -> None:
        self.frame += 1
        request.frame = self.frame
        self.link._on_frame(request)

    def connect(self, client_id: str) -> session_pb2.Connection:
        connection = session_pb2.Connection(
            channel_id=secrets.token_hex(16), instance_id=INSTANCE, client_id=client_id, address="10.0.0.1:1"
        )
        self.send(session_pb2.LinkRequest(openings=[session_pb2.Opening(connection=connection)]))
        return connection

    def close(self, connection: session_pb2.Connection) -> None:
        closing = session_pb2.Closing(connection=connection, reason=session_pb2.CLOSE_REASON_CONNECTION_LOST)
        self.send(session_pb2.LinkRequest(closings=[closing]))

    async def answer(self, subscriptions: dict[str, dict[str, int]]) -> session_pb2.Inquiry:
        """Answer the next question: subscriptions by client id, of those that the question is about."""
        async with asyncio.timeout(20):
            while not self.link._inquiries:  # noqa: ASYNC110 - the call is on its way through gRPC
                await asyncio.sleep(0.005)
        response = self.link._build()
        assert response is not None
        [inquiry] = response.inquiries
        answer = session_pb2.InquiryAnswer(number=inquiry.number)
        for client_id, filters in sorted(subscriptions.items()):
            if client_id > inquiry.after_client_id:
                connection = answer.connections.add(client_id=client_id, channel_id=inquiry.channel_id)
                for topic_filter, qos in filters.items():
                    connection.subscriptions.add(topic_filter=topic_filter, qos=qos)
        self.send(session_pb2.LinkRequest(inquiry_answers=[answer]))
        return inquiry


@pytest.fixture
def hub() -> Hub:
    return Hub(edge_grace_s=5, clock=Clock())


def start(hub: Hub) -> StoredEvents:
    events = StoredEvents()
    hub.start(cast("Any", events), cast("Any", object()), Fold())
    return events


@pytest_asyncio.fixture
async def stub(hub: Hub) -> AsyncGenerator[presence_pb2_grpc.PresenceServiceStub]:
    def register(server: aio.Server) -> list[str]:
        presence_pb2_grpc.add_PresenceServiceServicer_to_server(PresenceServicer(hub), server)
        return ["weimq.session.v1.PresenceService"]

    async with (
        grpc_server.serving(
            listen=("127.0.0.1:0",), token=TOKEN, readiness=Readiness(), register=register, drain_s=1
        ) as ports,
        grpc_client.channel(f"127.0.0.1:{next(iter(ports))}", TOKEN) as channel,
    ):
        yield presence_pb2_grpc.PresenceServiceStub(channel)


@contextlib.contextmanager
def refused(code: grpc.StatusCode) -> Any:
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() == code


async def test_clients_come_in_request_order(hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub) -> None:
    start(hub)
    edge = Edge(hub, "a")
    edge.connect("GID_A@@@1")
    answer = await stub.BatchGetClients(
        pb.BatchGetClientsRequest(instance_id=INSTANCE, client_ids=["GID_A@@@2", "GID_A@@@1"])
    )
    assert [(c.client_id, len(c.connections), c.synchronized) for c in answer.clients] == [
        ("GID_A@@@2", 0, True),
        ("GID_A@@@1", 1, True),
    ]
    assert answer.clients[1].connections[0].edge_id == "a"


async def test_a_group_is_listed_in_pages(hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub) -> None:
    start(hub)
    edges = [Edge(hub, "a"), Edge(hub, "b")]
    connections = [edges[n % 2].connect(f"GID_A@@@{n:02}") for n in range(25)]
    edges[0].connect("GID_B@@@1")
    edges[0].connect("plain")
    edges[1].close(connections[3])
    seen: list[str] = []
    request = pb.ListGroupClientsRequest(instance_id=INSTANCE, group_id="GID_A", page_size=10)
    while True:
        page = await stub.ListGroupClients(request)
        assert page.online_count == 24
        seen += [client.client_id for client in page.clients]
        if len(page.clients) < 10:
            break
        request.after_client_id = seen[-1]
    assert seen == [f"GID_A@@@{n:02}" for n in range(25) if n != 3]
    nameless = await stub.ListGroupClients(pb.ListGroupClientsRequest(instance_id=INSTANCE, group_id="-"))
    assert [client.client_id for client in nameless.clients] == ["plain"]
    nobody = await stub.ListGroupClients(pb.ListGroupClientsRequest(instance_id="other", group_id="GID_A"))
    assert (len(nobody.clients), nobody.online_count) == (0, 0)


async def test_a_watch_tells_what_is_there_and_what_changes(
    hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub
) -> None:
    start(hub)
    edge = Edge(hub, "a")
    first = edge.connect("GID_A@@@1")
    edge.connect("GID_B@@@1")
    call = stub.WatchGroup(pb.WatchGroupRequest(instance_id=INSTANCE, group_id="GID_A"))
    snapshot: list[pb.PresenceChange] = []
    async with asyncio.timeout(20):
        while True:
            message = await call.read()
            assert isinstance(message, pb.WatchGroupResponse)
            snapshot += message.changes
            if message.snapshot_complete:
                break
        assert [(c.connection.client_id, c.connected) for c in snapshot] == [("GID_A@@@1", True)]
        second = edge.connect("GID_A@@@2")
        edge.close(first)
        edge.connect("GID_B@@@2")
        changes: list[pb.PresenceChange] = []
        while len(changes) < 2:
            message = await call.read()
            assert isinstance(message, pb.WatchGroupResponse)
            changes += message.changes
        heartbeat = await call.read()
    assert [(c.connection.channel_id, c.connected) for c in changes] == [
        (second.channel_id, True),
        (first.channel_id, False),
    ]
    assert heartbeat == pb.WatchGroupResponse()
    call.cancel()
    async with asyncio.timeout(20):
        while hub.watches._count:  # noqa: ASYNC110 - the cancellation is on its way through gRPC
            await asyncio.sleep(0.01)


async def test_a_watch_that_is_not_read_ends(
    hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "MAX_WAITING", 3)
    start(hub)
    edge = Edge(hub, "a")
    call = stub.WatchGroup(pb.WatchGroupRequest(instance_id=INSTANCE, group_id="GID_A"))
    message = await call.read()
    assert isinstance(message, pb.WatchGroupResponse)
    assert message.snapshot_complete
    for n in range(5):  # in one turn of the loop: nothing is taken meanwhile
        edge.connect(f"GID_A@@@{n}")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await call.read()


async def test_watches_are_bounded(
    hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "MAX_WATCHES", 0)
    start(hub)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await stub.WatchGroup(pb.WatchGroupRequest(instance_id=INSTANCE, group_id="GID_A")).read()


async def test_a_client_is_described_by_its_edge(hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub) -> None:
    start(hub)
    edge = Edge(hub, "a")
    connection = edge.connect("GID_A@@@1")
    call = stub.DescribeClient(pb.DescribeClientRequest(instance_id=INSTANCE, client_id="GID_A@@@1"))
    inquiry = await edge.answer({"GID_A@@@1": {"demo/#": 1, "demo/x": 2}})
    assert inquiry.channel_id == connection.channel_id
    answer = await call
    [described] = answer.connections
    assert described.connection.channel_id == connection.channel_id
    assert [(s.topic_filter, s.qos) for s in described.subscriptions] == [("demo/#", 1), ("demo/x", 2)]
    assert answer.synchronized


async def test_subscribers_of_all_edges_come_by_client_id(
    hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub
) -> None:
    start(hub)
    edges = [Edge(hub, "a"), Edge(hub, "b")]
    call = stub.ListSubscribers(
        pb.ListSubscribersRequest(instance_id=INSTANCE, topic="demo/x", after_client_id="GID_A@@@0", page_size=3)
    )
    await edges[0].answer({"GID_A@@@1": {"demo/#": 1}, "GID_A@@@4": {"demo/#": 0}})
    await edges[1].answer({"GID_A@@@0": {"#": 0}, "GID_A@@@2": {"demo/x": 2}, "GID_A@@@3": {"demo/+": 1}})
    answer = await call
    assert [(s.client_id, s.edge_id) for s in answer.subscribers] == [
        ("GID_A@@@1", "a"),
        ("GID_A@@@2", "b"),
        ("GID_A@@@3", "b"),
    ]


async def test_an_edge_that_does_not_answer(
    hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiries, "ANSWER_S", 0.05)
    start(hub)
    edge = Edge(hub, "a")
    edge.connect("GID_A@@@1")
    answer = await stub.DescribeClient(pb.DescribeClientRequest(instance_id=INSTANCE, client_id="GID_A@@@1"))
    assert (len(answer.connections), answer.synchronized) == (1, False)
    with refused(grpc.StatusCode.UNAVAILABLE):
        await stub.ListSubscribers(pb.ListSubscribersRequest(instance_id=INSTANCE, topic="demo/x"))
    assert not edge.link._inquiries  # nobody waits for an answer, so it is not asked later


async def test_before_the_events_are_read_nothing_is_answered(
    stub: presence_pb2_grpc.PresenceServiceStub,
) -> None:
    with refused(grpc.StatusCode.UNAVAILABLE):
        await stub.ListGroupClients(pb.ListGroupClientsRequest(instance_id=INSTANCE, group_id="GID_A"))


async def test_bad_requests_are_told(hub: Hub, stub: presence_pb2_grpc.PresenceServiceStub) -> None:
    start(hub)
    too_large = presence_servicer.MAX_PAGE + 1
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await stub.BatchGetClients(pb.BatchGetClientsRequest(instance_id=INSTANCE))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await stub.BatchGetClients(pb.BatchGetClientsRequest(instance_id=INSTANCE, client_ids=["x"] * too_large))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await stub.ListGroupClients(pb.ListGroupClientsRequest(instance_id=INSTANCE))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await stub.ListGroupClients(
            pb.ListGroupClientsRequest(instance_id=INSTANCE, group_id="GID_A", page_size=too_large)
        )
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await stub.ListSubscribers(pb.ListSubscribersRequest(instance_id=INSTANCE, topic="demo/#"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await stub.WatchGroup(pb.WatchGroupRequest(instance_id=INSTANCE)).read()


async def test_event_indexes_rise_over_restarts(hub: Hub) -> None:
    events = start(hub)
    edge = Edge(hub, "a")
    for n in range(50):
        edge.close(edge.connect(f"GID_A@@@{n}"))
    indexes = [event.index for event in events.events]
    assert indexes == sorted(set(indexes))
    assert indexes[-1] < 1 << 53
    fold = Fold()
    for event in events.events:
        fold.apply(event)
    successor = Hub(edge_grace_s=5, clock=Clock())
    later = StoredEvents()
    successor.start(cast("Any", later), cast("Any", object()), fold)
    Edge(successor, "a").connect("GID_A@@@1")
    assert later.events[0].index > indexes[-1]
