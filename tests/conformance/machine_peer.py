"""A driver of the sans-IO machine that plays the mesh: it grants, acknowledges and echoes at once."""

from __future__ import annotations

from services.common.topics import matches
from services.edge.mqtt.events import Event, Failed
from services.edge.mqtt.machine import Limits, ServerConnection, State
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Connect, ConnectReturnCode, Publish, Subscribe, Unsubscribe


class MachinePeer:
    """The server side of one connection, without a socket."""

    def __init__(self, *, in_pieces: bool = False) -> None:
        """Start before CONNECT.

        Args:
            in_pieces: whether bytes reach the machine one by one.
        """
        self._machine = ServerConnection(now=0.0, limits=Limits())
        self._subscriptions: dict[str, int] = {}
        self._piece = 1 if in_pieces else 1 << 30
        self.received = b""
        """What the client has got and not taken."""
        self.failure: str | None = None
        """The statement that the client broke."""

    @property
    def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self._machine.state is State.CLOSED

    def send(self, data: bytes) -> None:
        """Send as the client."""
        for start in range(0, len(data), self._piece):
            self._handle(self._machine.feed(data[start : start + self._piece], 0.0))
        self.received += b"".join(self._machine.take_output())

    def _handle(self, events: list[Event]) -> None:
        published: list[Publish] = []
        for event in events:
            if isinstance(event, Connect):
                self._on_connect(event)
            elif isinstance(event, Publish):
                published.append(event)
                if event.qos:
                    self._machine.acknowledge(event.packet_identifier, event.qos)
            elif isinstance(event, Subscribe):
                self._subscriptions.update(event.filters)
                self._machine.suback(event.packet_identifier, [qos for _, qos in event.filters])
            elif isinstance(event, Unsubscribe):
                for topic_filter in event.filters:
                    self._subscriptions.pop(topic_filter, None)
                self._machine.unsuback(event.packet_identifier)
            elif isinstance(event, Failed):
                self.failure = event.error.requirement
        for publication in published:
            self._echo(publication)

    def _on_connect(self, packet: Connect) -> None:
        if not packet.client_id and not packet.clean_session:
            self._machine.refuse(ConnectReturnCode.IDENTIFIER_REJECTED)
        else:
            self._handle(self._machine.accept(0.0, session_present=False))

    def _echo(self, publication: Publish) -> None:
        granted = [qos for topic_filter, qos in self._subscriptions.items() if matches(topic_filter, publication.topic)]
        if granted and not self.is_closed:
            message = OutboundMessage(publication.topic.encode(), publication.payload, False)
            assert self._machine.deliver(message, min(publication.qos, max(granted)))
