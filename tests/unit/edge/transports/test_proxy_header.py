"""PROXY headers: the specification's forms, any chunking, any bytes."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.transports.proxy_header import (
    MAX_V1_BYTES,
    MAX_V2_BODY_BYTES,
    ProxyFault,
    ProxyHeader,
    ProxyParser,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
REST = b"\x16\x03\x01rest"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body


V4 = (
    ipaddress.ip_address("192.0.2.7").packed + ipaddress.ip_address("198.51.100.1").packed + struct.pack("!HH", 5, 1883)
)
V6 = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("::1").packed + struct.pack("!HH", 40000, 8883)

GOOD = [
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 5 1883\r\n", ("192.0.2.7", 5)),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535)),
    (b"PROXY TCP6 2001:db8::7 ::1 40000 8883\r\n", ("2001:db8::7", 40000)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    (b"PROXY UNKNOWN odd\rreturn\r\n", None),
    (v2(0x21, 0x11, V4), ("192.0.2.7", 5)),
    (v2(0x21, 0x21, V6), ("2001:db8::7", 40000)),
    (v2(0x21, 0x11, V4 + b"\x01\x00\x02h2"), ("192.0.2.7", 5)),
    (v2(0x21, 0x11, V4 + bytes(MAX_V2_BODY_BYTES - len(V4))), ("192.0.2.7", 5)),
    (v2(0x21, 0x31, bytes(216)), None),
    (v2(0x21, 0x00, b""), None),
    (v2(0x20, 0x00, b""), None),
    (v2(0x20, 0x11, V4), None),
    (v2(0x20, 0x99, b"any"), None),
]

BAD = [
    b"GET / HTTP/1.1\r\n",
    b"\x10\x0c\x00\x04MQTT",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 5\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 5 1883 7\r\n",
    b"PROXY TCP4 2001:db8::7 ::1 5 1883\r\n",
    b"PROXY TCP6 192.0.2.7 198.51.100.1 5 1883\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 5 1883\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.999 5 1883\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 05 1883\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 1883\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 1883\r\n",
    b"PROXY TCP4  192.0.2.7 198.51.100.1 5 1883\r\n",
    b"PROXY UDP4 192.0.2.7 198.51.100.1 5 1883\r\n",
    b"PROXY \r\n0123456789",
    b"PROXY UNKNOWN " + b"x" * MAX_V1_BYTES + b"\r\n",
    v2(0x11, 0x11, V4),
    v2(0x22, 0x11, V4),
    v2(0x21, 0x12, V4),
    v2(0x21, 0x11, V4[:-1]),
    v2(0x21, 0x21, V6[:-1]),
    v2(0x20, 0x00, bytes(MAX_V2_BODY_BYTES + 1)),
]


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_header_whole(header: bytes, source: tuple[str, int] | None) -> None:
    result = ProxyParser().feed(header + REST)
    assert isinstance(result, ProxyHeader)
    assert (result.source, result.rest) == (source, REST)


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_header_byte_by_byte(header: bytes, source: tuple[str, int] | None) -> None:
    parser = ProxyParser()
    for position in range(len(header) - 1):
        assert parser.feed(header[position : position + 1]) is None
    result = parser.feed(header[-1:])
    assert isinstance(result, ProxyHeader)
    assert (result.source, result.rest) == (source, b"")


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_reading_what_is_needed_stops_exactly_behind_the_header(header: bytes, source: tuple[str, int] | None) -> None:
    parser = ProxyParser()
    stream = header + REST
    position = 0
    result = None
    while result is None:
        needed = parser.needed
        assert needed > 0
        result = parser.feed(stream[position : position + needed])
        position += needed
    assert isinstance(result, ProxyHeader)
    assert (result.source, result.rest, position) == (source, b"", len(header))


@pytest.mark.parametrize("header", BAD)
def test_what_is_no_header_is_a_fault_whole_and_byte_by_byte(header: bytes) -> None:
    assert isinstance(ProxyParser().feed(header), ProxyFault)
    parser = ProxyParser()
    results = []
    for byte in header:
        results.append(parser.feed(bytes([byte])))
        if results[-1] is not None:
            break
    assert isinstance(results[-1], ProxyFault)


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", SIGNATURE, SIGNATURE + b"\x21\x11"]),
    st.lists(st.binary(max_size=300), max_size=8),
)
def test_any_bytes_give_a_header_a_fault_or_a_bounded_wait(start: bytes, chunks: list[bytes]) -> None:
    parser = ProxyParser()
    fed = 0
    for chunk in [start, *chunks]:
        result = parser.feed(chunk)
        fed += len(chunk)
        if result is not None:
            assert isinstance(result, ProxyHeader | ProxyFault)
            return
        assert fed < 16 + MAX_V2_BODY_BYTES
        assert 0 < parser.needed <= 16 + MAX_V2_BODY_BYTES - fed
