"""What the log writer says to NATS and hears from it: header blocks, commands, answers. Pure, hot path."""

from __future__ import annotations

import json
import re

from nats.aio.msg import Msg

MESSAGE_ID = "Nats-Msg-Id"
"""Header by which JetStream knows a message that is sent again."""
OWN_ID = "mqttMsgId"
"""Header with the id of a message that JetStream need not know: who may send it again looks whether it is there."""

_INDEXED = b"NATS/1.0\r\n%b: " % MESSAGE_ID.encode()
_NOT_INDEXED = b"NATS/1.0\r\n%b: " % OWN_ID.encode()
_NEVER = b"NATS/1.0\r\nNats-Expected-Last-Sequence: 999999999999999999\r\n\r\n"

_STORED = re.compile(rb'\A\{"stream":\s*"[^"]*",.*"seq":\s*(\d+)')
_DUPLICATE = re.compile(rb'"duplicate":\s*true')
_LAST = re.compile(r"wrong last sequence: (\d+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def header_lines(headers: dict[str, str]) -> bytes:
    """Return headers, without `Nats-Msg-Id`, as lines; control characters in values become `%XX`."""
    return "".join([f"{name}: {_safe(value)}\r\n" for name, value in headers.items() if name != MESSAGE_ID]).encode()


def header_block(message_id: str, lines: bytes, is_indexed: bool) -> bytes:  # noqa: FBT001 - hot path
    """Return the header block of a message with these lines and its id, unless that is empty.

    Args:
        message_id: of the message.
        lines: made by `header_lines`.
        is_indexed: JetStream is to know the id (`Nats-Msg-Id`).
    """
    if not message_id:
        return b"NATS/1.0\r\n%b\r\n" % lines
    return b"%b%b\r\n%b\r\n" % (_INDEXED if is_indexed else _NOT_INDEXED, _safe(message_id).encode(), lines)


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


def run_edges(
    head: bytes,
    ids: str,
    lines: bytes,
    block_size: int,
    payload_size: int,
    is_indexed: bool,  # noqa: FBT001 - hot path
) -> tuple[bytes, bytes]:
    """Return the command of each message of a run up to the number in its id, and what is behind that.

    Args:
        head: as of `command`.
        ids: what comes before the number.
        lines: as of `header_block`.
        block_size: length of the block of headers, the same for all.
        payload_size: in bytes.
        is_indexed: as of `header_block`.
    """
    sizes = b"%d %d" % (block_size, block_size + payload_size)
    start = _INDEXED if is_indexed else _NOT_INDEXED
    return b"%b%b\r\n%b%b" % (head, sizes, start, _safe(ids).encode()), b"\r\n%b\r\n" % lines


def fence(head: bytes, reply: bytes) -> bytes:
    """Return a command that JetStream refuses behind all that was published before, telling where the stream ends.

    Args:
        head: as of `command`, of any subject of the stream.
        reply: as there.
    """
    return b"%b%b%d %d\r\n%b\r\n" % (head, reply, len(_NEVER), len(_NEVER), _NEVER)


def stored_at(data: bytes) -> int:
    """Return the sequence that an acknowledgement names; 0: the answer is none."""
    match = _STORED.match(data)
    return 0 if match is None else int(match[1])


def last_sequence(reason: str) -> int:
    """Return where a stream ends, from the text of the answer to a fence; -1: it is something else."""
    match = _LAST.search(reason)
    return -1 if match is None else int(match[1])


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
