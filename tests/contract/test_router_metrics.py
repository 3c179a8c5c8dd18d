"""The figures that a router exports over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import urllib.request

import pytest

from tests.support.router import RETAIN, FakeEdge, Mesh, mesh, until
from weimq.router.v1 import router_pb2

__all__ = ["mesh"]  # a fixture

pytestmark = pytest.mark.asyncio


async def figures(port: int) -> dict[str, float]:
    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(get)
    return {name: float(value) for name, value in re.findall(r"^weimq_router_(\S+) (\S+)$", text, re.MULTILINE)}


async def test_router_reports_what_passes_and_what_is_dropped(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "services.common.http_server")
    mesh._settings = dataclasses.replace(
        mesh._settings, http_listen="127.0.0.1:0", shard_count=1, max_retained_messages=0
    )
    async with (
        mesh.router(),
        FakeEdge(mesh, "one").running() as one,
        FakeEdge(mesh, "shard", shard=router_pb2.SessionShard(index=0, count=1)).running() as shard,
    ):
        one.subscribe(1, "a/#")
        one.subscribe(2, "shared", share_name="x")
        shard.subscribe(1, "a/kept", skips_qos0=True)
        await one.settled()
        await shard.settled()
        one.publish("a/kept", b"")
        one.publish("a/b", b"not retained", qos=0, flags=RETAIN)
        await one.all_acknowledged()
        await until(lambda: len(one.deliveries) == 1 + 1)
        (port,) = (record.port for record in caplog.records if record.message == "http listening")  # type: ignore[attr-defined]  # an extra
        reported = await figures(port)
        expected = {
            "published_messages_total": 2,
            'delivered_messages_total{to="edge"}': 2,
            'delivered_messages_total{to="shard"}': 1,
            "kept_messages_total": 1,
            'dropped_messages_total{reason="not_retained_quota"}': 1,
            'dropped_messages_total{reason="no_member_left"}': 0,
            'links{of="edge"}': 1,
            'links{of="shard"}': 1,
            "unknown_shards": 0,
            "targets": 3,
            "pending_bytes": 0,
            "log_backlog_bytes": 0,
            "held_sources": 0,
            "slowed_edges": 0,
            "retained_messages": 0,
        }
        assert {name: reported[name] for name in expected} == expected
