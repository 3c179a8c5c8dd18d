"""The answer to Flash players that ask which ports they may connect to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from services.edge.transports.strangers import Strangers

REQUEST = b"<policy-file-request/>\0"


def policy(ports: Sequence[int], domain: str = "*") -> bytes:
    """Return the policy that lets pages of `domain` connect to `ports`."""
    joined = ",".join(str(port) for port in ports)
    return (
        '<?xml version="1.0"?>'
        f'<cross-domain-policy><allow-access-from domain="{domain}" to-ports="{joined}"/></cross-domain-policy>\0'
    ).encode()


class FlashPolicyProtocol:
    """Answers one request and closes; closes at once when the bytes are no request."""

    __slots__ = ("_answer", "_deadline", "_loop", "_received", "_strangers", "_timeout_s", "_transport")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, answer: bytes, strangers: Strangers, *, timeout_s: float
    ) -> None:
        """Wait for a connection.

        Args:
            loop: the running loop.
            answer: see `policy`.
            strangers: of the edge.
            timeout_s: seconds that the request may take, and that the answer may take to be read.
        """
        self._loop = loop
        self._answer = answer
        self._strangers = strangers
        self._timeout_s = timeout_s
        self._received = b""
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of the socket."""
        self._transport = cast("asyncio.Transport", transport)
        self._deadline = self._loop.call_later(self._timeout_s, self._transport.abort)
        self._strangers.enter(self, self._transport)

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
        self._received += data[: len(REQUEST)]
        if self._received.startswith(REQUEST):
            self._transport.write(self._answer)
            self._transport.close()
        elif not REQUEST.startswith(self._received):
            self._transport.abort()

    def eof_received(self) -> bool:
        """Close our side too."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Stop the clock."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._strangers.leave(self)

    def pause_writing(self) -> None:
        """Do nothing: one short answer is written."""

    def resume_writing(self) -> None:
        """Do nothing: one short answer is written."""
