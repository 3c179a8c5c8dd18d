"""`$SYS/enableOrderMsg`: a client wants its messages in the backend queue in their order (product.md 3.4)."""

from __future__ import annotations

from collections.abc import Callable

from services.edge.commands import Body, CommandError
from services.edge.ports import Client


def enable(client: Client, body: Body, done: Callable[[], None]) -> None:  # noqa: ARG001 - a commands.Handler
    """Take the command; a `commands.Handler`.

    There is nothing to switch on: the log of a topic of message type `ordered` keeps the order of every client
    (`services.common.log_writer`), and the edge hands messages on in their order anyway.

    Raises:
        CommandError: `order` is neither "true" nor "false".
    """
    if body.get("order") not in {"true", "false", True, False}:
        raise CommandError("`order` is neither true nor false")
    done()
