"""Persistent sessions and offline messages as clients see them (product.md 3.1 to 3.3): paho over the whole mesh."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest

from tests.support.clients import Client
from tests.support.mesh import PLAIN, Mesh
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

BATCH = 30


def _topic(mesh: Mesh) -> str:
    return f"{mesh.topic}/{secrets.token_hex(4)}"


def _numbers(client: Client) -> list[int]:
    return [int(payload) for _, payload, _ in client.messages]


def _send(mesh: Mesh, topic: str, numbers: range, qos: int = 1, *, instance: str = "") -> None:
    """Publish from somebody else, and wait for the acknowledgements."""
    with Client(mesh, instance=instance) as publisher:
        for info in [publisher.publish(topic, b"%d" % n, qos) for n in numbers]:
            info.wait_for_publish(20)
            assert info.is_published()


def _silence(mesh: Mesh, client: Client, topic: str) -> None:
    """Wait until a message that was published last is there: nothing before it can come any more."""
    before = len(client.messages)
    _send(mesh, topic, range(999, 1000), 0)
    until(lambda: len(client.messages) > before and _numbers(client)[-1] == 999, what="the last message")


@pytest.fixture
def quick(mesh: Mesh) -> Iterator[None]:
    """Have the bootstrap instance send its batches every two seconds."""
    mesh.weimq("instance", "set", mesh.instance, "--offline-batch-interval-ms", "2000")
    yield
    mesh.weimq("instance", "set", mesh.instance, "--offline-batch-interval-ms", "5000")


# --- the table of product.md 3.1, cell by cell ------------------------------------------------


@pytest.mark.parametrize("clean_session", [True, False])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_who_gets_what_online_and_offline(mesh: Mesh, qos: int, clean_session: bool) -> None:
    topic = _topic(mesh)
    client = Client(mesh, clean_session=clean_session)
    with client:
        assert client.subscribe(topic, qos) == [qos]
        _send(mesh, topic, range(5), qos)
        client.wait_messages(5)
    assert _numbers(client) == list(range(5)), "online each comes once"
    with Client(mesh, edge=1) as witness:
        witness.subscribe(topic, qos)
        _send(mesh, topic, range(5, 10), qos)
        witness.wait_messages(5)  # at QoS 0 nothing else tells that they are not on their way any more
    with Client(mesh, client_id=client.client_id, clean_session=clean_session, edge=1) as again:
        assert again.session_present is not clean_session
        if clean_session:
            again.subscribe(topic, qos)
        if qos == 1 and not clean_session:
            again.wait_messages(5)
            assert _numbers(again) == [5, 6, 7, 8, 9]
        else:
            _silence(mesh, again, topic)
            assert _numbers(again) == [999]


@pytest.mark.parametrize("qos", [1, 2])
def test_the_standard_profile_keeps_qos_1_and_2(mesh: Mesh, qos: int) -> None:
    topic = secrets.token_hex(4)
    with Client(mesh, clean_session=False, instance=PLAIN) as client:
        client.subscribe(topic, qos)
    _send(mesh, topic, range(200), qos, instance=PLAIN)
    with Client(mesh, client_id=client.client_id, clean_session=False, edge=1, instance=PLAIN) as again:
        again.wait_messages(200)
        assert _numbers(again) == list(range(200))


def test_a_change_of_the_flag_discards_the_session(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh, clean_session=False) as client:
        client.subscribe(topic, 1)
    _send(mesh, topic, range(3))
    with Client(mesh, client_id=client.client_id) as clean:
        assert clean.session_present is False
        clean.subscribe(topic, 1)
        _silence(mesh, clean, topic)
        assert _numbers(clean) == [999]
    with Client(mesh, client_id=client.client_id, clean_session=False) as again:
        assert again.session_present is False


# --- offline messages -------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_the_backlog_comes_in_batches_and_live_messages_beside_it(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh, clean_session=False) as client:
        client.subscribe(topic, 1)
    _send(mesh, topic, range(70))
    with Client(mesh, client_id=client.client_id, clean_session=False) as again:
        again.wait_messages(BATCH)
        _send(mesh, topic, range(500, 501))
        until(lambda: 500 in _numbers(again), what="the live message")
        until(lambda: len(again.messages) == 71, what="the whole backlog")
        backlog = [n for n in _numbers(again) if n != 500]
        assert backlog == list(range(70))
        times = [at for at, n in zip(again.times, _numbers(again), strict=True) if n != 500]
        # What comes late on a busy machine makes one pause shorter and another longer.
        pauses = [times[batch * BATCH] - times[batch * BATCH - 1] for batch in (1, 2)]
        assert min(pauses) > 0.5
        assert 2.5 < times[2 * BATCH] - times[0] < 20


@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_offline_messages_can_be_pulled_in_both_orders(mesh: Mesh, order: str) -> None:
    topic = _topic(mesh)
    with Client(mesh, clean_session=False) as client:
        client.subscribe(topic, 1)
    _send(mesh, topic, range(50))
    with Client(mesh, client_id=client.client_id, clean_session=False) as again:
        again.wait_messages(BATCH)
        assert _numbers(again) == list(range(BATCH))
        pull = json.dumps({"maxPushNum": 7, "pushOrder": order}).encode()
        again.publish_and_wait("$SYS/getOfflineMsg", pull)
        again.wait_messages(BATCH + 7)
        rest = list(range(BATCH, 50))
        assert _numbers(again)[BATCH:] == (rest[:7] if order == "ASC" else rest[:-8:-1])


def test_unsubscribe_ends_what_is_kept(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh, clean_session=False) as client:
        client.subscribe(topic, 1)
        client.unsubscribe(topic)
    _send(mesh, topic, range(3))
    with Client(mesh, client_id=client.client_id, clean_session=False) as again:
        assert again.session_present is True
        again.subscribe(topic, 0)
        _silence(mesh, again, topic)
        assert _numbers(again) == [999]


def test_sessions_are_listed_shown_and_deleted_by_command(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh, clean_session=False) as client:
        client.subscribe(topic, 1)
    _send(mesh, topic, range(3))
    name = client.client_id
    shown = {}

    def is_stored() -> bool:
        shown.update(mesh.json("session", "show", name))
        return int(shown["offline_message_count"]) == 3

    until(is_stored, what="three messages")
    assert [(each["topic_filter"], each["qos"]) for each in shown["subscriptions"]] == [(topic, 1)]
    [listed] = mesh.json("session", "list", "--prefix", name)
    assert (listed["client_id"], listed["persistent"], int(listed["offline_message_count"])) == (name, True, 3)
    assert int(mesh.json("session", "delete", name)["dropped_message_count"]) == 3
    assert mesh.json("session", "list", "--prefix", name) == []
    assert mesh.weimq("session", "show", name, check=False).returncode
    with Client(mesh, client_id=name, clean_session=False) as again:
        assert not again.session_present


# --- P2P --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender_clean", [True, False])
@pytest.mark.parametrize("receiver_clean", [True, False])
def test_p2p_is_kept_by_the_flag_of_the_sender(mesh: Mesh, sender_clean: bool, receiver_clean: bool) -> None:
    receiver = mesh.client_id(secrets.token_hex(4))  # never seen before
    topic = f"{mesh.topic}/p2p/{receiver}"
    with Client(mesh, clean_session=sender_clean) as sender:
        for n in range(3):
            sender.publish_and_wait(topic, b"%d" % n)
        with Client(mesh, edge=1) as witness:
            witness.subscribe(after := _topic(mesh), 0)
            sender.publish_and_wait(topic, b"7", 0)
            sender.publish_and_wait(after, b"", 0)
            witness.wait_messages(1)  # so the router has seen, too, what was sent to nobody before
    with Client(mesh, client_id=receiver, clean_session=receiver_clean, edge=1) as client:
        if not sender_clean:
            client.wait_messages(3)
        _silence(mesh, client, topic)
        assert _numbers(client) == ([999] if sender_clean else [0, 1, 2, 999])
        assert {name for name, _, _ in client.messages} == {topic}
    with Client(mesh, client_id=receiver, clean_session=receiver_clean) as client:
        _silence(mesh, client, topic)
        assert _numbers(client) == [999], "what was acknowledged does not come again"


# --- clients that come and go -----------------------------------------------------------------


def test_quick_reconnects_lose_and_repeat_nothing_that_was_acknowledged(mesh: Mesh) -> None:
    topic = secrets.token_hex(4)
    with Client(mesh, clean_session=False, instance=PLAIN) as client:
        client.subscribe(topic, 1)
    received: list[int] = []
    with Client(mesh, instance=PLAIN, edge=1) as publisher:
        for n in range(20):
            infos = [publisher.publish(topic, b"%d" % (n * 10 + m), 1) for m in range(10)]
            with Client(mesh, client_id=client.client_id, clean_session=False, edge=n % 2, instance=PLAIN) as again:
                assert again.session_present
                if n % 3 == 0:
                    again.abort()
            received += _numbers(again)
            for info in infos:
                info.wait_for_publish(10)
    with Client(mesh, client_id=client.client_id, clean_session=False, instance=PLAIN) as again:
        until(lambda: set(received + _numbers(again)) == set(range(200)), what="every message")


def test_a_client_that_does_not_acknowledge_gets_its_messages_again(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh, clean_session=False, manual_ack=True) as client:
        client.subscribe(topic, 1)
        _send(mesh, topic, range(5))
        client.wait_messages(5)
        assert client.duplicates == [False] * 5
        client.abort()
    with Client(mesh, client_id=client.client_id, clean_session=False, edge=1) as again:
        again.wait_messages(5, seconds=15)
        assert _numbers(again) == list(range(5))
        assert again.duplicates == [True] * 5
        assert again.identifiers == client.identifiers


def test_a_retained_message_that_was_not_acknowledged_comes_again(mesh: Mesh) -> None:
    topic = _topic(mesh)
    with Client(mesh) as publisher:
        publisher.publish_and_wait(topic, b"1", 1, retain=True)
        with Client(mesh, clean_session=False, manual_ack=True) as client:
            client.subscribe(f"{topic}/#", 1)
            client.wait_messages(1)
            client.abort()
        with Client(mesh, client_id=client.client_id, clean_session=False, edge=1) as again:
            assert again.wait_messages(1) == [(topic, b"1", 1)]
            assert again.retained == [True]
        with Client(mesh, client_id=client.client_id, clean_session=False) as last:
            _silence(mesh, last, topic)
            assert _numbers(last) == [999], "it was acknowledged"
        publisher.publish_and_wait(topic, b"", 1, retain=True)


# --- faults -----------------------------------------------------------------------------------


def test_what_a_killed_edge_had_under_way_comes_again_under_the_same_identifiers(mesh: Mesh) -> None:
    mesh.wait_healthy()
    topic = _topic(mesh)
    with Client(mesh, clean_session=False, manual_ack=True) as client:
        client.subscribe(topic, 1)
        _send(mesh, topic, range(5))
        client.wait_messages(5)
        mesh.kill("edge-0")
        client.wait_disconnected()
    mesh.wait_healthy()  # before, the client may still count as connected there
    with Client(mesh, client_id=client.client_id, clean_session=False, edge=1) as again:
        again.wait_messages(5)
        assert _numbers(again) == list(range(5))
        assert again.duplicates == [True] * 5
        assert again.identifiers == client.identifiers
    mesh.wait_healthy()


@pytest.mark.parametrize("process", ["edge-0", "edge-1", "session", "router", "nats"])
def test_offline_messages_survive_the_death_of(mesh: Mesh, process: str) -> None:
    mesh.wait_healthy()
    topics = [_topic(mesh), secrets.token_hex(4)]
    clients = []
    for topic, instance in zip(topics, ("", PLAIN), strict=True):
        with Client(mesh, clean_session=False, instance=instance) as client:
            client.subscribe(topic, 1)
        _send(mesh, topic, range(20), instance=instance)
        clients.append(client)
    mesh.kill(process)
    mesh.wait_healthy()
    for client, topic, instance in zip(clients, topics, ("", PLAIN), strict=True):
        _send(mesh, topic, range(20, 25), instance=instance)
        with Client(mesh, client_id=client.client_id, clean_session=False, edge=1, instance=instance) as again:
            assert again.session_present
            again.wait_messages(25)
            assert _numbers(again)[:25] == list(range(25))
