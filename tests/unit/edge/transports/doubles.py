"""A socket's transport, a loop's clock and a protocol above, as seen by a layer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from typing_extensions import override

from services.edge.transports.layer import ByteProtocol


class Timer:
    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        self.seconds = seconds
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(seconds, callback))
        return self.timers[-1]

    @property
    def running(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.is_cancelled]

    def typed(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)


class Socket:
    """A transport that keeps what is written; strict about calls that asyncio forbids."""

    def __init__(self, *, half_close: bool = True) -> None:
        self.written = bytearray()
        self.is_reading = True
        self.has_eof = False
        self.is_closed = False
        self.is_aborted = False
        self.limits: tuple[int | None, int | None] = (None, None)
        self._half_close = half_close

    def typed(self) -> asyncio.Transport:
        return cast("asyncio.Transport", self)

    def write(self, data: bytes) -> None:
        assert not self.has_eof, "write() after write_eof()"
        assert not self.is_closed
        assert data
        self.written += data

    def take(self) -> bytes:
        taken = bytes(self.written)
        self.written.clear()
        return taken

    def can_write_eof(self) -> bool:
        return self._half_close

    def write_eof(self) -> None:
        assert self._half_close
        self.has_eof = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 12345) if name == "peername" else default


class Above(ByteProtocol):
    """A protocol that keeps what it gets, and echoes if told to."""

    def __init__(self, *, echo: bool = False) -> None:
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.calls: list[str] = []
        self.lost_count = 0
        self._echo = echo

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert not self.calls
        self.calls.append("made")
        self.transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        assert self.calls
        assert not self.lost_count
        assert type(data) is bytes
        self.received += data
        if self._echo and data:
            self.transport.write(data)

    @override
    def eof_received(self) -> bool:
        return False

    @override
    def connection_lost(self, error: Exception | None) -> None:
        self.calls.append("lost")
        self.lost_count += 1

    @override
    def pause_writing(self) -> None:
        self.calls.append("pause")

    @override
    def resume_writing(self) -> None:
        self.calls.append("resume")
