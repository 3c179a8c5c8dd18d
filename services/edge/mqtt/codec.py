"""Bytes to packets and packets to bytes; knows the format of packets and no rule about their order.

`Decoder` is made for large chunks of PUBLISH: one pass with local variables and one slice each for
topic and payload. Whatever the chunking, the packets are the same.
"""

# ruff: noqa: PLR2004 - bit masks and lengths of the wire format; names would hide the layout

from __future__ import annotations

from services.edge.mqtt.answers import AnswerRun, PubRelRun
from services.edge.mqtt.bodies import check_fixed_header, decode_body, decode_topic_name, without_flags
from services.edge.mqtt.encoding import encode
from services.edge.mqtt.errors import MalformedPacketError
from services.edge.mqtt.packets import Connect, Packet, Publish, PublishRun

__all__ = ["Decoder", "TopicCache", "encode"]

_MAX_CACHED_TOPICS = 4096
_MAX_CACHED_TOPIC_BYTES = 256

_MAX_LENGTH_BYTES = 4
"""A remaining length has at most four bytes (MQTT 3.1.1 section 2.2.3)."""


class TopicCache:
    """Validated topic names by their bytes; at most 4096 of at most 256 bytes, about 3 MB."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[bytes, str] = {}
        """Read by the decoder's loop; written by `decode` alone."""

    def decode(self, raw: bytes) -> str:
        """Return the topic name of `raw`, which is not in `entries`.

        Raises:
            MalformedPacketError: it is no topic name.
        """
        topic = decode_topic_name(raw)
        if len(raw) <= _MAX_CACHED_TOPIC_BYTES:
            # Emptied when full: cheaper than keeping an order, and the hot topics are back at once.
            if len(self.entries) >= _MAX_CACHED_TOPICS:
                self.entries.clear()
            self.entries[raw] = topic
        return topic


# Shared by all connections: it only holds what bytes mean, and one per connection would let each
# idle client keep megabytes.
_TOPICS = TopicCache()


class Decoder:
    """Turns the bytes of one connection into packets."""

    __slots__ = (
        "_needed",
        "_pause_after_connect",
        "_pending",
        "_topics",
        "error",
        "gathers_runs",
        "ignores_flags",
        "is_paused",
        "max_packet_bytes",
    )

    def __init__(
        self,
        max_packet_bytes: int,
        *,
        pause_after_connect: bool = False,
        topics: TopicCache = _TOPICS,
    ) -> None:
        """Start at the first byte of a connection.

        Args:
            max_packet_bytes: Longest packet accepted, fixed header included; may be changed later.
            pause_after_connect: Whether decoding waits for `resume` after each CONNECT.
            topics: Cache of topic names.
        """
        self.max_packet_bytes = max_packet_bytes
        self.error: MalformedPacketError | None = None
        """Why decoding ended; nothing after the faulty packet is read."""
        self.is_paused = False
        """Whether a CONNECT waits for `resume`; bytes fed meanwhile are only kept."""
        self.ignores_flags = False
        """Whether the flags of fixed headers but PUBLISH mean nothing: the client speaks MQTT 3.1."""
        self.gathers_runs = False
        """Whether packets that can be passed on together become one, see `PublishRun`."""
        self._pause_after_connect = pause_after_connect
        self._topics = topics
        self._pending = bytearray()
        self._needed = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes kept: at most one incomplete packet, unless paused."""
        return len(self._pending)

    def feed(self, data: bytes) -> list[Packet]:
        """Return the packets that `data` completes; after a fault those before it, see `error`."""
        if self.error is not None:
            return []
        if self._pending or self.is_paused:
            self._pending += data
            # A packet in many small pieces is copied once, when its last piece is here.
            if self.is_paused or len(self._pending) < self._needed:
                return []
            data = bytes(self._pending)
            self._pending.clear()
        return self._decode(data)

    def resume(self) -> list[Packet]:
        """End the pause after CONNECT and return the packets that came in during it."""
        self.is_paused = False
        data = bytes(self._pending)
        self._pending.clear()
        return self._decode(data)

    def _decode(self, data: bytes) -> list[Packet]:
        packets: list[Packet] = []
        try:
            position = self._decode_into(packets, data)
        except MalformedPacketError as error:
            self.error = error
        else:
            if position < len(data):
                self._pending += data[position:]
        return packets

    def _decode_into(self, packets: list[Packet], data: bytes) -> int:  # noqa: C901, PLR0912, PLR0915 - one pass without calls
        """Append the packets of `data` and return where the incomplete one starts."""
        topics = self._topics.entries
        max_packet_bytes = self.max_packet_bytes
        end = len(data)
        position = 0
        while position + 1 < end:
            first = data[position]
            length = data[position + 1]
            start = position + 2
            if length >= 0x80:
                length &= 0x7F
                shift = 7
                while True:
                    if start - position > _MAX_LENGTH_BYTES:
                        raise MalformedPacketError("MQTT-4.8.0-1", "the remaining length has more than four bytes")
                    if start == end:
                        self._needed = end - position + 1
                        return position
                    byte = data[start]
                    start += 1
                    length |= (byte & 0x7F) << shift
                    if byte < 0x80:
                        break
                    shift += 7
            stop = start + length
            if stop - position > max_packet_bytes:
                raise MalformedPacketError("MQTT-4.8.0-1", f"a packet of more than {max_packet_bytes} bytes")
            if self.ignores_flags and first & 0xF0 != 0x30:
                first = without_flags(first)
            if stop > end:
                # Bad headers end the connection now and not when all their bytes are here.
                check_fixed_header(first, length)
                self._needed = stop - position
                return position
            if first & 0xF0 == 0x30:
                if first >= 0x32:
                    check_fixed_header(first, length)  # before the body, as when it comes in pieces
                if length < 2:
                    raise MalformedPacketError("MQTT-3.3.2-1", "PUBLISH without a topic name")
                topic_end = start + 2 + (data[start] << 8 | data[start + 1])
                if topic_end > stop:
                    raise MalformedPacketError("MQTT-3.3.2-1", "a topic name beyond its PUBLISH")
                raw_topic = data[start + 2 : topic_end]
                topic = topics.get(raw_topic)
                if topic is None:
                    topic = self._topics.decode(raw_topic)
                if first < 0x32:
                    # One whose length takes more bytes than it must does not go on as it is.
                    if self.gathers_runs and first == 0x30 and (start == position + 2 or data[start - 1]):
                        run_end = _run_end(data, position, topic_end, stop)
                        if run_end > stop:
                            count = (run_end - position) // (stop - position)
                            packets.append(PublishRun(topic, data[position:run_end], count, stop - topic_end))
                            position = run_end
                            continue
                    packets.append(
                        Publish(topic, data[topic_end:stop], 0, first == 0x31, False, 0)  # noqa: FBT003 - no DUP
                    )
                else:
                    payload_start = topic_end + 2
                    if payload_start > stop:
                        raise MalformedPacketError("MQTT-2.3.1-1", "PUBLISH without its packet identifier")
                    packet_identifier = data[topic_end] << 8 | data[topic_end + 1]
                    if packet_identifier == 0:
                        raise MalformedPacketError("MQTT-2.3.1-1", "PUBLISH with identifier zero")
                    if self.gathers_runs and first in (0x32, 0x34) and (start == position + 2 or data[start - 1]):
                        identifiers = _identifiers(data, position, topic_end, stop)
                        count = len(identifiers)
                        if count > 1:
                            run_end = position + count * (stop - position)
                            packets.append(
                                PublishRun(topic, data[position:run_end], count, stop - payload_start, identifiers)
                            )
                            position = run_end
                            continue
                    packets.append(
                        Publish(
                            topic,
                            data[payload_start:stop],
                            first >> 1 & 0x03,
                            first & 0x01 != 0,
                            first & 0x08 != 0,
                            packet_identifier,
                        )
                    )
            elif first in (0x40, 0x50, 0x70) and self.gathers_runs and (count := _answers(data, position, first)):
                packets.append(AnswerRun(first, data[start] << 8 | data[start + 1], count))
                position += 4 * count
                continue
            elif first == 0x62 and self.gathers_runs and (identifiers := _releases(data, position)):
                packets.append(PubRelRun(identifiers))
                position += 4 * len(identifiers)
                continue
            else:
                check_fixed_header(first, length)
                packet = decode_body(first, data, start, stop)
                packets.append(packet)
                if self._pause_after_connect and isinstance(packet, Connect):
                    self.is_paused = True
                    return stop
            position = stop
        self._needed = 2
        return position


def _run_end(data: bytes, start: int, head_end: int, stop: int) -> int:
    """Return where the packets end that follow the one at `start` and begin with the same bytes as it.

    Args:
        data: what was read.
        start: first byte of the packet.
        head_end: end of its fixed header and topic name.
        stop: its end.
    """
    size = stop - start
    last = len(data) - size
    if stop > last or data[stop] != data[start] or data[stop + 1] != data[start + 1]:
        return stop
    head = data[start:head_end]
    while stop <= last and data.startswith(head, stop):
        stop += size
    return stop


def _identifiers(data: bytes, start: int, head_end: int, stop: int) -> list[int]:
    """Return the packet identifiers of packets of QoS 1 or 2 that differ in identifier and payload alone.

    Args:
        data: what was read.
        start: first byte of the first packet; its identifier is valid.
        head_end: end of its fixed header and topic name.
        stop: its end.

    Returns:
        Those of the valid ones; fewer than two, perhaps none: it is alone.
    """
    identifiers: list[int] = []
    size = stop - start
    last = len(data) - size
    if stop > last or data[stop] != data[start] or data[stop + 1] != data[start + 1]:
        return identifiers
    head = data[start:head_end]
    while True:
        identifier = data[head_end] << 8 | data[head_end + 1]
        if identifier == 0:
            return identifiers
        identifiers.append(identifier)
        start += size
        head_end += size
        if start > last or not data.startswith(head, start):
            return identifiers


def _answers(data: bytes, start: int, first_byte: int) -> int:
    """Return how many valid packets with this first byte and identifiers that follow one another begin at `start`."""
    last = len(data) - 4
    first = data[start + 2] << 8 | data[start + 3] if start <= last else 0
    count = 0
    while (
        start <= last
        and data[start] == first_byte
        and data[start + 1] == 2
        and data[start + 2] << 8 | data[start + 3] == first + count
        and first
    ):
        count += 1
        start += 4
    return count


def _releases(data: bytes, start: int) -> list[int]:
    """Return the packet identifiers of the valid PUBREL packets that begin at `start`."""
    last = len(data) - 4
    identifiers: list[int] = []
    while start <= last and data[start] == 0x62 and data[start + 1] == 2:
        identifier = data[start + 2] << 8 | data[start + 3]
        if identifier == 0:
            break
        identifiers.append(identifier)
        start += 4
    return identifiers
