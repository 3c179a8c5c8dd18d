"""PROXY protocol headers, version 1 and 2, without I/O.

Specification: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt. `needed` tells how many more bytes surely
belong to the header, so that a reader can stop exactly behind it: what follows may be a TLS handshake.
"""

# ruff: noqa: PLR2004 - lengths and nibbles of the wire format; names would hide the layout

from __future__ import annotations

import ipaddress

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_PREFIX = b"PROXY "

MAX_V1_BYTES = 107
"""Longest line of version 1, CRLF included (section 2.1)."""
MAX_V2_BODY_BYTES = 536
"""Longest rest of version 2: with its 16 bytes it still fits the smallest TCP segment (section 2.2)."""

_MIN_BYTES = len(b"PROXY UNKNOWN\r\n")
_V2_BYTES = 16

_LOCAL = 0x20
_PROXY = 0x21

_ADDRESS_BYTES = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}
"""Bytes of the addresses by family: unspecified, TCP over IPv4, TCP over IPv6, Unix stream."""


class ProxyHeader:
    """A complete header.

    Attributes:
        source: address of the client; None: that of the socket counts (LOCAL, UNKNOWN, a Unix socket).
        rest: what was fed behind the header.
    """

    __slots__ = ("rest", "source")

    def __init__(self, source: tuple[str, int] | None, rest: bytes) -> None:
        self.source = source
        self.rest = rest


class ProxyFault:
    """Why the bytes are no PROXY header."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class ProxyParser:
    """Parses the header of one connection."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    @property
    def needed(self) -> int:
        """Bytes that must follow at least; more may belong to what comes behind the header."""
        data = self._data
        if len(data) < _MIN_BYTES:
            return _MIN_BYTES - len(data)
        if data.startswith(_V1_PREFIX):
            return 1 if data.endswith(b"\r") else 2
        if len(data) < _V2_BYTES:
            return _V2_BYTES - len(data)
        return _V2_BYTES + int.from_bytes(data[14:16], "big") - len(data)

    def feed(self, data: bytes) -> ProxyHeader | ProxyFault | None:
        """Take bytes; returns None while more are needed. Not called again after a header or a fault."""
        self._data += data
        data = self._data
        if data.startswith(_V1_PREFIX):
            return _parse_v1(data)
        if data.startswith(_SIGNATURE):
            return _parse_v2(data)
        if _V1_PREFIX.startswith(data) or _SIGNATURE.startswith(data):
            return None
        return ProxyFault("no PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | ProxyFault | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        return ProxyFault("line without end") if len(data) >= MAX_V1_BYTES else None
    fields = data[:end].split(b" ")
    rest = data[end + 2 :]
    if fields[1] == b"UNKNOWN":
        return ProxyHeader(None, rest)
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        return ProxyFault("line not understood")
    version = 4 if fields[1] == b"TCP4" else 6
    source = _text_address(fields[2], version)
    port = _text_port(fields[4])
    if source is None or port is None or _text_address(fields[3], version) is None or _text_port(fields[5]) is None:
        return ProxyFault("addresses not understood")
    return ProxyHeader((source, port), rest)


def _text_address(raw: bytes, version: int) -> str | None:
    if b"%" in raw:  # a zone has no place in the header, though `ipaddress` knows it
        return None
    try:
        address = ipaddress.ip_address(raw.decode("ascii"))
    except ValueError:
        return None
    return str(address) if address.version == version else None


def _text_port(raw: bytes) -> int | None:
    # isdigit() on bytes is ASCII only. Leading zeros are forbidden (section 2.1).
    if not raw.isdigit() or len(raw) > 5 or (len(raw) > 1 and raw.startswith(b"0")):
        return None
    port = int(raw)
    return port if port <= 0xFFFF else None


def _parse_v2(data: bytes) -> ProxyHeader | ProxyFault | None:
    if len(data) < _V2_BYTES:
        return None
    command = data[12]
    if command not in (_LOCAL, _PROXY):
        return ProxyFault("unknown version or command")
    length = int.from_bytes(data[14:16], "big")
    if length > MAX_V2_BODY_BYTES:
        return ProxyFault("header too long")
    if command == _PROXY and _ADDRESS_BYTES.get(data[13], MAX_V2_BODY_BYTES + 1) > length:
        return ProxyFault("unknown or truncated address family")
    if len(data) < _V2_BYTES + length:
        return None
    # The addresses come first; the TLVs behind them hold nothing that is used here.
    source = _binary_address(data[13], data) if command == _PROXY else None
    return ProxyHeader(source, data[_V2_BYTES + length :])


def _binary_address(family: int, data: bytes) -> tuple[str, int] | None:
    if family == 0x11:
        return str(ipaddress.IPv4Address(data[16:20])), int.from_bytes(data[24:26], "big")
    if family == 0x21:
        return str(ipaddress.IPv6Address(data[16:32])), int.from_bytes(data[48:50], "big")
    return None
