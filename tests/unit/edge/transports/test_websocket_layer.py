"""The WebSocket layer between a socket and a protocol, without sockets; the peer is the library's client core."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from services.edge.transports.strangers import Strangers
from services.edge.transports.websocket import WebSocketLayer
from services.edge.transports.websocket_handshake import MAX_HEAD_BYTES, WebSocketOptions
from tests.unit.edge.transports.doubles import Above, Loop, Socket

FIRST_BYTES = 2_000
MESSAGE_BYTES = 100_000

REQUEST = (
    b"GET /mqtt HTTP/1.1\r\nHost: edge:8083\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


class Wire:
    """A layer with its doubles and a client."""

    def __init__(
        self,
        *,
        path: str = "/mqtt",
        subprotocols: tuple[str, ...] = ("mqtt",),
        echo: bool = False,
        half_close: bool = True,
        allowed_origins: tuple[str, ...] = (),
        trust_forwarded_for: bool = False,
    ) -> None:
        self.loop = Loop()
        self.socket = Socket(half_close=half_close)
        self.above = Above(echo=echo)
        self.made = 0
        self.strangers = Strangers()
        options = WebSocketOptions(
            max_message_bytes=MESSAGE_BYTES,
            max_first_message_bytes=FIRST_BYTES,
            allowed_origins=allowed_origins,
            trust_forwarded_for=trust_forwarded_for,
        )
        self.layer = WebSocketLayer(self.loop.typed(), self._make, options, self.strangers)
        self.layer.connection_made(self.socket.typed())
        offered = [Subprotocol(name) for name in subprotocols]
        self.client = ClientProtocol(parse_uri(f"ws://edge{path}"), subprotocols=offered or None)

    def _make(self) -> Above:
        self.made += 1
        return self.above

    def open(self, **headers: str) -> Response:
        request = self.client.connect()
        for name, value in headers.items():
            request.headers[name.replace("_", "-")] = value
        self.client.send_request(request)
        self.push()
        (response,) = self.pull()
        assert isinstance(response, Response)
        return response

    def push(self) -> None:
        for data in self.client.data_to_send():
            if data:
                self.layer.data_received(data)

    def pull(self) -> list[object]:
        self.client.receive_data(self.socket.take())
        if self.socket.has_eof or self.socket.is_closed:
            self.client.receive_eof()
        return list(self.client.events_received())


def opened(*, echo: bool = False, half_close: bool = True) -> Wire:
    wire = Wire(echo=echo, half_close=half_close)
    assert wire.open().status_code == 101
    return wire


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


# --- opening -----------------------------------------------------------------------------------


@pytest.mark.spec("MQTT-6.0.0-4")
@pytest.mark.parametrize("path", ["/mqtt", "/", "/mqtt?token=1"])
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (("mqtt",), "mqtt"),
        (("mqttv3.1",), "mqttv3.1"),
        (("other", "mqttv3.1", "mqtt"), "mqtt"),
        ((), None),
    ],
)
def test_request_for_mqtt_is_accepted(path: str, offered: tuple[str, ...], chosen: str | None) -> None:
    wire = Wire(path=path, subprotocols=offered)
    response = wire.open()
    assert response.status_code == 101
    assert response.headers.get("Sec-WebSocket-Protocol") == chosen
    assert response.headers.get("Sec-WebSocket-Extensions") is None
    assert wire.above.calls == ["made"]
    assert wire.loop.running == []


def test_offered_compression_is_not_taken() -> None:
    wire = Wire()
    assert "Sec-WebSocket-Extensions" not in wire.open(Sec_WebSocket_Extensions="permessage-deflate").headers


@pytest.mark.parametrize(("path", "offered", "status"), [("/chat", ("mqtt",), 404), ("/mqtt", ("chat", "amqp"), 400)])
def test_request_for_something_else_is_refused(path: str, offered: tuple[str, ...], status: int) -> None:
    wire = Wire(path=path, subprotocols=offered)
    assert wire.open().status_code == status
    assert wire.made == 0
    assert wire.socket.has_eof
    assert [timer.seconds for timer in wire.loop.running] == [5.0]
    wire.layer.data_received(b"whatever")
    wire.loop.running[0].callback()
    assert wire.socket.is_aborted
    assert len(wire.strangers) == 1, "it counts until it is gone"
    wire.layer.connection_lost(None)
    assert len(wire.strangers) == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n", b"426"),
        (b"GET /other HTTP/1.1\r\nHost: edge\r\n\r\n", b"404"),
        (REQUEST.replace(b"GET", b"POST") + b"\r\n", b"405"),
        (REQUEST.replace(b"13\r\n", b"8\r\n") + b"\r\n", b"400"),
        (b"\x00\x01\x02\r\n\r\n", b"400"),
        (REQUEST + b"Content-Length: 5\r\n\r\nhello", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000, b"431"),
    ],
)
def test_what_is_no_websocket_request_gets_an_answer_and_the_end(head: bytes, status: bytes) -> None:
    wire = Wire()
    for start in range(0, len(head), 1000):
        wire.layer.data_received(head[start : start + 1000])
    assert wire.socket.take().startswith(b"HTTP/1.1 " + status)
    assert wire.socket.has_eof
    assert wire.made == 0


def test_opening_handshake_has_a_deadline() -> None:
    wire = Wire()
    wire.layer.data_received(REQUEST)
    (timer,) = wire.loop.running
    assert timer.seconds == 10.0
    timer.callback()
    assert wire.socket.is_aborted


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [((), "http://evil", 101), (("https://a",), "https://a", 101), (("https://a",), "https://b", 403)],
)
def test_origin_is_checked_only_against_a_list(allowed: tuple[str, ...], origin: str, status: int) -> None:
    assert Wire(allowed_origins=allowed).open(Origin=origin).status_code == status


def test_client_without_origin_is_let_in_despite_a_list() -> None:
    assert Wire(allowed_origins=("https://a",)).open().status_code == 101


@pytest.mark.parametrize(
    ("trust", "value", "address"),
    [
        (True, "203.0.113.9, 192.0.2.7", ("192.0.2.7", 0)),
        (True, "unknown", ("127.0.0.1", 12345)),
        (False, "192.0.2.7", ("127.0.0.1", 12345)),
    ],
)
def test_forwarded_for_counts_only_when_trusted(trust: bool, value: str, address: tuple[str, int]) -> None:
    wire = Wire(trust_forwarded_for=trust)
    wire.open(X_Forwarded_For=value)
    assert wire.above.transport.get_extra_info("peername") == address


# --- messages ----------------------------------------------------------------------------------


@pytest.mark.spec("MQTT-6.0.0-2")
@given(st.data())
def test_stream_is_the_same_whatever_frames_and_chunks(data: st.DataObject) -> None:
    stream = data.draw(st.binary(min_size=1, max_size=400))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]
    raw = REQUEST + b"\r\n"
    is_open_message = False
    for piece in pieces:
        fin = data.draw(st.booleans())
        raw += masked(Opcode.CONT if is_open_message else Opcode.BINARY, piece, fin=fin)
        is_open_message = not fin
        if data.draw(st.booleans()):
            raw += masked(Opcode.PING, b"now")
    wire = Wire(echo=True)
    while raw:
        size = data.draw(st.integers(1, 200))
        wire.layer.data_received(raw[:size])
        raw = raw[size:]
    assert wire.above.received == stream
    assert wire.socket.written.startswith(b"HTTP/1.1 101")
    assert not wire.socket.has_eof


def test_one_write_is_one_binary_message() -> None:
    wire = opened()
    wire.above.transport.write(b"abc")
    wire.above.transport.write(b"x" * 70_000)
    frames = wire.pull()
    assert [(frame.opcode, len(frame.data), frame.fin) for frame in frames if isinstance(frame, Frame)] == [
        (Opcode.BINARY, 3, True),
        (Opcode.BINARY, 70_000, True),
    ]


def test_frames_of_one_read_reach_the_protocol_at_once() -> None:
    wire = opened(echo=True)
    wire.layer.data_received(b"".join(masked(Opcode.BINARY, bytes([n])) for n in range(50)))
    assert len(wire.pull()) == 1
    assert wire.above.received == bytes(range(50))


def test_ping_is_answered() -> None:
    wire = opened()
    wire.client.send_ping(b"hello")
    wire.push()
    assert wire.pull() == [Frame(Opcode.PONG, b"hello")]


@pytest.mark.spec("MQTT-6.0.0-1")
@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([masked(Opcode.TEXT, b"text")], 1003),
        ([masked(Opcode.TEXT, b"te", fin=False)], 1003),
        ([Frame(Opcode.BINARY, b"unmasked").serialize(mask=False)], 1002),
        ([masked(Opcode.CONT, b"nothing to continue")], 1002),
        ([b"\xf2\x80\x00\x00\x00\x00"], 1002),
        ([b"\x83\x80\x00\x00\x00\x00"], 1002),
        ([b"\x82\xff" + (MESSAGE_BYTES).to_bytes(8, "big")], 1009),
        ([masked(Opcode.BINARY, bytes(FIRST_BYTES), fin=False), masked(Opcode.CONT, b"x")], 1009),
    ],
)
def test_fault_closes_with_its_code_after_what_came_before(frames: list[bytes], code: int) -> None:
    wire = opened()
    wire.layer.data_received(masked(Opcode.BINARY, b"before") + b"".join(frames))
    assert wire.above.received.startswith(b"before")
    assert b"text" not in wire.above.received
    assert wire.above.calls == ["made", "lost"]
    wire.pull()
    assert wire.client.close_rcvd is not None
    assert wire.client.close_rcvd.code == code
    assert wire.socket.has_eof
    wire.layer.data_received(b"more")
    wire.layer.connection_lost(None)
    assert wire.above.lost_count == 1
    assert wire.loop.running == []


def test_messages_may_be_long_once_the_protocol_has_answered() -> None:
    wire = opened()
    wire.above.transport.write(b"CONNACK")
    wire.layer.data_received(masked(Opcode.BINARY, b"a"))
    wire.layer.data_received(masked(Opcode.BINARY, bytes(MESSAGE_BYTES)))
    assert len(wire.above.received) == 1 + MESSAGE_BYTES
    wire.layer.data_received(masked(Opcode.BINARY, bytes(MESSAGE_BYTES + 1)))
    wire.pull()
    assert wire.client.close_rcvd is not None
    assert wire.client.close_rcvd.code == 1009


@given(st.lists(st.binary(max_size=300), max_size=10), st.booleans())
def test_any_bytes_end_in_an_open_or_a_closing_connection(chunks: list[bytes], is_open: bool) -> None:
    wire = opened(echo=True) if is_open else Wire(echo=True)
    for chunk in chunks:
        wire.layer.data_received(chunk)
    wire.layer.connection_lost(None)
    assert wire.above.lost_count == wire.made
    assert wire.loop.running == []


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.booleans(), st.integers(0, 300), st.binary(max_size=8)).map(
            lambda f: (
                bytes([f[0], (0x80 if f[1] else 0) | min(f[2], 126)])
                + (f[2].to_bytes(2, "big") if f[2] >= 126 else b"")
                + (b"\0\0\0\0" if f[1] else b"")
                + f[3].ljust(f[2], b"\0")
            )
        ),
        max_size=12,
    )
)
def test_any_frames_end_in_an_open_or_a_closing_connection(frames: list[bytes]) -> None:
    wire = opened(echo=True)
    for frame in frames:
        wire.layer.data_received(frame)
    wire.layer.connection_lost(None)
    assert wire.above.lost_count == 1


# --- closing -----------------------------------------------------------------------------------


def test_close_of_the_peer_is_answered_and_ends_the_connection() -> None:
    wire = opened()
    wire.client.send_close(1001, "leaving")
    wire.push()
    assert wire.above.calls == ["made", "lost"]
    assert wire.above.transport.is_closing()
    wire.above.transport.write(b"too late")
    wire.pull()
    assert wire.client.close_sent == wire.client.close_rcvd == Close(1001, "leaving")
    assert wire.client.state is State.CLOSED
    assert wire.socket.has_eof


def test_close_of_the_protocol_waits_for_the_peer() -> None:
    wire = opened()
    wire.above.transport.write(b"last")
    wire.above.transport.close()
    assert wire.above.transport.is_closing()
    assert not wire.socket.has_eof
    frames = wire.pull()
    assert [frame.opcode for frame in frames if isinstance(frame, Frame)] == [Opcode.BINARY, Opcode.CLOSE]
    wire.push()
    assert wire.socket.has_eof
    assert [timer.seconds for timer in wire.loop.running] == [5.0]
    assert wire.above.lost_count == 0
    wire.layer.connection_lost(None)
    assert wire.above.lost_count == 1


def test_peer_that_never_answers_the_close_is_dropped() -> None:
    wire = opened()
    wire.above.transport.close()
    wire.layer.data_received(masked(Opcode.BINARY, b"not a close") + masked(Opcode.PING, b""))
    assert wire.above.received == b""
    wire.loop.running[0].callback()
    assert wire.socket.is_aborted


def test_protocol_that_stopped_reading_still_sees_the_end_of_its_own_close() -> None:
    wire = opened()
    wire.above.transport.pause_reading()
    wire.above.transport.close()
    assert wire.socket.is_reading


def test_transport_without_half_close_is_closed() -> None:
    wire = opened(half_close=False)
    wire.client.send_close(1000)
    wire.push()
    assert wire.socket.is_closed
    assert not wire.socket.is_aborted


# --- flow control ------------------------------------------------------------------------------


def test_pauses_pass_through_in_both_directions() -> None:
    wire = opened()
    wire.above.transport.set_write_buffer_limits(high=5000)
    assert wire.socket.limits == (5000, None)
    wire.layer.pause_writing()
    wire.layer.resume_writing()
    assert wire.above.calls == ["made", "pause", "resume"]
    wire.above.transport.pause_reading()
    wire.above.transport.pause_reading()
    assert not wire.socket.is_reading
    wire.above.transport.resume_reading()
    wire.above.transport.resume_reading()
    assert wire.socket.is_reading


def test_peer_that_pings_without_reading_is_not_read() -> None:
    wire = opened()
    wire.layer.pause_writing()
    wire.layer.data_received(masked(Opcode.PING, b"") * 100)
    assert not wire.socket.is_reading
    wire.above.transport.pause_reading()
    wire.above.transport.resume_reading()
    assert not wire.socket.is_reading
    wire.layer.resume_writing()
    assert wire.socket.is_reading
