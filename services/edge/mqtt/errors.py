"""Errors of the MQTT core; they say whose fault it is.

ProtocolError                   the peer's fault; the connection ends
    MalformedPacketError        bytes that are no MQTT packet
    ProtocolViolationError      a well-formed packet, or silence, that the rules forbid here
LocalUseError                   our own code misused the core
"""

from __future__ import annotations


class ProtocolError(Exception):
    """What the peer did wrong; never raised out of `ServerConnection.feed`, but reported."""

    def __init__(self, requirement: str, message: str) -> None:
        super().__init__(f"{message} [{requirement}]")
        self.requirement = requirement
        """Normative tag of the broken statement, such as `MQTT-2.2.2-2`.

        `MQTT-4.8.0-1` (close on any protocol violation) stands for rules of the standard that
        carry no tag of their own, and for our own limits.
        """
        self.message = message


class MalformedPacketError(ProtocolError):
    """Bytes that cannot be a packet of MQTT 3.1.1, or a packet larger than we allow."""


class ProtocolViolationError(ProtocolError):
    """A well-formed packet at the wrong time, a limit passed, or no packet when one was due."""


class LocalUseError(Exception):
    """A call that the state of the connection does not allow, or a packet nobody may send."""
