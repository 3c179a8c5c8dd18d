"""Wire exchanges as data: what a client sends and what it must get, byte for byte.

A file of `exchanges/` has one packet type or concept. Its `start` says where its exchanges begin: `connected` (the
runner has sent `CONNECT` and got its answer) or `new` (nothing was sent). Each `[[exchange]]` has a unique `name`, the
statements that it proves in `spec`, and `steps`, each one of

    { send = BYTES }      the client sends this in one piece
    { recv = BYTES }      the server sends exactly this, and nothing before it
    { closed = true }     the server has closed the connection, and sent nothing more; the last step

with a `note` for the reader. BYTES are hex digits, 'text' in single quotes, and `xx*N` for a byte N times; blanks are
free. An exchange that does not end with `closed` leaves a connection that still answers, and nothing more was sent.

Each exchange is one client alone, so what it publishes comes back where it subscribed to it. The server acknowledges
a publication before it delivers it. No `send` holds a packet whose answer comes at once and one whose answer the mesh
gives (PINGREQ after SUBSCRIBE): their order is free.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "exchanges"

CONNECT = bytes.fromhex("100e00044d5154540402003c0002") + b"me"
"""A CONNECT with a clean session, keep alive 60 s and client id `me`."""
CONNACK = bytes.fromhex("20020000")

FENCE_SENT = bytes.fromhex("320a0006") + b"$fence" + bytes.fromhex("fffe")
"""PUBLISH of QoS 1 to a topic that no wildcard selects; what it overtook has arrived when its PUBACK has."""
FENCE_RECEIVED = bytes.fromhex("4002fffe")

_TOKEN = re.compile(r"'(?P<text>[^']*)'|(?P<byte>[0-9a-f]{2})\*(?P<times>\d+)|(?P<hex>(?:[0-9a-f]{2})+)|(?P<blank>\s+)")


def parse_bytes(text: str) -> bytes:
    """Return the bytes that `text` writes.

    Raises:
        ValueError: it has something else than hex, quoted text and repetitions.
    """
    parts = []
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError(f"no bytes: {text[position:]!r}")
        position = token.end()
        if token["text"] is not None:
            parts.append(token["text"].encode())
        elif token["byte"] is not None:
            parts.append(bytes.fromhex(token["byte"]) * int(token["times"]))
        elif token["hex"] is not None:
            parts.append(bytes.fromhex(token["hex"]))
    return b"".join(parts)


@dataclasses.dataclass(frozen=True)
class Step:
    """One move of one side."""

    action: str
    """`send`, `recv` or `closed`."""
    data: bytes
    note: str


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A conversation between a client and the server."""

    name: str
    file: str
    is_connected: bool
    """Whether the runner connects first."""
    spec: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def ends_closed(self) -> bool:
        """Whether the server closes the connection in the end."""
        return self.steps[-1].action == "closed"


def _step(raw: dict[str, object]) -> Step:
    (action,) = raw.keys() - {"note"}
    note = str(raw.get("note", ""))
    if action == "closed":
        if raw[action] is not True:
            raise ValueError("closed is true or absent")
        return Step(action, b"", note)
    if action not in ("send", "recv"):
        raise ValueError(f"unknown step {action!r}")
    return Step(action, parse_bytes(str(raw[action])), note)


def _exchange(raw: dict[str, Any], file: str, *, is_connected: bool) -> Exchange:
    if unknown := raw.keys() - {"name", "spec", "steps"}:
        raise ValueError(f"unknown keys {unknown}")
    steps = tuple(_step(step) for step in raw["steps"])
    if any(step.action == "closed" for step in steps[:-1]):
        raise ValueError("a step after closed")
    return Exchange(raw["name"], file, is_connected, tuple(raw["spec"]), steps)


def load() -> list[Exchange]:
    """Return every exchange of the folder.

    Raises:
        ValueError: a file does not follow the format.
    """
    exchanges = []
    for path in sorted(FOLDER.glob("*.toml")):
        file = tomllib.loads(path.read_text())
        is_connected = {"connected": True, "new": False}[file["start"]]
        for raw in file["exchange"]:
            try:
                exchanges.append(_exchange(raw, path.stem, is_connected=is_connected))
            except ValueError as error:
                raise ValueError(f"{path.name}: {raw.get('name')}: {error}") from error
    return exchanges
