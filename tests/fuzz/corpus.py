"""Inputs to begin with: well-formed ones, made from the conformance exchanges and from examples of each format."""

from __future__ import annotations

import random
import struct

from services.edge.mqtt.codec import encode
from services.edge.mqtt.packets import Connect, PubAck, PubComp, Publish, PubRec, PubRel, Will
from tests.conformance import exchange

_REQUEST = (
    b"GET /mqtt HTTP/1.1\r\nHost: edge:8083\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\1\2\3\4") -> bytes:
    """Return a WebSocket frame of a client."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return bytes((opcode | (0x80 if fin else 0),)) + length + mask + masked


def _mqtt() -> list[bytes]:
    connects = [
        encode(Connect(level, "client", clean, 60, "user", b"password", Will("will", b"payload", 1, retain=True)))
        for level in (3, 4)
        for clean in (True, False)
    ]
    sent = [step.data for each in exchange.load() for step in each.steps if step.action == "send" and step.data]
    return connects + [data for data in sent if len(data) < 2000]


def _runs() -> list[bytes]:
    alike = [
        b"".join(encode(Publish("t", b"%d" % number, qos, False, False, number * bool(qos))) for number in (3, 2, 1))
        for qos in (0, 1, 2)
    ]
    answers = [b"".join(encode(answer(number)) for number in (1, 2, 3)) for answer in (PubAck, PubRec, PubRel, PubComp)]
    return [*alike, *answers, *(alike[2] + each for each in answers), b"".join(alike + answers)]


def make(name: str) -> list[bytes]:
    """Return the corpus of a target; the first byte of an input is its chunking."""
    if name == "codec":
        return [b"\0" + data for data in _mqtt()]
    if name in {"machine", "runs"}:
        starts = (b"\0\0", b"\1\0", b"\2\0", b"\x81\x0c")
        return [start + data for data in _mqtt() + _runs() for start in starts]
    if name == "websocket":
        streams = [frame(2, data) for data in _mqtt()[:40]]
        streams += [frame(2, b"ab", fin=False) + frame(9, b"ping") + frame(0, b"cd"), frame(1, b"text")]
        streams += [frame(8, b"\x03\xe8bye"), frame(10, b""), frame(2, bytes(1900)), frame(2, b"x", mask=bytes(4))]
        return [b"\0" + _REQUEST + stream for stream in streams] + [b"\7" + _REQUEST[:100]]
    if name == "proxy":
        return [
            b"\0PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nrest",
            b"\0PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
            b"\0PROXY UNKNOWN anything\r\n",
            b"\0" + _SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12) + b"rest",
            b"\0" + _SIGNATURE + b"\x21\x21\x00\x24" + bytes(36),
            b"\0" + _SIGNATURE + b"\x20\x00\x00\x00",
            b"\0" + _SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
        ]
    if name == "commands":
        return [
            b'{"token":"abc","type":"RW"}',
            b'{"maxPushNum":30,"pushOrder":"DESC"}',
            b'{"order":"true"}',
            b'{"a":[1,{"b":null}],"c":1e999,"d":-0,"e":"\\ud800"}',
            b"[" * 500,
        ]
    return [
        b"R|tokenA|W|tokenB",
        b"RW|token",
        b"Signature|key|mqtt-demo",
        b"Token|key|mqtt-demo",
        "DeviceCredential|schlüssel|".encode(),
    ]


_INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\x7f",
    b"\xff\xff",
    b"\0\0",
    b"\xed\xa0\x80",
    b"\xc0\x80",
)


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Return a new input: one of the corpus with one to eight changes."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 8))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 16)))
        elif kind == 3:
            del data[at : at + rng.choice((1, 1, 2, 4, 16, 64))]
        elif kind == 4:
            data[at:at] = rng.choice(_INTERESTING)
        elif kind == 5:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            data[at:at] = other[start : start + rng.choice((2, 8, 32, 256))]
        elif kind == 6 and data:
            (value,) = struct.unpack(">B", data[at % len(data) : at % len(data) + 1])
            data[at % len(data)] = (value + rng.choice((-1, 1))) % 256
        else:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.choice((1, 4, 32))]
    if rng.random() < 0.5 and data:
        data[0] = rng.choice((0, 1, 2, 3, 7, 31))
    return bytes(data[:4000])
