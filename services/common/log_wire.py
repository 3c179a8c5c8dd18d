"""What the log writer says to NATS and hears from it: header blocks, commands, answers. Pure, hot path."""

from __future__ import annotations

import json
import re

from nats.aio.msg import Msg

MESSAGE_ID = "Nats-Msg-Id"
"""Header by which JetStream knows a message that is sent again."""

_STORED = re.compile(rb'\A\{"stream":\s*"[^"]*",.*"seq":\s*(\d+)')
_DUPLICATE = re.compile(rb'"duplicate":\s*true')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def header_lines(headers: dict[str, str]) -> bytes:
    """Return headers, without `Nats-Msg-Id`, as lines; control characters in values become `%XX`."""
    return "".join([f"{name}: {_safe(value)}\r\n" for name, value in headers.items() if name != MESSAGE_ID]).encode()


def header_block(message_id: str, lines: bytes) -> bytes:
    """Return the header block of a message with these lines and its `Nats-Msg-Id`, unless that is empty."""
    if not message_id:
        return b"NATS/1.0\r\n%b\r\n" % lines
    return b"NATS/1.0\r\nNats-Msg-Id: %b\r\n%b\r\n" % (_safe(message_id).encode(), lines)


def command(head: bytes, reply: bytes, block: bytes, payload_size: int, follows: str) -> bytes:
    """Return a command to publish up to its payload.

    Args:
        head: `HPUB`, subject and a space.
        reply: subject for the acknowledgement and a space, or nothing.
        block: of headers.
        payload_size: in bytes.
        follows: message id of the message that has to be the last of the stream; empty: any.
    """
    if follows:
        block = b"%bNats-Expected-Last-Msg-Id: %b\r\n\r\n" % (block[:-2], follows.encode())
    size = len(block)
    return b"%b%b%d %d\r\n%b" % (head, reply, size, size + payload_size, block)


def run_edges(head: bytes, ids: str, lines: bytes, block_size: int, payload_size: int) -> tuple[bytes, bytes]:
    """Return the command of each message of a run up to the number in its `Nats-Msg-Id`, and what is behind that.

    Args:
        head: as of `command`.
        ids: what comes before the number.
        lines: as of `header_block`.
        block_size: length of the block of headers, the same for all.
        payload_size: in bytes.
    """
    sizes = b"%d %d" % (block_size, block_size + payload_size)
    return b"%b%b\r\nNATS/1.0\r\nNats-Msg-Id: %b" % (head, sizes, _safe(ids).encode()), b"\r\n%b\r\n" % lines


def stored_at(data: bytes) -> int:
    """Return the sequence that an acknowledgement names; 0: the answer is none."""
    match = _STORED.match(data)
    return 0 if match is None else int(match[1])


def is_duplicate(data: bytes) -> bool:
    """Return whether an acknowledgement says that the message had been stored before."""
    return _DUPLICATE.search(data) is not None


def fault(answer: Msg) -> tuple[int, str]:
    """Return the error code (0: unknown) and the text of an answer that is not an acknowledgement."""
    if answer.headers and answer.headers.get("Status") == "503":
        return 0, "no responders"
    try:
        error = json.loads(answer.data)["error"]
        return int(error.get("err_code", 0)), str(error.get("description", error))
    except (ValueError, LookupError, TypeError, AttributeError):
        return 0, f"not an acknowledgement: {answer.data[:100]!r}"


def _safe(value: str) -> str:
    return value if value.isprintable() else _CONTROL.sub(_escape, value)


def _escape(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"
