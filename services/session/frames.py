"""Openings and closings as edges send them: checked, and each field read once. Hot path.

An attribute of a protobuf message takes as long as ten of an object of ours, and a text is decoded anew each time.
"""

from __future__ import annotations

import re

from services.common import utf8
from services.common.errors import StreamContractError
from services.session.domain.records import Publisher, Will
from services.session.domain.rules import Rules
from services.session.domain.sessions import Carried
from weimq.session.v1 import session_pb2

MAX_INSTANCE_BYTES = 128
"""Longest instance id: it becomes part of stream names and subjects."""
MAX_CLIENT_ID_BYTES = 65_535
MAX_ADDRESS_BYTES = 256
MAX_WILL_BYTES = 65_535
"""Longest topic name, and longest payload, of a will: CONNECT has 16 bits for each length."""

_CHANNEL_ID = re.compile(r"[0-9A-Fa-f]{32}\Z")


class Opening:
    """A connection that asks to be let in, or was let in before this link.

    Raises:
        StreamContractError: it can't be announced, or has a will that no CONNECT can hold.
    """

    __slots__ = (
        "address", "channel_id", "clean_session", "client_id", "established_ms", "instance_id", "is_held", "rules",
        "takeover", "will",
    )  # fmt: skip

    def __init__(self, message: session_pb2.Opening) -> None:
        connection = message.connection
        self.channel_id = connection.channel_id
        self.instance_id = connection.instance_id
        self.client_id = connection.client_id
        self.address = connection.address
        _check(self.channel_id, self.instance_id, self.client_id, self.address)
        self.established_ms = max(1, connection.connect_time_ms) if message.established else 0  # 0: it asks
        self.takeover = message.takeover
        self.clean_session = message.clean_session
        self.is_held = message.is_held
        self.will = self._will(message.will) if message.HasField("will") else None
        self.rules = _rules(message.rules) if message.HasField("rules") else None

    def _will(self, will: session_pb2.Will) -> Will:
        topic, payload = will.topic, will.payload
        if len(payload) > MAX_WILL_BYTES or _is_longer(topic, MAX_WILL_BYTES):  # is the topic one? The router knows
            raise StreamContractError(f"topic and payload of a will have at most {MAX_WILL_BYTES} bytes", rule="will")
        return Will(
            self.instance_id,
            self.client_id,
            self.channel_id,
            topic,
            payload,
            qos=will.qos,
            retain=will.retain,
            clean_session=self.clean_session,
            publisher=Publisher(will.account_id, will.access_key_id, tuple(will.token_ids)),
        )


class Closing:
    """A connection that ended.

    Raises:
        StreamContractError: it can't be announced.
    """

    __slots__ = ("address", "carried", "channel_id", "client_id", "connect_time_ms", "disconnected", "instance_id")

    def __init__(self, message: session_pb2.Closing) -> None:
        connection = message.connection
        self.channel_id = connection.channel_id
        self.instance_id = connection.instance_id
        self.client_id = connection.client_id
        self.address = connection.address
        _check(self.channel_id, self.instance_id, self.client_id, self.address)
        self.connect_time_ms = connection.connect_time_ms  # 0: its edge had no decision
        self.disconnected = message.reason == session_pb2.CLOSE_REASON_CLIENT_DISCONNECT
        self.carried = _carried(message.inflight) if message.HasField("inflight") else None


def _check(channel_id: str, instance_id: str, client_id: str, address: str) -> None:
    """Refuse what can't be announced.

    Raises:
        StreamContractError: a field is empty, too long or malformed.
    """
    if not _CHANNEL_ID.match(channel_id):
        raise StreamContractError("channel_id has 32 hexadecimal digits", rule="channel_id")
    if not instance_id or _is_longer(instance_id, MAX_INSTANCE_BYTES):
        raise StreamContractError(f"instance_id has 1 to {MAX_INSTANCE_BYTES} bytes", rule="instance_id")
    if not client_id or _is_longer(client_id, MAX_CLIENT_ID_BYTES):
        raise StreamContractError(f"client_id has 1 to {MAX_CLIENT_ID_BYTES} bytes", rule="client_id")
    if _is_longer(address, MAX_ADDRESS_BYTES):
        raise StreamContractError(f"address has at most {MAX_ADDRESS_BYTES} bytes", rule="address")


def _is_longer(text: str, most_bytes: int) -> bool:
    """Say whether a text takes more bytes; encodes only one that may."""
    return len(text) * utf8.MAX_BYTES > most_bytes and len(text.encode()) > most_bytes


def _rules(rules: session_pb2.SessionRules) -> Rules:
    return Rules(
        keeps_qos2=rules.keeps_qos2,
        strict_order=rules.strict_order,
        batch_messages=rules.batch_messages,
        batch_interval_ms=rules.batch_interval_ms,
        acknowledgement_timeout_ms=rules.acknowledgement_timeout_ms,
        offline_retention_ms=rules.offline_retention_ms,
        max_offline_messages=rules.max_offline_messages,
        session_expiry_ms=rules.session_expiry_ms,
    )


def _carried(state: session_pb2.InflightState) -> Carried:
    if not len(state.delivery_ids) == len(state.packet_identifiers) == len(state.stages):
        raise StreamContractError("the fields of a delivery come together", rule="inflight")
    return Carried(
        list(zip(state.delivery_ids, state.packet_identifiers, state.stages, strict=True)),
        list(state.received_packet_identifiers),
        [(each.topic_filter, each.qos) for each in state.retained],
    )
