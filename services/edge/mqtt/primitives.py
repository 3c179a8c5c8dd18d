"""Data representations of MQTT 3.1.1 section 1.5 and the remaining length of section 2.2.3."""

# ruff: noqa: PLR2004 - bit masks and lengths of the wire format; names would hide the layout

from __future__ import annotations

from services.edge.mqtt.errors import LocalUseError, MalformedPacketError

MAX_REMAINING_LENGTH = 268_435_455
"""The most that four bytes of seven bits can say (MQTT 3.1.1 section 2.2.3)."""

MAX_FIELD_BYTES = 65_535
"""Length of strings and binary fields is a 16-bit number."""


IDENTIFIERS = [number.to_bytes(2, "big") for number in range(MAX_FIELD_BYTES + 1)]
"""Every packet identifier in its two bytes: some 3 MB for an edge, and a third of the cost of an acknowledgement."""

IDENTIFIERS_HIGH = bytes(number >> 8 for number in range(MAX_FIELD_BYTES + 1))
"""The first byte of every packet identifier, in their order."""
IDENTIFIERS_LOW = bytes(range(256)) * 256
"""The second byte."""


def decode_text(raw: bytes) -> str:
    """Return a UTF-8 encoded string of the wire as `str`.

    Raises:
        MalformedPacketError: ill-formed UTF-8 (surrogates are), or U+0000 inside.
    """
    try:
        text = raw.decode()  # strict; keeps a BOM as U+FEFF [MQTT-1.5.3-3]
    except UnicodeDecodeError as error:
        raise MalformedPacketError("MQTT-1.5.3-1", "a string is not UTF-8") from error
    if "\0" in text:
        raise MalformedPacketError("MQTT-1.5.3-2", "a string holds U+0000")
    return text


def read_field(buffer: bytes, position: int, stop: int, requirement: str) -> bytes:
    """Return the length-prefixed field at `position`; it takes 2 + its length bytes.

    Args:
        buffer: Holds the packet.
        position: Where the length prefix starts.
        stop: End of the packet.
        requirement: Tag of the statement that a missing or cut field breaks.

    Raises:
        MalformedPacketError: the field does not fit before `stop`.
    """
    start = position + 2
    if start > stop:
        raise MalformedPacketError(requirement, "a field is missing")
    end = start + (buffer[position] << 8 | buffer[position + 1])
    if end > stop:
        raise MalformedPacketError(requirement, "a field is longer than its packet")
    return buffer[start:end]


def read_identifier(buffer: bytes, position: int, stop: int, requirement: str) -> int:
    """Return the packet identifier at `position`.

    Raises:
        MalformedPacketError: it is cut off, or zero.
    """
    if position + 2 > stop:
        raise MalformedPacketError(requirement, "the packet identifier is missing")
    packet_identifier = buffer[position] << 8 | buffer[position + 1]
    if packet_identifier == 0:
        raise MalformedPacketError(requirement, "the packet identifier is zero")
    return packet_identifier


def encode_remaining_length(length: int) -> bytes:
    """Return a remaining length in its one to four bytes.

    Raises:
        LocalUseError: four bytes cannot hold it.
    """
    if length < 0x80:
        return bytes((length,))
    if length > MAX_REMAINING_LENGTH:
        raise LocalUseError(f"a packet of {length} bytes is too long for MQTT")
    encoded = bytearray()
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def encode_field(raw: bytes) -> bytes:
    """Return binary data with its length prefix.

    Raises:
        LocalUseError: it is longer than 65,535 bytes.
    """
    if len(raw) > MAX_FIELD_BYTES:
        raise LocalUseError(f"a field of {len(raw)} bytes is too long for MQTT")
    return len(raw).to_bytes(2, "big") + raw


def encode_text(text: str) -> bytes:
    """Return a string with its length prefix.

    Raises:
        LocalUseError: it is too long or holds U+0000 or a surrogate.
    """
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise LocalUseError("a string with a surrogate cannot be sent") from error
    if b"\0" in raw:
        raise LocalUseError("a string with U+0000 cannot be sent")
    return encode_field(raw)


def encode_identifier(packet_identifier: int) -> bytes:
    """Return a packet identifier as two bytes.

    Raises:
        LocalUseError: it is not within 1..65535.
    """
    if not 1 <= packet_identifier <= MAX_FIELD_BYTES:
        raise LocalUseError(f"{packet_identifier} is no packet identifier")
    return packet_identifier.to_bytes(2, "big")
