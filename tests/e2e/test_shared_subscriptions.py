"""Shared subscriptions through the whole mesh, with members on two edges."""

from __future__ import annotations

import contextlib
import secrets
import subprocess

import pytest

from services.edge.mqtt import packets
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.raw import RawClient
from tests.support.tools import need
from tests.support.wait import until

pytestmark = pytest.mark.e2e


def _topic(mesh: Mesh) -> str:
    return f"{mesh.topic}/{secrets.token_hex(4)}"


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_message_goes_to_one_member_in_turn_and_to_every_plain_subscriber(mesh: Mesh, qos: int) -> None:
    topic = _topic(mesh)
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(Client(mesh, edge=n % 2)) for n in range(4)]
        for member in members:
            assert member.subscribe(f"$share/g/{topic}/#", 2) == [2]
        witness = stack.enter_context(Client(mesh))
        witness.subscribe(f"{topic}/#", 2)
        sender = stack.enter_context(Client(mesh, edge=1))
        payloads = {b"%d" % n for n in range(40)}
        for payload in sorted(payloads):
            sender.publish_and_wait(f"{topic}/{payload.decode()}", payload, qos)
        until(lambda: sum(len(member.messages) for member in members) >= 40, what="40 messages at the members")
        assert {payload for _, payload, _ in witness.wait_messages(40)} == payloads
        assert len(witness.messages) == 40
        assert [len(member.messages) for member in members] == [10] * 4
        assert {payload for member in members for _, payload, _ in member.messages} == payloads


def test_every_share_gets_every_message(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh) as one, Client(mesh, edge=1) as two, Client(mesh) as sender:
        one.subscribe(f"$share/one/{topic}/+", 1)
        two.subscribe(f"$share/two/{topic}/+", 1)
        one.subscribe(f"$share/two/{topic}/other", 1)
        for n in range(10):
            sender.publish_and_wait(f"{topic}/a", b"%d" % n)
        assert len(one.wait_messages(10)) == 10
        assert len(two.wait_messages(10)) == 10


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("heir", [0, 1])
def test_what_a_dead_member_did_not_acknowledge_goes_to_the_others(mesh: Mesh, qos: int, heir: int) -> None:
    topic = _topic(mesh)
    share = f"$share/g/{topic}"
    with RawClient(mesh, edge=0) as dying, Client(mesh, edge=heir) as other, Client(mesh, edge=1) as sender:
        assert dying.subscribe(share, qos) == qos
        other.subscribe(share, qos)
        payloads = {b"%d" % n for n in range(200)}
        for payload in payloads:
            sender.publish_and_wait(topic, payload, qos)
        first = dying.receive()
        assert isinstance(first, packets.Publish)
        # That one is done; the others, those that wait for the window too, are not.
        completed = {first.payload}
        if qos == 1:
            dying.send(packets.PubAck(first.packet_identifier))
        else:
            dying.send(packets.PubRec(first.packet_identifier))
            while dying.receive() != packets.PubRel(first.packet_identifier):
                pass
        dying.send(packets.PingReq())
        while not isinstance(dying.receive(), packets.PingResp):
            pass
        assert len(other.wait_messages(100)) == 100
        dying.close()
        received = [payload for _, payload, _ in other.wait_messages(199)]
        assert sorted(received) == sorted(payloads - completed)


def test_a_member_that_unsubscribes_gets_no_more(mesh: Mesh) -> None:
    topic = _topic(mesh)
    share = f"$share/g/{topic}"
    with Client(mesh) as leaving, Client(mesh, edge=1) as staying, Client(mesh) as sender:
        leaving.subscribe(share, 1)
        staying.subscribe(share, 1)
        leaving.unsubscribe(share)
        for n in range(10):
            sender.publish_and_wait(topic, b"%d" % n)
        assert len(staying.wait_messages(10)) == 10
        assert not leaving.messages


def test_a_share_gets_no_retained_messages(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh) as sender, Client(mesh, edge=1) as member:
        sender.publish_and_wait(topic, b"kept", retain=True)
        member.subscribe(f"$share/g/{topic}", 1)
        member.subscribe(topic, 1)
        assert member.wait_messages(1) == [(topic, b"kept", 1)]
        sender.publish_and_wait(topic, b"", retain=True)


@pytest.mark.parametrize("share", ["$share/g/unknown/#", "$share//demo", "$share/g"])
def test_a_share_of_what_is_not_allowed_closes_the_connection(mesh: Mesh, share: str) -> None:
    with RawClient(mesh) as client, pytest.raises(ConnectionError):
        client.subscribe(share, 1)


def test_mosquitto_clients_of_the_standard_profile_share(mesh: Mesh) -> None:
    subscribe, publish = need("mosquitto_sub", "mosquitto-clients"), need("mosquitto_pub", "mosquitto-clients")
    topic = secrets.token_hex(4)
    members = [
        subprocess.Popen(
            ["stdbuf", "-oL", subscribe, "-h", "127.0.0.1", "-p", str(mesh.mqtt_port(edge)), "-d", "-q", "1",
             "-t", f"$share/g/{topic}/#", "-C", "5", "-W", "20"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for edge in (0, 1)
    ]  # fmt: skip
    for member in members:
        assert member.stdout is not None
        while "Subscribed" not in (line := member.stdout.readline()):
            assert line, "mosquitto_sub ended"
    done = subprocess.run(
        [publish, "-h", "127.0.0.1", "-p", str(mesh.mqtt_port(1)), "-t", f"{topic}/a", "-q", "1", "-l"],
        input="".join(f"m{n}\n" for n in range(10)),
        check=False,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0
    received = [line for member in members for line in member.communicate(timeout=20)[0].splitlines()]
    assert sorted(line for line in received if line.startswith("m")) == [f"m{n}" for n in range(10)]
