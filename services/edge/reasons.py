"""Why a connection ended: the values of `weimq.session.v1.CloseReason` that an edge gives."""

from __future__ import annotations

from weimq.session.v1 import session_pb2

CLIENT_DISCONNECT = session_pb2.CLOSE_REASON_CLIENT_DISCONNECT
CONNECTION_LOST = session_pb2.CLOSE_REASON_CONNECTION_LOST
KEEP_ALIVE_TIMEOUT = session_pb2.CLOSE_REASON_KEEP_ALIVE_TIMEOUT
PROTOCOL_ERROR = session_pb2.CLOSE_REASON_PROTOCOL_ERROR
NOT_AUTHORIZED = session_pb2.CLOSE_REASON_NOT_AUTHORIZED
EVICTED = session_pb2.CLOSE_REASON_EVICTED
SHUTDOWN = session_pb2.CLOSE_REASON_SHUTDOWN
SLOW_CONSUMER = session_pb2.CLOSE_REASON_SLOW_CONSUMER

UNREACHABLE = frozenset({KEEP_ALIVE_TIMEOUT, SLOW_CONSUMER})
"""The peer takes nothing, so there is nothing to wait for when its connection is closed."""

_NAMES: dict[int, str] = {int(number): name for name, number in session_pb2.CloseReason.items()}


def name(reason: int) -> str:
    """Return a reason as the log says it."""
    return _NAMES[reason]
