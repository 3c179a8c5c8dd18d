"""Two routers and two session shards behind two edges: what clients see is the same as with one of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from services.common.sharding import router_of, shard_of
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = pytest.mark.e2e

REPLICAS = 2


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path_factory.mktemp("replicas"), "--routers", str(REPLICAS), "--sessions", str(REPLICAS))
    mesh.start()
    yield mesh
    assert mesh.stop() == 0


@pytest.fixture(scope="module")
def topics(replicas: Mesh) -> list[str]:
    """Return a parent topic with a log of each router."""
    names = [
        next(f"of-{n}" for n in range(99) if router_of(replicas.instance, f"of-{n}", REPLICAS) == index)
        for index in range(REPLICAS)
    ]
    for name in names:
        replicas.weimq("topic", "create", name)
    return names


def of_shard(mesh: Mesh, index: int, prefix: str) -> str:
    """Return a device whose client is one of a shard."""
    return next(
        f"{prefix}-{n}"
        for n in range(99)
        if shard_of(mesh.instance, mesh.client_id(f"{prefix}-{n}"), REPLICAS) == index
    )


def test_wildcards_and_retained_messages_span_the_routers(replicas: Mesh, topics: list[str]) -> None:
    with Client(replicas) as publisher, Client(replicas, edge=1) as subscriber:
        for topic in topics:
            publisher.publish_and_wait(f"{topic}/kept", topic.encode(), retain=True)
            assert subscriber.subscribe(f"{topic}/#", 1) == [1]
        assert sorted(subscriber.wait_messages(2)) == [(f"{topic}/kept", topic.encode(), 1) for topic in sorted(topics)]
        for topic in topics:
            publisher.publish_and_wait(f"{topic}/live", b"", 2)
        assert {topic for topic, _, _ in subscriber.wait_messages(4)[2:]} == {f"{topic}/live" for topic in topics}


def test_offline_messages_of_both_shards_from_both_routers(replicas: Mesh, topics: list[str]) -> None:
    devices = [of_shard(replicas, index, "away") for index in range(REPLICAS)]
    for device in devices:
        with Client(replicas, device, clean_session=False) as away:
            for topic in topics:
                assert away.subscribe(f"{topic}/offline", 1) == [1]
    expected = {(f"{topic}/offline", b"%d" % n, 1) for topic in topics for n in range(5)}
    with Client(replicas, edge=1, clean_session=False) as publisher:
        for topic in topics:
            for n in range(5):
                publisher.publish_and_wait(f"{topic}/offline", b"%d" % n)
            publisher.publish_and_wait(f"{topic}/offline", b"at most once", 0)
            for device in devices:
                publisher.publish_and_wait(f"{topic}/p2p/{replicas.client_id(device)}", b"kept")
    for device in devices:
        p2p = {(f"{topic}/p2p/{replicas.client_id(device)}", b"kept", 1) for topic in topics}
        with Client(replicas, device, edge=1, clean_session=False) as back:
            assert set(back.wait_messages(12)) == expected | p2p
            assert len(back.messages) == 12


def test_messages_of_a_dead_member_go_to_the_others(replicas: Mesh, topics: list[str]) -> None:
    with Client(replicas) as one, Client(replicas, edge=1) as two, Client(replicas) as publisher:
        for member in (one, two):
            for topic in topics:
                assert member.subscribe(f"$share/workers/{topic}/#", 1) == [1]
        for topic in topics:
            for n in range(10):
                publisher.publish_and_wait(f"{topic}/{n}", b"")
        until(lambda: len(one.messages) + len(two.messages) == 20)
        had = Counter(topic for topic, _, _ in one.messages + two.messages)
        assert set(had.values()) == {1}
        assert len(one.messages) == len(two.messages) == 10
        one.abort()
        for topic in topics:
            for n in range(10, 20):
                publisher.publish_and_wait(f"{topic}/{n}", b"")
        until(
            lambda: (
                {topic for topic, _, _ in one.messages + two.messages}
                == {f"{t}/{n}" for t in topics for n in range(20)}
            )
        )


@pytest.mark.parametrize("process", ["router-1", "session-1"])
def test_killed_replica_loses_nothing(replicas: Mesh, topics: list[str], process: str) -> None:
    device = of_shard(replicas, 1, f"kill-{process}")
    with Client(replicas, device, clean_session=False) as away:
        for topic in topics:
            away.subscribe(f"{topic}/{process}", 1)
    with Client(replicas, edge=1) as publisher:
        infos = []
        for n in range(40):
            infos += [publisher.publish(f"{topic}/{process}", b"%d" % n, 1) for topic in topics]
            if n == 20:
                replicas.kill(process)
        for info in infos:
            info.wait_for_publish(40)
            assert info.is_published()
    replicas.wait_healthy()
    expected = {(f"{topic}/{process}", b"%d" % n, 1) for topic in topics for n in range(40)}
    with Client(replicas, device, clean_session=False) as back:
        until(lambda: set(back.messages) == expected, seconds=40, what="all messages")
