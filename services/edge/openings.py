"""Connections as a session shard is told of them: small objects, written into a frame when it is built."""

from __future__ import annotations

from services.edge import session_codec as codec
from services.edge.mqtt.inflight import Identifiers
from services.edge.mqtt.packets import Will
from services.edge.policy import Instance
from services.edge.ports import Client, Publisher
from weimq.session.v1 import session_pb2


class WillOf:
    """The will of a connection, and by what it may be published."""

    __slots__ = ("publisher", "will")

    def __init__(self, will: Will, publisher: Publisher) -> None:
        self.will = will
        self.publisher = publisher

    def write_to(self, message: session_pb2.Will) -> None:
        """Write it into an opening."""
        message.topic = self.will.topic
        message.payload = self.will.payload
        message.qos = self.will.qos
        message.retain = self.will.retain
        message.account_id = self.publisher.account_id
        message.access_key_id = self.publisher.access_key_id
        message.token_ids.extend(self.publisher.token_ids)


class Opening:
    """A connection from its opening until its closing is confirmed. Does not hold the client, which may be gone."""

    __slots__ = (
        "address",
        "channel_id",
        "clean_session",
        "client_id",
        "connect_time_ms",
        "identifiers",
        "instance",
        "is_held",
        "reason",
        "will",
    )

    def __init__(
        self, client: Client, instance: Instance, will: WillOf | None, *, clean_session: bool, is_held: bool
    ) -> None:
        self.channel_id = client.channel_id
        self.client_id = client.client_id
        self.address = client.address
        self.instance = instance  # as it was then
        self.will = will
        self.clean_session = clean_session
        self.is_held = is_held
        self.connect_time_ms = 0  # 0: not let in yet
        self.reason = 0  # why it ended
        self.identifiers: Identifiers | None = None  # in use at its end

    def write_opening(self, message: session_pb2.Opening) -> None:
        """Write it as an opening."""
        self._write_connection(message.connection)
        if self.connect_time_ms:
            message.established = True
        if self.instance.takeover:
            message.takeover = True
        if self.clean_session:
            message.clean_session = True
        else:
            message.rules.CopyFrom(codec.rules(self.instance))
        if self.is_held:
            message.is_held = True
        if self.will is not None:
            self.will.write_to(message.will)

    def write_closing(self, message: session_pb2.Closing) -> None:
        """Write its end."""
        self._write_connection(message.connection)
        message.reason = self.reason  # type: ignore[assignment]  # an int of CloseReason
        if self.identifiers:
            message.inflight.CopyFrom(codec.inflight_state(self.identifiers))

    def _write_connection(self, message: session_pb2.Connection) -> None:
        message.channel_id = self.channel_id
        message.instance_id = self.instance.instance_id
        message.client_id = self.client_id
        message.address = self.address
        if self.connect_time_ms:
            message.connect_time_ms = self.connect_time_ms
