"""Listeners of the edge on real sockets, with an echo protocol in place of MQTT and clients we did not write."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from typing_extensions import override
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from services.common.runtime import background
from services.edge.transports import strangers as strangers_module
from services.edge.transports.flash_policy import REQUEST, FlashPolicyProtocol, policy
from services.edge.transports.layer import ByteProtocol
from services.edge.transports.listen import ACCEPTED_AT_ONCE, ListenerSpec, open_listener
from services.edge.transports.strangers import Strangers
from services.edge.transports.tls import ClientCertificates, Reloader, TlsFiles, build_context
from services.edge.transports.websocket import WebSocketLayer
from services.edge.transports.websocket_handshake import WebSocketOptions
from tests.unit.edge.transports.certificates import Authority

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

HOST = "127.0.0.1"
SOURCE = ("192.0.2.7", 5)
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 5 1883\r\n"
V2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x11"
    + bytes([192, 0, 2, 7, 127, 0, 0, 1])
    + struct.pack("!HH", 5, 1883)
    + b"\x01\x00\x02h2"
)
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
"""The beginning of one."""
OPTIONS = WebSocketOptions(max_message_bytes=2 << 20, max_first_message_bytes=2 << 20)


class Echo(ByteProtocol):
    """Sends back what it gets; `?` alone asks for the peer's address, `!` for the end."""

    all: list[Echo]

    def __init__(self) -> None:
        self.all.append(self)
        self.transport: asyncio.Transport
        self.is_made = False
        self.is_lost = False
        self.pauses = 0
        self.is_slow = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_made = True
        self.transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        if data == b"?":
            data = repr(self.transport.get_extra_info("peername")).encode()
        self.transport.write(data)
        if data == b"!":
            self.transport.close()
        if self.is_slow:
            self.transport.pause_reading()

    @override
    def eof_received(self) -> bool:
        return False

    @override
    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True

    @override
    def pause_writing(self) -> None:
        self.pauses += 1
        self.is_slow = True

    @override
    def resume_writing(self) -> None:
        self.is_slow = False
        self.transport.resume_reading()


@pytest.fixture(autouse=True)
def echoes() -> list[Echo]:
    Echo.all = []
    return Echo.all


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server_files(authority: Authority, name: str = "localhost", clients: ClientCertificates = "none") -> TlsFiles:
    certificate, key = authority.issue(name, "server")
    return TlsFiles(
        certificate=str(certificate),
        key=str(key),
        client_ca="" if clients == "none" else str(authority.path),
        client_certificates=clients,
    )


def trusting(authority: Authority, identity: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.path))
    if identity:
        context.load_cert_chain(*authority.issue(identity))
    return context


@contextlib.asynccontextmanager
async def listener(strangers: Strangers | None = None, **layers: Any) -> AsyncGenerator[int]:
    spec = ListenerSpec(name="test", host=HOST, port=0, **layers)
    # A deadline for all that a test waits for: an idle uvloop does not see the alarm of pytest-timeout.
    async with asyncio.timeout(15), open_listener(spec, Echo, strangers) as ports:
        try:
            yield ports[0]
        finally:
            # Else closing the loop hangs when a test has failed and its traceback keeps the connections.
            for transport in [writer.transport for writer in OPENED] + [e.transport for e in Echo.all if e.is_made]:
                transport.abort()
            OPENED.clear()


OPENED: list[asyncio.StreamWriter] = []


async def dial(port: int, tls: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to `port`; `listener` closes what a test leaves open."""
    reader, writer = await asyncio.open_connection(HOST, port, ssl=tls, server_hostname="localhost" if tls else None)
    OPENED.append(writer)
    return reader, writer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a condition of the world has no event
            await asyncio.sleep(0.005)


async def exchange(port: int, sent: bytes, *, tls: ssl.SSLContext | None = None) -> bytes:
    """Send `sent` on a new connection and return all that comes until its end."""
    async with asyncio.timeout(20):
        reader, writer = await dial(port, tls)
        writer.write(sent)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


async def is_refused(port: int, tls: ssl.SSLContext) -> bool:
    """Return whether TLS fails and the protocol never hears of it; TLS 1.3 clients learn it from their first read."""
    try:
        answer = await exchange(port, b"!", tls=tls)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    return not answer and not any(echo.is_made or echo.is_lost for echo in Echo.all)


def uri(port: int, path: str = "/mqtt") -> str:
    return f"ws://{HOST}:{port}{path}"


# --- WebSocket ---------------------------------------------------------------------------------


async def test_websocket_echoes_messages_of_every_length() -> None:
    async with listener(websocket=OPTIONS) as port, connect(uri(port), subprotocols=[Subprotocol("mqtt")]) as client:
        assert client.subprotocol == "mqtt"
        for size in (1, 125, 126, 65_535, 65_536, 1 << 20):
            message = bytes(n & 0xFF for n in range(size))
            await client.send(message)
            received = b""
            while len(received) < size:
                received += cast("bytes", await client.recv())
            assert received == message


async def test_websocket_fragments_reach_the_protocol_as_a_stream() -> None:
    async with listener(websocket=OPTIONS) as port, connect(uri(port, "/")) as client:
        await client.send([b"ab", b"", b"cd", b"e"])
        received = b""
        while len(received) < 5:
            received += cast("bytes", await client.recv())
        assert received == b"abcde"
        await (await client.ping(b"x"))


@pytest.mark.parametrize(
    ("path", "offered", "status"), [("/chat", "mqtt", 404), ("/mqtt", "amqp", 400), ("/mqtt/more", "mqtt", 404)]
)
async def test_websocket_for_something_else_is_refused(path: str, offered: str, status: int) -> None:
    async with listener(websocket=OPTIONS) as port:
        with pytest.raises(InvalidStatus) as refusal:
            await connect(uri(port, path), subprotocols=[Subprotocol(offered)])
        assert refusal.value.response.status_code == status
        assert Echo.all == []


async def test_plain_http_gets_a_short_answer_and_the_end() -> None:
    async with listener(websocket=OPTIONS) as port:
        answer = await exchange(port, b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert len(answer) < 1000


@pytest.mark.parametrize(("message", "code"), [("text", 1003), (bytes(70_000), 1009)])
async def test_fault_of_the_client_is_told_by_its_code(message: str | bytes, code: int) -> None:
    small = WebSocketOptions(max_message_bytes=65_536, max_first_message_bytes=65_536)
    async with listener(websocket=small) as port, connect(uri(port)) as client:
        await client.send(message)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == code
        await until(lambda: Echo.all[0].is_lost)


async def test_close_of_the_protocol_is_a_normal_close_after_the_last_message() -> None:
    async with listener(websocket=OPTIONS) as port, connect(uri(port)) as client:
        await client.send(b"!")
        assert await client.recv() == b"!"
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1000
        await until(lambda: Echo.all[0].is_lost)


async def test_close_of_the_client_ends_the_protocol() -> None:
    async with listener(websocket=OPTIONS) as port:
        async with connect(uri(port)) as client:
            pass
        assert client.close_code == 1000
        await until(lambda: Echo.all[0].is_lost)


async def test_lost_socket_ends_the_protocol() -> None:
    async with listener(websocket=OPTIONS) as port, connect(uri(port)) as client:
        client.transport.abort()
        await until(lambda: Echo.all and Echo.all[0].is_lost)


async def test_half_open_websocket_is_closed_at_its_deadline() -> None:
    hasty = WebSocketOptions(max_message_bytes=1000, max_first_message_bytes=1000, handshake_timeout_s=0.1)
    async with listener(websocket=hasty) as port:
        assert await exchange(port, b"GET /mqtt HTTP/1.1\r\n") == b""
        assert Echo.all == []


async def test_client_that_does_not_read_is_not_read_and_catches_up() -> None:
    chunk = bytes(100_000)
    count = 400
    async with listener(websocket=OPTIONS) as port, connect(uri(port), max_queue=1, max_size=None) as client:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(count):
                await client.send(chunk)
                sent += 1

        async with background(flood()):
            await until(lambda: Echo.all[0].pauses)
            # Neither side holds the flood: the kernel's buffers do, and they are smaller.
            assert sent < count
            received = 0
            while received < count * len(chunk):
                received += len(await client.recv())
        assert received == count * len(chunk)


# --- TLS ---------------------------------------------------------------------------------------


async def test_tls_and_secure_websocket(authority: Authority) -> None:
    context = build_context(server_files(authority))
    trust = trusting(authority)
    async with listener(tls=context) as port:
        assert await exchange(port, b"!", tls=trust) == b"!"
    async with (
        listener(tls=context, websocket=OPTIONS) as port,
        connect(f"wss://localhost:{port}/mqtt", host=HOST, ssl=trust) as client,
    ):
        await client.send(b"!")
        assert await client.recv() == b"!"
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1000


async def test_tls_1_1_is_refused(authority: Authority) -> None:
    old = trusting(authority)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    async with listener(tls=build_context(server_files(authority))) as port:
        assert await is_refused(port, old)


@pytest.mark.parametrize(
    ("wanted", "identity", "is_in"),
    [("required", "device", True), ("required", "", False), ("optional", "", True), ("optional", "device", True)],
)
async def test_client_certificates(
    authority: Authority, wanted: ClientCertificates, identity: str, is_in: bool
) -> None:
    async with listener(tls=build_context(server_files(authority, clients=wanted))) as port:
        if is_in:
            assert await exchange(port, b"!", tls=trusting(authority, identity)) == b"!"
        else:
            assert await is_refused(port, trusting(authority, identity))


async def test_certificate_of_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    trust = trusting(authority)
    trust.load_cert_chain(*Authority(tmp_path, "stranger").issue("device"))
    async with listener(tls=build_context(server_files(authority, clients="optional"))) as port:
        assert await is_refused(port, trust)


async def test_replaced_certificate_is_used_without_a_restart(authority: Authority) -> None:
    files = server_files(authority, "localhost")
    context = build_context(files)
    trust = trusting(authority)
    trust.check_hostname = False

    async def name_seen(port: int) -> str:
        _, writer = await dial(port, trust)
        certificate = writer.get_extra_info("peercert")
        writer.close()
        return str(certificate["subjectAltName"][0][1])

    async with listener(tls=context) as port, background(Reloader(context, files).run(0.01)):
        reader, writer = await dial(port, trust)
        assert await name_seen(port) == "localhost"
        authority.issue("renewed", "server")
        async with asyncio.timeout(20):
            while await name_seen(port) != "renewed":  # noqa: ASYNC110 - the reloader polls
                await asyncio.sleep(0.01)
        writer.write(b"!")
        assert await reader.read() == b"!"
        writer.close()


async def test_silent_tls_client_is_closed_at_its_deadline(authority: Authority) -> None:
    async with listener(tls=build_context(server_files(authority)), handshake_timeout_s=0.1) as port:
        assert await exchange(port, b"") == b""


async def test_bytes_that_are_no_tls_end_the_connection_at_once(authority: Authority) -> None:
    async with listener(tls=build_context(server_files(authority)), handshake_timeout_s=60) as port:
        assert await exchange(port, b"GET / HTTP/1.1\r\n\r\n") == b""


async def test_handshake_in_small_pieces_is_a_handshake(authority: Authority) -> None:
    async with listener(tls=build_context(server_files(authority))) as port, forwarder(port, b"", piece=7) as front:
        assert await exchange(front, b"!", tls=trusting(authority)) == b"!"


def is_counted(strangers: Strangers, in_tls: int) -> bool:
    return strangers.in_tls == in_tls


async def test_the_oldest_in_tls_gives_way_when_it_had_its_time(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers_module, "TLS_S", 0.5)
    strangers = Strangers(limit=20, tls_limit=2)
    context = build_context(server_files(authority))
    async with listener(strangers, tls=context, handshake_timeout_s=60) as port:
        silent = [await dial(port) for _ in range(3)]
        begun = []
        for number in range(3):
            reader, writer = await dial(port)
            writer.write(CLIENT_HELLO)
            begun.append(reader)
            await until(functools.partial(is_counted, strangers, min(number + 1, 2)))
        assert not begun[0].at_eof()
        assert await begun[0].read() == b""
        # TLS is up, and nothing is sent: it still is a stranger.
        await dial(port, trusting(authority))
        assert await begun[1].read() == b""
        assert await exchange(port, b"!", tls=trusting(authority)) == b"!"
        assert len(strangers) >= len(silent)
        assert not any(reader.at_eof() for reader, _ in silent)


# --- PROXY protocol ----------------------------------------------------------------------------


@pytest.mark.parametrize("header", [V1, V2])
async def test_proxy_header_names_the_client(header: bytes) -> None:
    async with listener(proxy_protocol=True) as port:
        reader, writer = await dial(port)
        writer.write(header + b"?")
        assert await reader.readexactly(len(repr(SOURCE))) == repr(SOURCE).encode()
        writer.write(b"!")
        assert await reader.read() == b"!"
        writer.close()


@pytest.mark.parametrize("header", [V1, V2])
async def test_proxy_header_in_pieces(header: bytes) -> None:
    async with listener(proxy_protocol=True) as port:
        reader, writer = await dial(port)
        for byte in header:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        writer.write(b"!")
        assert await reader.read() == b"!"
        writer.close()


async def test_connection_of_the_proxy_itself_keeps_its_address() -> None:
    async with listener(proxy_protocol=True) as port:
        reader, writer = await dial(port)
        own = repr(writer.get_extra_info("sockname")).encode()
        writer.write(b"PROXY UNKNOWN\r\n?")
        assert await reader.readexactly(len(own)) == own
        writer.close()


@pytest.mark.parametrize("sent", [b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", V1[:-3] + b"x" * 100, b""])
async def test_connection_without_a_valid_header_is_closed(sent: bytes) -> None:
    async with listener(proxy_protocol=True, handshake_timeout_s=0.3) as port:
        assert await exchange(port, sent) == b""
        assert Echo.all == []


@pytest.mark.parametrize("header", [V1, V2])
async def test_proxy_header_in_front_of_tls_and_websocket(header: bytes, authority: Authority) -> None:
    """The header and the first flight of TLS come in one segment."""
    context = build_context(server_files(authority))
    trust = trusting(authority)
    choices: list[dict[str, Any]] = [{}, {"websocket": OPTIONS}]
    for layers in choices:
        async with listener(proxy_protocol=True, tls=context, **layers) as port, forwarder(port, header) as front:
            if layers:
                async with connect(f"wss://localhost:{front}/mqtt", host=HOST, ssl=trust) as client:
                    await client.send(b"?")
                    assert await client.recv() == repr(SOURCE).encode()
            else:
                reader, writer = await dial(front, trust)
                writer.write(b"?")
                assert await reader.readexactly(len(repr(SOURCE))) == repr(SOURCE).encode()
                writer.write(bytes(1_000_000))
                assert len(await reader.readexactly(1_000_000)) == 1_000_000
                writer.write(b"!")
                assert await reader.read() == b"!"
                writer.close()


@pytest.mark.parametrize("sent", [V1 + b"no tls", V1, V1 + b"\x16\x03\x01\x02\x00\x01"])
async def test_failed_tls_behind_a_proxy_header_ends_that_connection_only(sent: bytes, authority: Authority) -> None:
    context = build_context(server_files(authority))
    async with listener(proxy_protocol=True, tls=context, handshake_timeout_s=2) as port:
        await exchange(port, sent)
        assert Echo.all == []
        async with forwarder(port, V1) as front:
            assert await exchange(front, b"!", tls=trusting(authority)) == b"!"


async def test_connections_that_come_together_are_accepted_together() -> None:
    loop = asyncio.get_running_loop()
    turn = 0
    turns: list[int] = []
    done = asyncio.Event()

    def count() -> None:
        nonlocal turn
        turn += 1
        if not done.is_set():
            loop.call_soon(count)

    class Noting(Echo):
        @override
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            turns.append(turn)
            if len(turns) == 2 * ACCEPTED_AT_ONCE:
                done.set()

    spec = ListenerSpec(name="test", host=HOST, port=0)
    async with asyncio.timeout(15), open_listener(spec, Noting) as (port,):
        with contextlib.ExitStack() as stack:
            for _ in range(2 * ACCEPTED_AT_ONCE):  # the kernel takes them; nothing is accepted before the loop goes on
                stack.enter_context(socket.create_connection((HOST, port)))
            count()
            await done.wait()
    assert len(set(turns)) <= ACCEPTED_AT_ONCE


async def test_a_closed_listener_accepts_nothing() -> None:
    async with asyncio.timeout(15):
        async with listener() as port:
            assert await exchange(port, b"!") == b"!"
        with pytest.raises(OSError, match="refused"):
            await asyncio.open_connection(HOST, port)


async def test_handshakes_in_progress_end_with_the_listener(authority: Authority) -> None:
    context = build_context(server_files(authority))
    spec = ListenerSpec(name="test", host=HOST, port=0, proxy_protocol=True, tls=context, handshake_timeout_s=60)
    async with asyncio.timeout(20):  # less than a handshake may take
        async with open_listener(spec, Echo) as (port,):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(V1 + b"\x16\x03\x01\x02\x00\x01")
            await writer.drain()
            await exchange(port, b"a connection refused after the one before was accepted")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


@contextlib.asynccontextmanager
async def forwarder(port: int, header: bytes, piece: int = 65_536) -> AsyncGenerator[int]:
    """A proxy in front of `port` that sends `header` together with the client's first bytes, and all in pieces."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, start: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(piece):
                writer.write(start + data)
                start = b""
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await dial(port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, back_writer, header))
            group.create_task(pump(back_reader, writer, b""))

    server = await asyncio.start_server(forward, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


# --- Flash policy and the rest -------------------------------------------------------------------


async def test_flash_policy_is_answered() -> None:
    loop = asyncio.get_running_loop()
    spec = ListenerSpec(name="flash", host=HOST, port=0)
    answer = policy([1883, 8083])
    async with open_listener(spec, lambda: FlashPolicyProtocol(loop, answer, Strangers(), timeout_s=5)) as (port,):
        assert await exchange(port, REQUEST) == answer
        assert await exchange(port, b"GET / HTTP/1.1\r\n\r\n") == b""


async def test_connections_outlive_their_listener() -> None:
    async with asyncio.timeout(20):
        async with open_listener(ListenerSpec(name="test", host=HOST, port=0), Echo) as (port,):
            reader, writer = await asyncio.open_connection(HOST, port)
            await until(lambda: Echo.all)
        writer.write(b"!")
        assert await reader.read() == b"!"
        writer.close()


async def test_layers_add_nothing_to_plain_tcp() -> None:
    async with listener() as port:
        _, writer = await dial(port)
        await until(lambda: Echo.all)
        assert not isinstance(Echo.all[0].transport, WebSocketLayer)
        assert type(Echo.all[0].transport).__module__.startswith("uvloop")
        writer.close()
