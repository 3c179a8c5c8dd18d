"""Grace, stalls and settling, with the clock in the test's hand."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import NotServingError, SupersededError
from services.common.readiness import Readiness
from services.router.edge_link import EdgeLink, Stream
from services.router.members import Members
from services.router.shards import Shards
from services.router.store import KnownEdges
from tests.unit.router.test_router import FakeLog, new_router, publish, sent, subscribe, take
from weimq.router.v1 import router_pb2

pytestmark = pytest.mark.asyncio


class Mesh:
    def __init__(self, known: dict[str, str] | None = None, shard_count: int = 0) -> None:
        self.known = KnownEdges()
        self.shards = Shards(shard_count)
        self.router = new_router(self.shards, high_bytes=100_000)
        self.readiness = Readiness("edges")
        self.members = Members(
            router=self.router,
            shards=self.shards,
            known=self.known,
            readiness=self.readiness,
            edge_grace_s=5.0,
            stall_s=10.0,
        )
        self.log = FakeLog()
        self.members.await_edges(known or {}, self.log)

    async def open(self, edge_id: str, incarnation: str = "1", **fields: object) -> tuple[EdgeLink, Stream]:
        opening = router_pb2.LinkOpen(edge_id=edge_id, edge_incarnation=incarnation, **fields)  # type: ignore[arg-type]
        return await self.members.open(opening)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 2)):
            self.members._sweep(0.5)

    @property
    def changes(self) -> dict[str, str | None]:
        return self.known._changes


async def is_ended_by(stream: Stream) -> type[BaseException]:
    async with asyncio.timeout(20):
        with pytest.raises((NotServingError, SupersededError)) as error:
            await stream.ended()
    return error.type


async def test_broken_edge_resumes_within_its_grace_and_not_after() -> None:
    mesh = Mesh()
    edge, stream = await mesh.open("e")
    mesh.members.left(edge, stream)
    mesh.pass_time(4.5)
    again, stream = await mesh.open("e", router_incarnation=edge.router_incarnation)
    assert again is edge
    mesh.members.left(edge, stream)
    mesh.pass_time(4.5)
    assert not edge.is_gone
    mesh.pass_time(0.5)
    assert edge.is_gone
    new, _ = await mesh.open("e", router_incarnation=edge.router_incarnation)
    # Told another incarnation, the edge sends its interests again instead of resuming what was dropped.
    assert new.router_incarnation != edge.router_incarnation
    assert new.snapshot == set()


async def test_other_process_of_an_edge_drops_the_first_at_once() -> None:
    mesh = Mesh()
    edge, stream = await mesh.open("e", "1")
    other, _ = await mesh.open("e", "2")
    assert edge.is_gone
    assert await is_ended_by(stream) is SupersededError
    assert mesh.changes == {"e": "2"}
    mesh.members.left(edge, stream)
    assert not other.is_gone


async def test_edge_that_confirms_nothing_loses_its_stream_and_then_its_place() -> None:
    mesh = Mesh()
    publisher, _ = await mesh.open("publisher")
    slow, stream = await mesh.open("slow")
    subscribe(slow, 1, "a")
    mesh.pass_time(60)  # it owes nothing
    publish(publisher, b"")
    sent(slow)
    mesh.pass_time(9.5)
    assert not slow.stalls
    mesh.pass_time(0.5)
    assert await is_ended_by(stream) is NotServingError
    mesh.members.left(slow, stream)
    assert not slow.is_gone
    again, stream = await mesh.open("slow", router_incarnation=slow.router_incarnation)
    assert again is slow
    mesh.pass_time(10)
    assert await is_ended_by(stream) is NotServingError
    assert slow.is_gone
    assert sent(publisher).acknowledged_sequences == [1]


async def test_confirmation_ends_the_silence() -> None:
    mesh = Mesh()
    publisher, _ = await mesh.open("publisher")
    slow, _ = await mesh.open("slow")
    subscribe(slow, 1, "a")
    for sequence in range(1, 4):
        publish(publisher, b"", sequence=sequence)
        frame = sent(slow)
        mesh.pass_time(9.5)
        slow.link._drop_confirmed(frame.frame)
    assert not slow.stalls


async def test_routing_begins_when_the_known_edges_are_complete() -> None:
    mesh = Mesh({"a": "1", "b": "1"})
    a, _ = await mesh.open("a")
    take(a, snapshot_complete=True)
    b, _ = await mesh.open("b", "2")
    mesh.pass_time(60)  # a long snapshot is waited for while its link lives
    assert mesh.readiness.missing == ["edges"]
    take(b, snapshot_complete=True)
    assert mesh.readiness.is_ready


async def test_known_edge_is_still_awaited_when_its_new_process_restarts_once_more() -> None:
    mesh = Mesh({"a": "1"})
    await mesh.open("a", "2")
    a, stream = await mesh.open("a", "3")
    assert mesh.readiness.missing == ["edges"]
    mesh.members.left(a, stream)
    mesh.pass_time(5)
    assert mesh.readiness.is_ready
    assert mesh.changes == {"a": None}


async def test_known_edge_that_stays_away_is_forgotten_after_its_grace() -> None:
    mesh = Mesh({"a": "1"})
    mesh.pass_time(4.5)
    assert not mesh.readiness.is_ready
    mesh.pass_time(0.5)
    assert mesh.readiness.is_ready
    assert mesh.changes == {"a": None}


async def test_stopping_refuses_new_links() -> None:
    mesh = Mesh()
    _, stream = await mesh.open("a")
    mesh.members.close()
    assert await is_ended_by(stream) is NotServingError
    with pytest.raises(NotServingError):
        await mesh.open("b")


async def shard_of(mesh: Mesh, incarnation: str = "1", index: int = 0) -> tuple[EdgeLink, Stream]:
    return await mesh.open(f"shard-{index}", incarnation, shard=router_pb2.SessionShard(index=index, count=1))


def keep(shard: EdgeLink, target_id: int, topic_filter: str) -> None:
    target = router_pb2.Target(target_id=target_id, instance_id="i", topic_filter=topic_filter, skips_qos0=True)
    take(shard, added_targets=[target], snapshot_complete=shard.snapshot is not None)


async def test_shard_that_stalls_once_is_owed_nothing_and_keeps_its_filters() -> None:
    mesh = Mesh(shard_count=1)
    publisher, _ = await mesh.open("publisher")
    shard, stream = await shard_of(mesh)
    assert mesh.shards.unknown == 1
    keep(shard, 1, "a")
    assert mesh.shards.unknown == 0
    assert "shard-0" not in mesh.changes  # the next router does not wait for it
    publish(publisher, b"")
    mesh.log.store(mesh.router)
    sent(shard)
    assert publisher.link._next_message() is None or not publisher._acknowledged
    mesh.pass_time(9.5)
    publish(publisher, b"", sequence=2)
    mesh.log.store(mesh.router)
    mesh.pass_time(0.5)
    assert await is_ended_by(stream) is NotServingError
    mesh.members.left(shard, stream)
    assert sent(publisher).acknowledged_sequences == [1, 2]
    assert not shard.pending_bytes
    mesh.pass_time(60)  # longer than the grace of an edge
    publish(publisher, b"", sequence=3)
    assert len(mesh.log.written) == 1, "still written for it"
    mesh.log.store(mesh.router)
    assert sent(publisher).acknowledged_sequences == [3]


async def test_filters_of_the_next_process_of_a_shard_replace_those_before() -> None:
    mesh = Mesh(shard_count=1)
    publisher, _ = await mesh.open("publisher")
    shard, stream = await shard_of(mesh)
    keep(shard, 1, "a")
    mesh.members.left(shard, stream)
    following, stream = await shard_of(mesh, "2")
    publish(publisher, b"")
    assert len(mesh.log.written) == 1
    assert not shard.is_gone
    mesh.members.left(following, stream)  # before it was complete
    assert following.is_gone
    last, _ = await shard_of(mesh, "3")
    keep(last, 1, "b")
    assert shard.is_gone
    publish(publisher, b"", sequence=2)
    assert len(mesh.log.written) == 1
    assert sent(publisher).acknowledged_sequences == [2]


async def test_slow_shard_holds_its_publishers_until_its_stream_ends() -> None:
    mesh = Mesh(shard_count=1)
    publisher, _ = await mesh.open("publisher")
    shard, stream = await shard_of(mesh)
    keep(shard, 1, "a")
    publish(publisher, bytes(100_001))
    mesh.log.store(mesh.router)
    assert shard.is_congested
    assert publisher.is_held
    mesh.members.left(shard, stream)
    assert not publisher.is_held
    assert sent(publisher).acknowledged_sequences == [1]
