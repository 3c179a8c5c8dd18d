"""States of a server connection, its transitions and limits; `machine` says what they mean."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from services.edge.mqtt.packets import (
    Connect,
    Disconnect,
    PingReq,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    Unsubscribe,
)


class State(enum.Enum):
    """Where a connection stands."""

    AWAITING_CONNECT = "awaiting_connect"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"

    __hash__ = object.__hash__  # that of `Enum` is a Python function


TRANSITIONS: Final[dict[State, dict[type, State]]] = {
    State.AWAITING_CONNECT: {Connect: State.CONNECTING},
    State.CONNECTING: {},  # the decoder is paused
    State.CONNECTED: {
        Publish: State.CONNECTED,
        PubAck: State.CONNECTED,
        PubRec: State.CONNECTED,
        PubRel: State.CONNECTED,
        PubComp: State.CONNECTED,
        Subscribe: State.CONNECTED,
        Unsubscribe: State.CONNECTED,
        PingReq: State.CONNECTED,
        Disconnect: State.CLOSED,
    },
    State.CLOSED: {},
}
"""State -> type of packet -> next state; absence is a protocol violation."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one peer may make us hold and wait for."""

    max_packet_bytes: int = 1 << 20
    """Longest packet accepted; longer ones end the connection."""
    connect_timeout_s: float = 10.0
    """From the start of the connection to a complete CONNECT."""
    max_inflight: int = 32
    """Deliveries of QoS 1 and 2 under way; more wait in the queue."""
    max_queued: int = 1000
    """Deliveries that wait for the window; more are refused by `deliver`."""
    max_queued_bytes: int = 16 << 20
    """Payload bytes of that queue; a queue that is empty takes a message of any size."""
    receive_maximum: int = 1024
    """Publications and requests that the mesh has yet to answer; from here on `wants_pause`."""
    max_unreleased: int = 16_384
    """QoS 2 identifiers without PUBREL; a client that passes it is disconnected."""
    write_buffer_bytes: int = 1 << 20
    """What the transport holds before the peer counts as slow."""
    slow_consumer_s: float = 30.0
    """For how long it may acknowledge nothing while many deliveries wait."""
