"""Bad bytes and bad manners close the connection that brought them, and nothing else."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.edge.mqtt import codec
from services.edge.mqtt.packets import Connect, PingReq, PubAck, Publish
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.raw import RawClient
from tests.support.wait import until

pytestmark = pytest.mark.e2e


def _connect(mesh: Mesh, keep_alive_s: int = 60) -> socket.socket:
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    sock = socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=30)
    sock.sendall(codec.encode(Connect(4, client_id, True, keep_alive_s, user, password.encode(), None)))
    assert sock.recv(4) == b"\x20\x02\x00\x00"
    return sock


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x10\xff\xff\xff\xff\x7f",
        b"\x10\xff\xff\xff\x7f" + b"\x00" * 10,
        codec.encode(PingReq()),
    ],
)
def test_bytes_that_are_no_connect_close_the_connection(mesh: Mesh, data: bytes) -> None:
    with Client(mesh) as witness, socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=30) as sock:
        sock.sendall(data)
        assert _is_closed(sock)
        witness.publish_and_wait(f"{mesh.topic}/x", b"x")


@pytest.mark.parametrize(
    "data",
    [
        b"\x36\x03\x00\x01a",  # QoS 3
        b"\x30\x03\x00\x01#",  # wildcard in a topic name
        b"\x82\x02\x00\x01",  # SUBSCRIBE without a filter
        b"\x10\x00",  # a second CONNECT
        b"\x20\x02\x00\x00",  # CONNACK from a client
        b"\xf0\x00",  # reserved packet type
    ],
)
def test_malformed_packets_close_the_connection(mesh: Mesh, data: bytes) -> None:
    with Client(mesh) as witness, _connect(mesh) as sock:
        sock.sendall(data)
        assert _is_closed(sock)
        witness.publish_and_wait(f"{mesh.topic}/x", b"x")


def test_silence_beyond_the_keep_alive_closes_the_connection(mesh: Mesh) -> None:
    with _connect(mesh, keep_alive_s=1) as sock:
        assert _is_closed(sock)


def test_a_connect_may_come_byte_by_byte(mesh: Mesh) -> None:
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    with socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in codec.encode(Connect(4, client_id, True, 60, user, password.encode(), None)):
            sock.sendall(bytes((byte,)))
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        sock.sendall(codec.encode(PingReq()))
        assert sock.recv(2) == b"\xd0\x00"


def test_packets_sent_with_connect_are_handled_after_it(mesh: Mesh) -> None:
    client_id = mesh.client_id(secrets.token_hex(4))
    user, password = mesh.login(client_id)
    connect = codec.encode(Connect(4, client_id, True, 60, user, password.encode(), None))
    with socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=30) as sock:
        sock.sendall(connect + codec.encode(PingReq()))
        received = b""
        while len(received) < 6:
            received += sock.recv(6)
        assert received == b"\x20\x02\x00\x00\xd0\x00"


HALF_CONNECT = codec.encode(Connect(4, "half", True, 60, None, None, None))[:8]
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
HALF_REQUEST = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: webs"


def _rss_bytes(mesh: Mesh, edge: int = 0) -> int:
    status = Path(f"/proc/{mesh.pid(f'edge-{edge}')}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024


@contextlib.contextmanager
def _growth_below(mesh: Mesh, limit: int) -> Iterator[None]:
    """Watch the memory of the first edge while the body runs."""
    before = peak = _rss_bytes(mesh)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, _rss_bytes(mesh))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert peak - before < limit, f"the edge grew by {(peak - before) / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("transport", "data"),
    [
        ("tcp", b""),
        ("tcp", HALF_CONNECT),
        ("tls", b""),
        ("tls", CLIENT_HELLO),
        ("ws", b""),
        ("ws", HALF_REQUEST),
        ("wss", CLIENT_HELLO),
    ],
)
def test_half_open_connections_leave_others_alone(mesh: Mesh, transport: str, data: bytes) -> None:
    with contextlib.ExitStack() as stack:
        witness = stack.enter_context(Client(mesh))
        for _ in range(300):
            sock = socket.create_connection(("127.0.0.1", mesh.mqtt_port(transport=transport)), timeout=30)
            stack.enter_context(sock).sendall(data)
        started = time.monotonic()
        with Client(mesh, transport=transport) as late:
            for n in range(20):
                late.publish_and_wait(f"{mesh.topic}/x", b"%d" % n)
                witness.publish_and_wait(f"{mesh.topic}/x", b"%d" % n)
        assert time.monotonic() - started < 25  # one or two when nothing else runs


def test_strangers_share_a_budget_for_what_they_make_the_edge_hold(mesh: Mesh) -> None:
    large = b"\x10" + bytes.fromhex("a0ff13") + b"\0\4MQTT\4\2\0\0\xff\xff" + bytes(65_536)
    with contextlib.ExitStack() as stack, _growth_below(mesh, 60 << 20):
        sockets = [
            stack.enter_context(socket.create_connection(("127.0.0.1", mesh.mqtt_port()), timeout=30))
            for _ in range(500)
        ]
        refused = 0
        for sock in sockets:
            try:
                sock.sendall(large)
            except OSError:
                refused += 1
        with Client(mesh) as witness:
            witness.publish_and_wait(f"{mesh.topic}/x", b"x")


@pytest.mark.parametrize("qos", [0, 1])
def test_a_flood_is_slowed_by_tcp_and_not_buffered(mesh: Mesh, qos: int) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    numbers = range(1, 1001)
    batch = b"".join(codec.encode(Publish(topic, bytes(1000), qos, False, False, n if qos else 0)) for n in numbers)
    with RawClient(mesh) as flooder, Client(mesh) as witness, Client(mesh, edge=1) as other:
        other.subscribe(f"{topic}/calm", 1)
        stop = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    flooder.socket.sendall(batch)  # it reads no answer

        flooder.socket.settimeout(30)
        flooding = threading.Thread(target=flood)
        with _growth_below(mesh, 80 << 20):
            flooding.start()
            for n in range(30):
                witness.publish_and_wait(f"{topic}/calm", b"%d" % n)
            assert len(other.wait_messages(30)) == 30
            stop.set()
            flooder.socket.shutdown(socket.SHUT_RDWR)
            flooding.join(30)


def test_a_reader_that_stops_costs_bounded_memory_and_others_nothing(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with RawClient(mesh) as stuck, Client(mesh) as reader, Client(mesh, edge=1) as sender:
        stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        assert stuck.subscribe(f"{topic}/#", 0) == 0
        reader.subscribe(f"{topic}/#", 1)
        with _growth_below(mesh, 60 << 20):
            for n in range(100):
                for part in range(10):
                    sender.publish(f"{topic}/bulk", bytes(20_000), 0 if part else 1)
                sender.publish_and_wait(f"{topic}/last", b"%d" % n)
        until(
            lambda: sum(1 for name, _, _ in reader.messages if name.endswith("/last")) == 100,
            what="every message of QoS 1 at the reader",
        )
        # It is still connected, and goes on where it has room again: only messages of QoS 0 are missing.
        stuck.socket.settimeout(0.5)
        seen: list[str] = []

        def has_caught_up() -> bool:
            sender.publish_and_wait(f"{topic}/end", b"end")
            with contextlib.suppress(TimeoutError):
                while not seen or seen[-1] != f"{topic}/end":
                    packet = stuck.receive()
                    assert isinstance(packet, Publish)
                    seen.append(packet.topic)
            return seen[-1] == f"{topic}/end"

        until(has_caught_up, what="the reader that stopped gets messages again")
        assert len(seen) < 1100


@pytest.mark.timeout(240)
def test_a_subscriber_of_qos_1_that_acknowledges_nothing_loses_its_connection_only(mesh: Mesh) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    with RawClient(mesh) as stuck, RawClient(mesh, edge=1) as sender, Client(mesh) as reader:
        assert stuck.subscribe(topic, 1) == 1
        reader.subscribe(topic, 1)
        with _growth_below(mesh, 60 << 20):
            for start in range(1, 12_001, 500):
                sender.send(*(Publish(topic, bytes(2000), 1, False, False, n) for n in range(start, start + 500)))
                for _ in range(500):
                    assert isinstance(sender.receive(), PubAck)
                # Else it would be closed, too, when it is that far behind on a busy machine.
                assert len(reader.wait_messages(start + 499)) == start + 499
        until(lambda: mesh.json("status", stuck.client_id)["online"] == 0, what="it is closed")
