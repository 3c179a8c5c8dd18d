"""Answers of the exchanges of QoS 1 and 2 that come together. Only a decoder that was told to makes these.

Nearly all come so: whoever sends messages together is answered together, and answers that in its turn.
"""

from __future__ import annotations

from typing import ClassVar

from services.edge.mqtt.packet_base import PacketBase
from services.edge.mqtt.primitives import IDENTIFIERS


def answers(head: bytes, identifiers: list[int]) -> bytes:
    """Return packets that consist of `head` and one packet identifier each; there is at least one."""
    return head + head.join([IDENTIFIERS[identifier] for identifier in identifiers])


def answers_in_order(head: bytes, first: int, count: int) -> bytes:
    """Return `answers` whose packet identifiers begin with `first` and follow one another."""
    return head + head.join(IDENTIFIERS[first : first + count])


class AnswerRun(PacketBase):
    """PUBACK, PUBREC or PUBCOMP packets whose packet identifiers follow one another, as those of deliveries do."""

    __slots__ = ("count", "first_byte", "packet_identifier")

    fields: ClassVar[tuple[str, ...]] = ("first_byte", "packet_identifier", "count")

    def __init__(self, first_byte: int, packet_identifier: int, count: int) -> None:
        self.first_byte = first_byte
        """Of each packet: it says which they are."""
        self.packet_identifier = packet_identifier
        """Of the first."""
        self.count = count


class PubRelRun(PacketBase):
    """PUBREL packets, whose packet identifiers are those that the client chose."""

    __slots__ = ("identifiers",)

    fields: ClassVar[tuple[str, ...]] = ("identifiers",)

    def __init__(self, identifiers: list[int]) -> None:
        self.identifiers = identifiers
