"""Persistent sessions and permissions: what is withdrawn leaves the session, what waits for a token stays."""

from __future__ import annotations

import pytest

from services.edge.mqtt import packets
from tests.contract.test_edge_persistent import ME, interests, session_of
from tests.contract.test_edge_tokens import USER, upload
from tests.contract.test_edge_withdrawals import KEY_POLICY, SIGNED, TOPIC_GONE, change
from tests.support.edge_world import until, world
from weimq.auth.v1 import auth_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

WITHDRAWN = 1


async def test_a_session_waits_for_the_token_that_lets_its_client_read() -> None:
    async with world() as w:
        w.auth.issue("write", "W", "demo/#")
        w.auth.issue("read", "R", "demo/a")
        w.session.decisions[ME] = session_of(("demo/a", 1), ("demo/b", 1))
        device = await w.connected(ME, clean_session=False, session_present=True, user=USER, password=b"")
        assert w.session.openings[0].is_held
        await device.send(upload("write", "W"))
        assert await device.receive() == packets.PubAck(1)
        assert (interests(w), w.session.changes, w.session.released) == ([], [], [])
        await device.send(upload("read", "R", 2))
        assert await device.receive() == packets.PubAck(2)
        await until(lambda: w.session.released and w.session.changes)
        await until(lambda: interests(w) == [("demo/a", True)])
        assert [list(each.removed_topic_filters) for each in w.session.changes] == [["demo/b"]]


async def test_a_client_that_may_only_write_keeps_its_subscriptions_and_gets_no_messages_of_them() -> None:
    async with world() as w:
        w.auth.issue("write", "W", "demo/#")
        w.session.decisions[ME] = session_of(("demo/a", 1))
        device = await w.connected(ME, clean_session=False, session_present=True, user=USER, password=b"W|write")
        assert not w.session.openings[0].is_held
        w.session.deliver(ME, 7, b"not for it", topic="demo/a")
        w.session.deliver(ME, 8, b"p2p", topic=f"demo/p2p/{ME}")
        packet = await device.receive()
        assert isinstance(packet, packets.Publish)
        assert packet.payload == b"p2p"
        await until(lambda: w.session.acknowledged)
        assert [(number, outcome) for _, number, outcome in w.session.acknowledged] == [(7, WITHDRAWN)]
        assert (interests(w), w.session.changes) == ([], [])


async def test_a_withdrawn_permission_takes_the_subscription_out_of_the_session() -> None:
    async with world() as w:
        w.session.decisions[ME] = session_of(("demo/a", 1), ("demo/b", 1), ("fast/a", 1))
        device = await w.connected(ME, clean_session=False, session_present=True, user=SIGNED)
        narrowed = auth_pb2.AccessKeyPolicy()
        narrowed.CopyFrom(KEY_POLICY)
        narrowed.topic_filters.extend(("demo/a", "fast/#"))
        w.auth.tell(change(access_keys=[narrowed]))
        await until(lambda: len(w.session.changes) == 1)
        w.auth.tell(TOPIC_GONE)
        await until(lambda: len(w.session.changes) == 2)
        assert [list(each.removed_topic_filters) for each in w.session.changes] == [["demo/b"], ["demo/a"]]
        assert interests(w) == [("fast/a", True)]
        w.session.deliver(ME, 7, b"late", topic="demo/a")
        w.session.deliver(ME, 8, b"still", topic="fast/a")
        packet = await device.receive()
        assert isinstance(packet, packets.Publish)
        assert packet.payload == b"still"
        await until(lambda: w.session.acknowledged)
        assert [(number, outcome) for _, number, outcome in w.session.acknowledged] == [(7, WITHDRAWN)]
