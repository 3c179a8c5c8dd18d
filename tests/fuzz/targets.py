"""What is fuzzed. A target takes any bytes and returns; it raises when the invariant in its docstring does not hold.

The first byte of an input says how the rest is cut into pieces, so that every target also proves that chunking does not
change what comes out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from services.auth.domain.credentials import parse_user_name
from services.auth.domain.token_checks import BadPasswordError, parse_password
from services.edge.commands import CommandError, parse
from services.edge.mqtt.codec import Decoder, encode
from services.edge.mqtt.events import Failed
from services.edge.mqtt.machine import Limits, ServerConnection, State
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Connect, Packet, Publish, PublishRun, Subscribe, Unsubscribe
from services.edge.transports.proxy_header import MAX_V2_BODY_BYTES, ProxyFault, ProxyHeader, ProxyParser
from services.edge.transports.strangers import Strangers
from services.edge.transports.websocket import WebSocketLayer
from services.edge.transports.websocket_handshake import WebSocketOptions
from tests.unit.edge.transports.doubles import Above, Loop, Socket

MAX_PACKET_BYTES = 4096

Target = Callable[[bytes], None]


def pieces(data: bytes) -> Iterator[bytes]:
    """Yield `data[1:]` cut as `data[0]` says: whole, or into pieces of 1 to 255 bytes."""
    size = data[0] if data else 0
    rest = data[1:]
    if not size:
        yield rest
        return
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


def codec(data: bytes) -> None:
    """Any bytes give packets or a MalformedPacketError, the same in any chunks, and hold at most one packet back."""
    whole = Decoder(MAX_PACKET_BYTES)
    expected = whole.feed(data[1:])
    cut = Decoder(MAX_PACKET_BYTES)
    found: list[Packet] = []
    for piece in pieces(data):
        found += cut.feed(piece)
        assert cut.pending_bytes <= MAX_PACKET_BYTES + 255
    assert found == expected
    assert repr(cut.error) == repr(whole.error)
    for packet in expected:
        if not (
            isinstance(packet, Connect) and packet.protocol_level not in (3, 4)
        ):  # nothing behind the level is read
            assert Decoder(MAX_PACKET_BYTES).feed(encode(packet)) == [packet]


_LIMITS = Limits(max_packet_bytes=MAX_PACKET_BYTES, max_inflight=3, max_queued=10, receive_maximum=8)
_MESSAGE = OutboundMessage(b"t", b"x", retain=False)


def _converse(start: bytes, stream: Iterator[bytes]) -> tuple[list[str], bytes, State]:
    """Return events, output and state after a stream of bytes; `start` makes the choices of the driver."""
    machine = ServerConnection(now=0.0, limits=_LIMITS)
    events: list[str] = []
    output = b""
    if start != b"\0":
        machine.feed(encode(Connect(3 if start == b"\1" else 4, "c", True, 0, None, None, None)), 0.0)
        machine.accept(0.0, session_present=False)
        for qos in (0, 1, 2, 2, 1, 1):
            machine.deliver(_MESSAGE, qos, "token")
    for piece in stream:
        new = machine.feed(piece, 0.0)
        while machine.state is State.CONNECTING:
            events += map(repr, new)
            new = machine.accept(0.0, session_present=False)
        for event in new:
            assert not (events and events[-1].startswith("Failed")), "something after the end"
            events.append(repr(event))
            if isinstance(event, Subscribe):
                machine.suback(event.packet_identifier, [0] * len(event.filters))
            elif isinstance(event, Unsubscribe):
                machine.unsuback(event.packet_identifier)
            if isinstance(event, Failed):
                assert machine.state is State.CLOSED
        output += b"".join(machine.take_output())
        assert machine.pending_bytes <= 6 * 65_537 + 255
    return events, output, machine.state


def machine(data: bytes) -> None:
    """Any bytes in any state give events, or end it with Failed; chunking changes neither events nor state."""
    start, rest = data[:1], data[1:]
    expected, _, state = _converse(start, iter((rest[1:],)))
    found, output, end = _converse(start, pieces(rest))
    assert (found, end) == (expected, state)
    assert len(output) <= 400 + 8 * len(rest)
    client = Decoder(1 << 20)
    client.feed(output)
    assert client.error is None, "what we send is MQTT"


_WINDOWS = ((0, 1, 2, 2), (2, 2, 2), (1, 1, 1), (1, 2, 1))


def _serve(start: int, stream: Iterator[bytes], *, gathers_runs: bool) -> tuple[list[str], bytes, State]:
    """Return events, output and state after a stream of bytes; `start` says what is under way and who is answered."""
    machine = ServerConnection(now=0.0, limits=_LIMITS, gathers_runs=gathers_runs)
    machine.feed(encode(Connect(4, "c", True, 0, None, None, None)), 0.0)
    machine.accept(0.0, session_present=False)
    for qos in _WINDOWS[start % len(_WINDOWS)]:
        machine.deliver(_MESSAGE, qos)
    events: list[str] = []
    for piece in stream:
        for event in machine.feed(piece, 0.0):
            if isinstance(event, PublishRun):
                events += map(repr, event.publications())
                if start & 0x80:
                    machine.acknowledge_run(event)
            else:
                events.append(repr(event))
                if start & 0x80 and isinstance(event, Publish) and event.qos:
                    machine.acknowledge(event.packet_identifier, event.qos)
    machine.session.resume(output := machine.take_output())
    return events, b"".join(output), machine.state


def runs(data: bytes) -> None:
    """What comes together has the effects that it has one by one, now and for the next connection of the session."""
    start, rest = data[0] if data else 0, data[1:]
    assert _serve(start, pieces(rest), gathers_runs=True) == _serve(start, pieces(rest), gathers_runs=False)


_OPTIONS = WebSocketOptions(max_message_bytes=5000, max_first_message_bytes=2000)


def _exchange_frames(stream: Iterator[bytes]) -> tuple[bytes, int]:
    above = Above(echo=True)
    socket = Socket()
    layer = WebSocketLayer(Loop().typed(), lambda: above, _OPTIONS, Strangers())
    layer.connection_made(socket.typed())
    for piece in stream:
        if socket.is_closed or socket.is_aborted:
            break
        layer.data_received(piece)
        assert len(socket.take()) <= 20_000 + 8 * len(piece)
    layer.connection_lost(None)
    return bytes(above.received), above.lost_count


def websocket(data: bytes) -> None:
    """Any bytes open, refuse or end the connection; the protocol above gets the same in any chunks, its end once."""
    expected = _exchange_frames(iter((data[1:],)))
    found = _exchange_frames(pieces(data))
    assert found[1] == expected[1]
    # A fault ends the connection where it is seen: what came before it may have been passed on already.
    assert found[0].startswith(expected[0]) or expected[0].startswith(found[0])


def proxy(data: bytes) -> None:
    """Any bytes are a header, a fault, or wait for at most 552 bytes; the same in any chunks."""
    expected = ProxyParser().feed(data[1:])
    parser = ProxyParser()
    fed = 0
    result: ProxyHeader | ProxyFault | None = None
    for piece in pieces(data):
        result = parser.feed(piece)
        fed += len(piece)
        if result is not None:
            break
        assert fed <= 16 + MAX_V2_BODY_BYTES
        assert parser.needed > 0
    assert type(result) is type(expected) or (result is None and not data[1:])
    if isinstance(result, ProxyHeader) and isinstance(expected, ProxyHeader):
        assert result.source == expected.source
        assert result.rest + data[1 + fed :] == expected.rest


def commands(data: bytes) -> None:
    """Any payload of a command is a flat object of few fields, or a CommandError."""
    try:
        body = parse(data)
    except CommandError:
        return
    assert len(body) <= 16
    assert all(isinstance(value, str | int) for value in body.values())


def credentials(data: bytes) -> None:
    """Any password of token mode is a set of tokens or a BadPasswordError, and any user name says who comes."""
    with contextlib.suppress(BadPasswordError):
        assert len(parse_password(data)) <= 3
    with contextlib.suppress(UnicodeDecodeError):
        _, _, instance_id = parse_user_name(data.decode(), "instance")
        assert instance_id


TARGETS: dict[str, Target] = {
    "codec": codec,
    "machine": machine,
    "runs": runs,
    "websocket": websocket,
    "proxy": proxy,
    "commands": commands,
    "credentials": credentials,
}
