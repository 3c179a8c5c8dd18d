"""How gRPC's thread wakes the event loop: so that it never waits for a busy loop, and wakes it once.

`grpc.aio` has a thread that takes completions from gRPC's core. For each it writes a byte into a socket pair, whose
other end the event loop reads, one byte in a turn, taking all completions that are there. A loop whose turns are long
gets several completions in each, so bytes pile up; some 280 fill the socket, the thread blocks in its write, and Linux
lets it go on only when three quarters have been read: 200 turns, 20 s of a session service that drains backlogs, in
which no stream of the process moves and all its links break. So the write end does not block here, since a byte more
tells the loop nothing that those before do not, and a read takes all bytes.
"""

from __future__ import annotations

import socket
from typing import Any

from grpc import aio
from typing_extensions import override

READ_BYTES = 4_096


class _ReadEnd(socket.socket):
    """Reads all bytes, however few are asked for."""

    @override
    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Return what is there; nothing is no error: a turn may find what the one before has taken."""
        del bufsize
        try:
            return super().recv(READ_BYTES, flags)
        except BlockingIOError:
            return b""


def prepare() -> None:
    """Make gRPC's completion queue for event loops, with such a socket pair; before the first channel or server."""
    original = socket.socketpair

    def pair(*args: Any, **kwargs: Any) -> tuple[socket.socket, socket.socket]:  # noqa: ANN401 - as they come
        read_end, write_end = original(*args, **kwargs)
        write_end.setblocking(False)  # noqa: FBT003 - as the library has it
        return _ReadEnd(fileno=read_end.detach()), write_end

    socket.socketpair = pair  # gRPC has no other way to be given one
    try:
        aio.init_grpc_aio()
    finally:
        socket.socketpair = original
