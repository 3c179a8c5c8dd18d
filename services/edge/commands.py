"""Commands that clients of `lmq` instances publish to topics of the server, `$SYS/...` (product.md 2.2, 3.2 and 3.4).

The payload is a flat JSON object. The publication is answered when the command is in force: PUBACK at QoS 1, as the
product has it; a client that uses QoS 2 gets PUBREC, and one that uses QoS 0 no answer. In `standard` instances these
are ordinary topics.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeAlias

from services.edge.mqtt.packets import Publish
from services.edge.ports import Client

GET_OFFLINE_MESSAGES = "$SYS/getOfflineMsg"
ENABLE_ORDER = "$SYS/enableOrderMsg"

MAX_BODY_BYTES = 65_536
"""Longest payload of a command: the product's limit for any message."""
MAX_FIELDS = 16
"""Fields of a command; those that it does not know are ignored."""

Value: TypeAlias = str | int | bool
Body: TypeAlias = dict[str, Value]
Handler: TypeAlias = Callable[[Client, Body, Callable[[], None]], None]
"""Takes a command of a client that is let in, and calls back once it is in force. May close the connection instead.

Raises `CommandError` when the body does not fit."""


class CommandError(ValueError):
    """The payload of a command is not what it must be; the text holds nothing of it."""


class Commands:
    """Who handles which topic."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, topic: str, handler: Handler) -> None:
        """Have `handler` called for what is published to `topic`."""
        self._handlers[topic] = handler

    def take(self, client: Client, publication: Publish, done: Callable[[], None]) -> bool:
        """Hand a publication to its handler; `done` answers it.

        Returns:
            False: its topic is none of a command.

        Raises:
            CommandError: the payload is not what the command needs.
        """
        handler = self._handlers.get(publication.topic)
        if handler is None:
            return False
        handler(client, parse(publication.payload), done)
        return True


def parse(payload: bytes) -> Body:
    """Return the fields of a command.

    Raises:
        CommandError: it is not a flat JSON object of texts, integers and truth values, or too large.
    """
    if len(payload) > MAX_BODY_BYTES:
        raise CommandError("longer than 65,536 bytes")
    try:
        body = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:  # hostile nesting; also not UTF-8
        raise CommandError("not JSON in UTF-8") from error
    if not isinstance(body, dict) or len(body) > MAX_FIELDS:
        raise CommandError("not a JSON object of a few fields")
    if not all(isinstance(value, (str, int)) for value in body.values()):
        raise CommandError("a field is neither text nor integer nor truth value")
    return body
