"""Token mode at the edge (product.md sections 2.2 and 2.4), with auth a fake behind real gRPC."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.edge.hub import Hub
from services.edge.mqtt import packets
from tests.support.edge_world import Device, World, until, world
from weimq.auth.v1 import auth_pb2
from weimq.session.v1 import session_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

USER = "Token|K|i"
UPLOAD = "$SYS/uploadToken"
INVALID = "$SYS/tokenInvalidNotice"
EXPIRES = "$SYS/tokenExpireNotice"


async def token_device(w: World, password: str, client_id: str = "GID_demo@@@1", **fields: Any) -> Device:
    """Connect in token mode."""
    return await w.connected(client_id, password=password.encode(), user=USER, **fields)


def upload(token: str, token_type: str, packet_identifier: int = 1, qos: int = 1) -> packets.Publish:
    """Return the packet that uploads a token."""
    body = json.dumps({"token": token, "type": token_type}).encode()
    return packets.Publish(UPLOAD, body, qos, False, False, packet_identifier)


async def notice(device: Device) -> tuple[str, dict[str, Any]]:
    """Receive a message of the server."""
    packet = await device.receive()
    assert isinstance(packet, packets.Publish), packet
    assert packet.qos == 0
    return packet.topic, json.loads(packet.payload)


async def closed_with(w: World, device: Device, code: int, token_type: str) -> None:
    """Expect the notice and the end."""
    assert await notice(device) == (INVALID, {"code": code, "type": token_type})
    assert await device.receive() is None
    await until(lambda: w.session.closings)
    assert w.session.closings[-1].reason == session_pb2.CLOSE_REASON_NOT_AUTHORIZED


@pytest.mark.parametrize("password", ["R|read|W|write", "W|write|R|read", "RW|both"])
async def test_tokens_of_the_password_are_in_force(password: str) -> None:
    async with world() as w:
        w.auth.issue("read", "R", "demo/#")
        w.auth.issue("write", "W", "demo/#")
        w.auth.issue("both", "RW", "demo/#")
        device = await token_device(w, password)
        assert not w.session.openings[0].is_held
        await device.send(packets.Subscribe(1, [("demo/a", 1)]), packets.Publish("demo/a", b"x", 1, False, False, 2))
        assert {type(await device.receive()) for _ in range(2)} == {packets.SubAck, packets.PubAck}


async def test_one_bad_token_makes_the_set_bad() -> None:
    async with world() as w:
        w.auth.issue("read", "R", "demo/#")
        device = await w.connect(password=b"R|read|W|forged", user=USER)
        assert await device.receive() == packets.ConnAck(False, 4)


@pytest.mark.parametrize(
    ("password", "packet", "code", "token_type"),
    [
        ("R|read", packets.Publish("demo/a", b"", 1, False, False, 1), 5, "W"),
        ("W|write", packets.Subscribe(1, [("demo/a", 1)]), 5, "R"),
        ("W|write", packets.Publish("demo/b", b"", 1, False, False, 1), 4, "W"),
        ("R|read", packets.Subscribe(1, [("demo/#", 1)]), 4, "R"),
        ("RW|both", packets.Publish("demo/p2p/GID_demo@@@2", b"", 1, False, False, 1), 4, "RW"),
        ("RW|all", packets.Publish("unknown/a", b"", 1, False, False, 1), -1, "RW"),
        ("RW|all", packets.Publish("$SYS/unknown", b"{}", 1, False, False, 1), 4, "RW"),
        ("", packets.Publish("demo/a", b"", 1, False, False, 1), 5, "W"),
        ("", packets.Subscribe(1, [("demo/a", 1)]), 5, "R"),
    ],
)
async def test_what_tokens_do_not_cover_ends_the_connection(
    password: str, packet: packets.Packet, code: int, token_type: str
) -> None:
    async with world() as w:
        w.auth.issue("read", "R", "demo/a")
        w.auth.issue("write", "W", "demo/a")
        w.auth.issue("both", "RW", "demo/+")
        w.auth.issue("all", "RW", "#")
        device = await token_device(w, password)
        await device.send(packet)
        await closed_with(w, device, code, token_type)
        assert not w.router.published


async def test_a_client_may_connect_first_and_upload_its_tokens_afterwards() -> None:
    async with world() as w:
        w.auth.issue("write", "W", "demo/#")
        w.auth.issue("read", "R", "demo/#")
        device = await token_device(w, "")
        assert w.session.openings[0].is_held
        await device.send(upload("write", "W"))
        assert await device.receive() == packets.PubAck(1)
        assert not w.session.released
        await device.send(packets.Publish("demo/a", b"x", 1, False, False, 2))
        assert await device.receive() == packets.PubAck(2)
        await device.send(upload("read", "R", 3))
        assert await device.receive() == packets.PubAck(3)
        await until(lambda: w.session.released)
        assert w.session.released == [w.session.openings[0].connection.channel_id]
        await device.send(packets.Subscribe(4, [("demo/a", 1)]))
        assert await device.receive() == packets.SubAck(4, [1])


async def test_tokens_are_uploaded_in_the_standard_profile_too() -> None:
    async with world(auth_pb2.PROFILE_STANDARD) as w:
        w.auth.issue("write", "W", "demo/#", "$SYS/#")
        w.auth.issue("read", "R", "demo/#")
        device = await token_device(w, "")
        await device.send(upload("write", "W"))
        assert await device.receive() == packets.PubAck(1)
        await device.send(upload("read", "R", 2))
        assert await device.receive() == packets.PubAck(2)
        await device.send(packets.Publish("demo/a", b"x", 1, False, False, 3))
        assert await device.receive() == packets.PubAck(3)
        assert [each[0] for each in w.router.published] == ["demo/a"]


async def test_a_client_without_tokens_receives_nothing() -> None:
    async with world() as w:
        w.auth.issue("write", "W", "demo/x")
        device = await token_device(w, "")
        w.router.deliver("demo/p2p/GID_demo@@@1", b"early", 1, "GID_demo@@@1")
        await until(lambda: not w.router.to_send.ByteSize() and not w.router.link.has_unconfirmed)
        await device.send(upload("write", "W"))
        assert await device.receive() == packets.PubAck(1)
        w.router.deliver("demo/p2p/GID_demo@@@1", b"now", 0, "GID_demo@@@1")
        assert await device.receive() == packets.Publish("demo/p2p/GID_demo@@@1", b"now", 0, False, False, 0)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_an_uploaded_token_replaces_the_one_of_its_type(qos: int) -> None:
    async with world() as w:
        w.auth.issue("old", "RW", "demo/#")
        w.auth.issue("new", "RW", "fast/#")
        device = await token_device(w, "RW|old")
        await device.send(packets.Subscribe(1, [("demo/a", 1)]))
        assert await device.receive() == packets.SubAck(1, [1])
        await device.send(upload("new", "RW", 2 if qos else 0, qos))
        if qos:
            assert await device.receive() == (packets.PubAck(2) if qos == 1 else packets.PubRec(2))
        await until(lambda: "demo/a" not in {target.topic_filter for target in w.router.targets.values()})
        w.auth.tell(auth_pb2.WatchResourcesResponse(revoked_token_ids=["id-old"]))
        await device.send(packets.Subscribe(3, [("fast/#", 1)]), packets.Publish("fast/a", b"x", 1, False, False, 4))
        assert {type(await device.receive()) for _ in range(2)} == {packets.SubAck, packets.PubAck}
        await device.send(packets.Publish("demo/a", b"x", 1, False, False, 5))
        await closed_with(w, device, 4, "RW")


@pytest.mark.parametrize("code", [1, 2, 3, 5, 8, -1])
async def test_a_bad_upload_gets_its_notice_and_ends_the_connection(code: int) -> None:
    async with world() as w:
        w.auth.issue("good", "RW", "demo/#")
        w.auth.codes["bad"] = code
        device = await token_device(w, "RW|good")
        await device.send(upload("bad", "RW"))
        await closed_with(w, device, code, "RW")


async def test_an_upload_of_the_wrong_type_has_its_code() -> None:
    async with world() as w:
        w.auth.issue("read", "R", "demo/#")
        device = await token_device(w, "")
        await device.send(upload("read", "W"))
        await closed_with(w, device, 5, "W")


@pytest.mark.parametrize("token", ["x" * 40_000, "\ud800", "schlüssel"])
async def test_what_can_be_no_token_is_forged(token: str) -> None:
    async with world() as w:
        device = await token_device(w, "")
        await device.send(upload(token, "R"))
        await closed_with(w, device, 1, "R")


@pytest.mark.parametrize(
    "payload",
    [b"", b"RW|x", b"{}", b'{"token":"x"}', b'{"token":"","type":"R"}', b'{"token":"x","type":"X"}', b'{"token":1}'],
)
async def test_a_malformed_upload_ends_the_connection(payload: bytes) -> None:
    async with world() as w:
        device = await token_device(w, "")
        await device.send(packets.Publish(UPLOAD, payload, 1, False, False, 1))
        assert await device.receive() is None
        await until(lambda: w.session.closings)
        assert w.session.closings[0].reason == session_pb2.CLOSE_REASON_PROTOCOL_ERROR


async def test_an_upload_in_signature_mode_ends_the_connection() -> None:
    async with world() as w:
        w.auth.issue("read", "R", "demo/#")
        device = await w.connected(user="Signature|K|i")
        await device.send(upload("read", "R"))
        assert await device.receive() is None


async def test_an_upload_waits_while_auth_is_away() -> None:
    async with world() as w:
        w.auth.issue("old", "RW", "demo/#")
        w.auth.issue("new", "RW", "fast/#")
        device = await token_device(w, "RW|old")
        w.auth.is_away = True
        w.auth.cut()
        await device.send(upload("new", "RW"), packets.Publish("demo/a", b"", 0, False, False, 0), packets.PingReq())
        assert await device.receive() == packets.PingResp()
        await until(lambda: w.router.published)
        w.auth.is_away = False
        assert await device.receive() == packets.PubAck(1)


async def test_uploads_are_checked_in_batches() -> None:
    async with world() as w:
        w.auth.issue("new", "R", "demo/#")
        devices = [await token_device(w, "", f"GID_demo@@@{n}") for n in range(20)]
        for device in devices:
            await device.send(upload("new", "R"))
        for device in devices:
            assert await device.receive() == packets.PubAck(1)
        assert len(w.auth.token_batches) < 20


async def test_more_uploads_at_once_than_there_are_types_end_the_connection() -> None:
    async with world() as w:
        w.auth.is_away = False
        device = await token_device(w, "")
        w.auth.is_away = True
        await device.send(*(upload("x", "R", n + 1) for n in range(4)))
        assert await device.receive() is None
        w.auth.is_away = False


async def test_expiry_is_announced_and_then_ends_the_connection() -> None:
    async with world() as w:
        w.auth.issue("short", "R", "demo/#", seconds=1.5)
        w.auth.issue("long", "W", "demo/#", seconds=400)
        device = await token_device(w, "R|short|W|long")
        expire_time_ms = w.auth.tokens["short"].expire_time_ms
        assert await notice(device) == (EXPIRES, {"expireTime": expire_time_ms, "type": "R"})
        await closed_with(w, device, 2, "R")


async def test_an_expiry_that_is_announced_while_the_client_is_let_in_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweeps: list[None] = []
    sweep = Hub.sweep

    def spy(hub: Hub) -> None:
        sweep(hub)
        sweeps.append(None)

    monkeypatch.setattr(Hub, "sweep", spy)
    async with world(connect_timeout_s=10) as w:
        w.auth.issue("short", "R", "demo/#", seconds=60)
        w.router.confirms = False
        device = await w.connect(password=b"R|short", user=USER)
        await until(lambda: w.session.openings)
        before = len(sweeps)
        await until(lambda: len(sweeps) > before)
        w.router.confirms = True
        w.router.cut.set()
        assert await device.receive() == packets.ConnAck(False, 0)
        expire_time_ms = w.auth.tokens["short"].expire_time_ms
        assert await notice(device) == (EXPIRES, {"expireTime": expire_time_ms, "type": "R"})


async def test_a_token_that_is_replaced_in_time_ends_nothing() -> None:
    async with world() as w:
        w.auth.issue("short", "R", "demo/#", seconds=5)  # enough for two clients on a busy machine
        w.auth.issue("long", "R", "demo/#", seconds=3600)
        device = await token_device(w, "R|short")
        witness = await token_device(w, "R|short", "GID_demo@@@2")
        assert (await notice(device))[0] == EXPIRES
        await device.send(upload("long", "R"))
        assert await device.receive() == packets.PubAck(1)
        assert (await notice(witness))[0] == EXPIRES
        await closed_with(w, witness, 2, "R")
        await device.send(packets.PingReq())
        assert await device.receive() == packets.PingResp()


async def test_a_revoked_token_ends_exactly_the_connections_that_use_it() -> None:
    async with world() as w:
        w.auth.issue("a", "RW", "demo/#")
        w.auth.issue("b", "R", "demo/#")
        using = [await token_device(w, "RW|a", "GID_demo@@@1"), await token_device(w, "R|b|RW|a", "GID_demo@@@2")]
        other = await token_device(w, "R|b", "GID_demo@@@3")
        w.auth.tell(auth_pb2.WatchResourcesResponse(revoked_token_ids=["id-a"]))
        for device in using:
            await closed_with(w, device, 3, "RW")
        await other.send(packets.PingReq())
        assert await other.receive() == packets.PingResp()
        late = await w.connect("GID_demo@@@4", password=b"RW|a", user=USER)
        assert await late.receive() == packets.ConnAck(False, 4)


async def test_a_revoked_token_takes_the_will_with_it() -> None:
    async with world() as w:
        w.auth.issue("a", "RW", "demo/#")
        device = await token_device(w, "RW|a", will=packets.Will("demo/will", b"gone", 1, False))
        will = w.session.openings[0].will  # should the edge be lost, the router judges it by these
        assert (will.account_id, will.access_key_id, list(will.token_ids)) == ("default", "K", ["id-a"])
        w.auth.tell(auth_pb2.WatchResourcesResponse(revoked_token_ids=["id-a"]))
        await closed_with(w, device, 3, "RW")
        assert not w.router.published


async def test_a_will_is_judged_when_it_is_sent() -> None:
    async with world() as w:
        w.auth.issue("a", "W", "demo/#")
        device = await token_device(w, "", will=packets.Will("demo/will", b"gone", 1, False))
        assert not w.session.openings[0].HasField("will")
        other = await token_device(w, "", "GID_demo@@@2", will=packets.Will("demo/will", b"other", 1, False))
        await device.send(upload("a", "W"))
        assert await device.receive() == packets.PubAck(1)
        other.abort()
        await until(lambda: w.session.closings)
        device.abort()
        await until(lambda: w.router.published)
        assert [payload for _, payload, *_ in w.router.published] == [b"gone"]


async def test_a_will_that_no_token_covers_refuses_the_connection() -> None:
    async with world() as w:
        w.auth.issue("a", "R", "demo/#")
        device = await w.connect(password=b"R|a", user=USER, will=packets.Will("demo/will", b"gone", 1, False))
        assert await device.receive() == packets.ConnAck(False, packets.ConnectReturnCode.NOT_AUTHORIZED)
