"""A blocking MQTT client that does only what the test says: no acknowledgement, no ping, no reading by itself."""

from __future__ import annotations

import secrets
import socket
from types import TracebackType
from typing import Self

from services.edge.mqtt import codec, packets
from tests.support.mesh import Mesh
from tests.support.wait import WAIT_S


class RawClient:
    """A TCP connection that was let in."""

    def __init__(self, mesh: Mesh, *, edge: int = 0, keep_alive_s: int = 60) -> None:
        self.client_id = mesh.client_id(secrets.token_hex(4))
        user, password = mesh.login(self.client_id)
        self.socket = socket.create_connection(("127.0.0.1", mesh.mqtt_port(edge)), timeout=WAIT_S)
        self._decoder = codec.Decoder(1 << 24)
        self._packets: list[packets.Packet] = []
        self.send(packets.Connect(4, self.client_id, True, keep_alive_s, user, password.encode(), None))
        assert self.receive() == packets.ConnAck(session_present=False, return_code=0)

    def send(self, *sent: packets.Packet) -> None:
        """Send packets."""
        self.socket.sendall(b"".join(map(codec.encode, sent)))

    def receive(self) -> packets.Packet:
        """Return the next packet.

        Raises:
            TimeoutError: none came within `WAIT_S`.
            ConnectionError: the connection was closed.
        """
        while not self._packets:
            data = self.socket.recv(65_536)
            if not data:
                raise ConnectionError("closed by the server")
            self._packets += self._decoder.feed(data)
        return self._packets.pop(0)

    def subscribe(self, topic_filter: str, qos: int) -> int:
        """Subscribe and return the code of SUBACK."""
        self.send(packets.Subscribe(1, [(topic_filter, qos)]))
        answer = self.receive()
        assert isinstance(answer, packets.SubAck)
        return answer.return_codes[0]

    def close(self) -> None:
        """Drop the connection without DISCONNECT."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
